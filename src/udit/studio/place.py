"""What there is to sample from at a place: a run, a model folder, a folder of them, or a model on the hub."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from udit import dist, hub
from udit.assemble import System
from udit.checkpoint import CheckpointStore, DamagedError
from udit.errors import UserError
from udit.exporting.manifest import is_exported
from udit.run.system import SystemConfig
from udit.store import FILES, Weights, load, network, read_config, read_run_config
from udit.training.posthoc import posthoc_ema

log = logging.getLogger(__name__)
DEPTH = 2
"""Levels of folders below the place that are searched."""
MOST_FOLDERS = 200
"""Most runs and models of a place that are listed, the newest first."""
NEWEST = "newest"
"""In the key of a choice: the run's newest checkpoint, whichever that is when it is drawn from."""
KEPT = 2
"""Models that stay loaded: those that are compared."""


@dataclass(frozen=True)
class Choice:
    """A model to draw from, or a checkpoint of a run."""

    key: str
    """What the page sends."""
    title: str
    """What the page shows."""
    source: str
    """A folder or a hub id."""
    step: int | None = None
    """Of a checkpoint; None is the newest one of a run, or a model's only weights."""

    @property
    def file_name(self) -> str:
        """For files that are made of it: letters, digits, dots and hyphens alone."""
        words = "".join(c if c.isalnum() or c in ".-" else "-" for c in self.title.replace(",", ""))
        return "-".join(word for word in words.split("-") if word)[:60] or "model"


@dataclass(frozen=True)
class Place:
    """A place whose models and checkpoints are listed again whenever they are asked for."""

    root: str
    """As the user gave it."""

    @property
    def may_have_runs(self) -> bool:
        """Whether it is a folder."""
        return Path(self.root).is_dir()

    def folders(self) -> list[Path]:
        """Runs and model folders, the newest first; empty for a model on the hub."""
        top = Path(self.root)
        if not top.is_dir():
            return []
        found = [top] if _is_subject(top) else list(_below(top, DEPTH))
        return sorted(found, key=_changed, reverse=True)[:MOST_FOLDERS]

    def runs(self) -> dict[str, Path]:
        """Run folders by what the page shows."""
        return {self._title(folder): folder for folder in self.folders() if _is_run(folder)}

    def choices(self) -> list[Choice]:
        """Everything to draw from: of each run its newest checkpoint, then each one, the newest first."""
        if not Path(self.root).is_dir():
            return [Choice(self.root, self.root, self.root)]
        found = []
        for folder in self.folders():
            title, source = self._title(folder), str(folder)
            if not _is_run(folder):
                found.append(Choice(title, title, source))
                continue
            steps = sorted(CheckpointStore(folder / "checkpoints").steps(), reverse=True)
            if steps:
                found.append(Choice(f"{title}@{NEWEST}", f"{title}, newest checkpoint", source))
            found += [Choice(f"{title}@{step}", f"{title}, step {step:,}", source, step) for step in steps]
        return found

    def choice(self, key: object) -> Choice:
        """The choice of a key; nothing outside of the place can be named.

        Raises:
            UserError: there is none, or no longer.
        """
        for choice in self.choices():
            if choice.key == key:
                return choice
        gone = "a model is not chosen" if not key else f"{key} is no longer there"
        raise UserError(f"{gone}; choose one from the list")

    def run(self, title: object) -> Path:
        """The run folder of a title.

        Raises:
            UserError: there is none, or no longer.
        """
        found = self.runs().get(str(title))
        if found is None:
            raise UserError("no run is chosen; choose one from the list" if not title else f"run {title} is gone")
        return found

    def _title(self, folder: Path) -> str:
        top = Path(self.root)
        return folder.resolve().name if folder == top else str(folder.relative_to(top))


def find(root: str | Path) -> Place:
    """A place with something to draw from or to watch.

    Args:
        root: a run, a model folder, a folder of them, or what else ``udit.load`` takes, e.g. a hub id.

    Raises:
        UserError: there is nothing of the kind.
    """
    text = str(root)
    path = Path(text)
    if not path.is_dir():
        if path.is_file() or not (hub.is_hub_id(text) or ":" in text):
            where = "is a file" if path.is_file() else "is not there"
            raise UserError(f"{text} {where}; give a run, a model folder, a folder of runs or a hub id (owner/name)")
        load(text)
        return Place(text)
    place = Place(text)
    if not place.folders():
        if is_exported(path):
            raise UserError(f"{text} holds an exported graph; give the model folder that it was made of")
        raise UserError(f"{text} holds no run and no model, {DEPTH} folders deep; `udit train digits` makes a run")
    return place


class Shelf:
    """Loaded models, the last two that were used; safe to use from several threads."""

    def __init__(self, device: str = "auto", text_model: str | None = None) -> None:
        self.device = dist.find_device(device, 0)
        self.text_model = text_model
        """In place of the language model that models of texts record; another one than theirs is refused."""
        self._systems: OrderedDict[tuple[str, int | None, str], System] = OrderedDict()
        self._lock = Lock()

    def config(self, choice: Choice) -> SystemConfig:
        """The config of a choice; loads no weights if it is a folder."""
        folder = Path(choice.source)
        if _is_run(folder):
            return SystemConfig.of(read_run_config(folder))
        return read_config(folder / "config.json") if folder.is_dir() else self.system(choice).config

    def system(self, choice: Choice, weights: Weights = "ema") -> System:
        """The fused system of a choice.

        Raises:
            UserError: it cannot be loaded.
        """
        if weights not in FILES:
            raise UserError(f"weights is {weights!r}; take {' or '.join(FILES)}")
        folder = Path(choice.source)
        with self._lock:
            step = _step(folder, choice) if _is_run(folder) else None
            key = (choice.source, step, weights)
            if key not in self._systems:
                while len(self._systems) >= KEPT:
                    self._systems.popitem(last=False)
                whole = load(choice.source, weights=weights) if step is None else _checkpoint(folder, step, weights)
                self._systems[key] = self._ready(whole)
            self._systems.move_to_end(key)
            return self._systems[key]

    def average(self, choice: Choice, length: float) -> System:
        """The fused system of a run with an EMA of another length, at a choice's step or at its last snapshot.

        Raises:
            UserError: no run, no snapshots in it, or a length out of range.
        """
        found = posthoc_ema(choice.source, length, choice.step)
        if not found.spanned:
            log.warning("the snapshots of %s hardly represent an EMA of length %g", choice.title, length)
        return self._ready(found.system)

    def _ready(self, whole: System) -> System:
        """A system to draw from; its language model is loaded when it is first asked, and stays."""
        system = whole.fused().to(self.device)
        if system.config.text is None:
            return system
        if self.text_model is not None:
            system = system.with_text_model(self.text_model)
        return replace(system, text_encoder=system.conditions_of)


def _step(folder: Path, choice: Choice) -> int:
    step = (
        choice.step if choice.step is not None else max(CheckpointStore(folder / "checkpoints").steps(), default=None)
    )
    if step is None:
        raise UserError(f"{choice.title}: the run has no checkpoint yet; wait for the first one")
    return step


def _checkpoint(folder: Path, step: int, weights: Weights) -> System:
    """The system of one checkpoint of a run."""
    try:
        checkpoint = CheckpointStore(folder / "checkpoints").at(step)
        tensors = checkpoint.tensors("ema" if weights == "ema" else "model")
    except (DamagedError, OSError) as error:
        raise UserError(f"checkpoint {step:,} of {folder} cannot be read ({error}); choose another one") from None
    config = SystemConfig.of(read_run_config(folder), max(step, 1))
    return System(config, network(config, tensors, checkpoint.path))


def _is_run(folder: Path) -> bool:
    return (folder / "run.yaml").is_file()


def _is_subject(folder: Path) -> bool:
    """Whether a folder is a run or a model folder; an exported graph is neither."""
    return _is_run(folder) or ((folder / "model.safetensors").is_file() and (folder / "config.json").is_file())


def _below(folder: Path, depth: int) -> list[Path]:
    """Runs and models below a folder; what lies within one is not listed."""
    found: list[Path] = []
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return found
    for entry in entries:
        if _is_subject(entry):
            found.append(entry)
        elif depth > 1:
            found += _below(entry, depth - 1)
    return found


def _changed(folder: Path) -> float:
    """When a run logged its last step, or a model was written; 0 if it has gone since."""
    for name in ("metrics.jsonl", "run.yaml", "config.json"):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0
