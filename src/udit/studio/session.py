"""What the page does, without the page: each method takes plain values and yields what is to be shown."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from udit.assemble import System
from udit.errors import RunError, UserError, one_line, ran_out_of_memory
from udit.generation import own_settings, settings
from udit.images import grid, save_png
from udit.run.system import SystemConfig
from udit.store import Weights
from udit.studio.command import command_of
from udit.studio.drawing import Drawing, Frame, View, draw, drawing, presets, sampling_of
from udit.studio.place import Choice, Place, Shelf
from udit.studio.sheet import figures, problem, status, write_zip
from udit.studio.watch import Watch

log = logging.getLogger(__name__)
KEPT_SECONDS = 3600
"""How long a saved file can be fetched."""
KEPT_FILES = 60
"""How many of them are kept at most."""


@dataclass(frozen=True)
class Shown:
    """What the page shows of a drawing."""

    sheet: str | None
    """HTML; None leaves what is there."""
    status: str
    """HTML."""
    grid: Path | None = None
    """The PNG, once it is finished."""
    archive: Path | None = None
    """A zip of all images, once it is finished."""
    command: str = ""
    """The command that draws the same images, once it is finished."""


@dataclass(frozen=True)
class Wanted:
    """The values of the page's fields."""

    model: str
    """Key of a choice."""
    seeds: str = "0-3"
    classes: Sequence[str | int] = ()
    weights: Weights = "ema"
    preset: str = "own"
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of ``SamplingConfig`` in place of the preset's."""
    view: View = "x0"


class Studio:
    """All that the pages of one server share: the place, loaded models, watched runs and saved files."""

    def __init__(self, place: Place, device: str = "auto") -> None:
        self.place = place
        self.shelf = Shelf(device)
        self.folder = Path(tempfile.mkdtemp(prefix="udit-studio-"))
        """Of this server alone: what is saved and uploaded, removed when it ends."""
        self._watches: dict[Path, Watch] = {}
        self._lock = Lock()

    def close(self) -> None:
        """Removes the saved files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def watch(self, title: object) -> Watch:
        """A run of the place.

        Raises:
            UserError: it is gone.
        """
        folder = self.place.run(title)
        with self._lock:
            return self._watches.setdefault(folder, Watch(folder))

    def presets(self, choice: Choice) -> dict[str, Any]:
        """Sampling settings of a model by name."""
        folder = Path(choice.source)
        return presets(self.shelf.config(choice), folder if folder.is_dir() else None)

    def draw(self, wanted: Wanted) -> Iterator[Shown]:
        """Draws, and shows every step."""
        return told(self._draw(wanted))

    def _draw(self, wanted: Wanted) -> Iterator[Shown]:
        choice = self.place.choice(wanted.model)
        request = self.request(choice, wanted)
        yield Shown(None, status(f"Loading {choice.title} …", 0.0))
        system = self.shelf.system(choice, wanted.weights)
        captions = captions_of(system.config, request)
        frame = None
        for frame in draw(system, request, wanted.view):
            sheet = figures(frame.images, captions, request.columns, len(captions) - len(frame.images))
            yield Shown(sheet, status(progress_text(frame), frame.done / frame.total))
        assert frame is not None
        saved = self.save(choice, system, request, frame)
        command = command_of(choice, wanted.weights, system.config.sampling, request)
        done = f"{len(captions)} images in {frame.seconds:.1f} s"
        yield Shown(None, status(done), *saved, command)

    def request(self, choice: Choice, wanted: Wanted) -> Drawing:
        """A drawing of the page's values.

        Raises:
            UserError: they do not fit the model.
        """
        config = self.shelf.config(choice)
        if config.model.condition_shape:
            raise UserError(f"{choice.title} takes vectors, e.g. of a text; sample with `udit sample --context FILE`")
        base = self.presets(choice).get(wanted.preset)
        if base is None:
            raise UserError(f"setting is {wanted.preset!r}; take own, draft, good or best")
        return drawing(config, wanted.seeds, wanted.classes, sampling_of(config, base, wanted.changes))

    def save(self, choice: Choice, system: System, request: Drawing, frame: Frame) -> tuple[Path, Path]:
        """Writes the grid, and a zip of all images, both with their settings."""
        common = settings(system, request.sampling)
        labels = request.labels
        each = [
            common | own_settings(system, seed, None if labels is None else labels[i])
            for i, seed in enumerate(request.seeds)
        ]
        named = system.config.classes
        titles = [named.title(label) for label in labels or ()]
        images = torch.stack(frame.images)
        sheet = grid(images, titles, request.columns or None, numbers=labels or ())
        whole = common | {"seeds": list(request.seeds), "labels": None if labels is None else list(labels)}
        folder = self.room()
        path, archive = folder / f"{choice.file_name}.png", folder / f"{choice.file_name}.zip"
        save_png(sheet, path, whole)
        write_zip(archive, frame.images, each, sheet, whole)
        return path, archive

    def room(self) -> Path:
        """A new folder for files to fetch; old ones are removed."""
        with self._lock:
            folders = sorted(self.folder.glob("saved-*"), key=lambda folder: folder.stat().st_mtime)
            for folder in folders:
                old = time.time() - folder.stat().st_mtime > KEPT_SECONDS
                if old or len(folders) - folders.index(folder) >= KEPT_FILES:
                    shutil.rmtree(folder, ignore_errors=True)
            made = self.folder / f"saved-{uuid.uuid4().hex}"
            made.mkdir()
        return made


def told(shown: Iterator[Shown]) -> Iterator[Shown]:
    """The same, ended by one line where an error ends it; one that is not the user's is in the log as well."""
    try:
        yield from shown
    except (UserError, RunError) as error:
        yield Shown(None, problem(str(error)))
    except Exception as error:  # the page goes on
        if ran_out_of_memory(error):
            yield Shown(None, problem(f"out of memory ({one_line(error)}); draw fewer images"))
            return
        log.exception("a drawing failed")
        yield Shown(None, problem(f"it failed ({type(error).__name__}: {one_line(error)}); the terminal has more"))


def progress_text(frame: Frame) -> str:
    """Where a drawing is."""
    each = frame.seconds / frame.done
    left = each * (frame.total - frame.done)
    rest = f", about {left:.0f} s to go" if left >= 2 else ""
    return f"Step {frame.done} of {frame.total}, {1000 * each:.0f} ms each{rest}"


def captions_of(config: SystemConfig, request: Drawing) -> list[str]:
    """Class and seed of each image."""
    if request.labels is None:
        return [f"seed {seed}" for seed in request.seeds]
    named = config.classes
    return [f"{named.title(label)} · seed {seed}" for seed, label in zip(request.seeds, request.labels, strict=True)]
