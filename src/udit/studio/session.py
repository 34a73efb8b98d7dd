"""What the page does, without the page: each method takes plain values and yields what is to be shown."""

from __future__ import annotations

import dataclasses
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

from udit.assemble import STRENGTH, System
from udit.diffusion.config import SamplingConfig
from udit.errors import RunError, UserError, one_line, ran_out_of_memory
from udit.generation import Generation
from udit.images import PROMPT_SIDE, grid, save_png
from udit.inputs import StartImages, start_images
from udit.interpolation import Between
from udit.run.system import SystemConfig
from udit.store import Weights
from udit.studio.command import command_of
from udit.studio.drawing import Drawing, Frame, View, draw, drawing, passage, presets, sampling_of
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
    image: object = None
    """An uploaded one to start from, as the page sends it."""
    strength: float = STRENGTH
    prompts: str = ""
    """Of a model that takes texts, one a line."""
    negative: str = ""
    weaker: str = ""
    """Key of a choice that guidance compares with (autoguidance); empty for none."""
    average: float | None = None
    """Length of a shorter EMA of the run that guidance compares with."""


class Studio:
    """All that the pages of one server share: the place, loaded models, watched runs and saved files."""

    def __init__(self, place: Place, device: str = "auto", text_model: str | None = None) -> None:
        self.place = place
        self.shelf = Shelf(device, text_model)
        self._temporary = tempfile.TemporaryDirectory(prefix="udit-studio-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        """Of this server alone: what is saved and uploaded, removed when it ends."""
        self._watches: dict[Path, Watch] = {}
        self._lock = Lock()

    def close(self) -> None:
        """Removes the saved files."""
        self._temporary.cleanup()

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
        system = self.system(choice, wanted, request)
        if wanted.image is not None:
            request = dataclasses.replace(request, start=self.start(wanted.image, system), strength=wanted.strength)
        yield from self._steps(choice, wanted, request, system)

    def pass_between(self, wanted: Wanted, count: object) -> Iterator[Shown]:
        """Draws images between seeds and classes, and shows every step."""
        return told(self._pass_between(wanted, count))

    def _pass_between(self, wanted: Wanted, count: object) -> Iterator[Shown]:
        choice = self.place.choice(wanted.model)
        sampling = self.sampling(choice, wanted)
        config = self.shelf.config(choice)
        said = (wanted.prompts, wanted.negative)
        request = passage(config, wanted.seeds, wanted.classes, whole("images", count), sampling, *said)
        yield Shown(None, status(f"Loading {choice.title} …", 0.0))
        yield from self._steps(choice, wanted, request, self.system(choice, wanted, request))

    def _steps(self, choice: Choice, wanted: Wanted, request: Drawing, system: System) -> Iterator[Shown]:
        captions, request = captions_of(system.config, request), request.read_by(system)
        frame = None
        for frame in draw(system, request, wanted.view):
            sheet = figures(frame.images, captions, request.columns)
            yield Shown(sheet, status(progress_text(frame), frame.done / frame.total))
        assert frame is not None
        saved = self.save(choice, request.generation(system), request.columns, frame)
        weaker = wanted.average if wanted.average is not None else wanted.weaker and self.place.choice(wanted.weaker)
        command = command_of(choice, wanted.weights, system.config.sampling, request, weaker or None)
        yield Shown(None, status(f"{len(captions)} images in {frame.seconds:.1f} s"), *saved, command)

    def request(self, choice: Choice, wanted: Wanted) -> Drawing:
        """A drawing of the page's values.

        Raises:
            UserError: they do not fit the model.
        """
        values = (wanted.seeds, wanted.classes, self.sampling(choice, wanted), wanted.prompts, wanted.negative)
        return drawing(self.shelf.config(choice), *values)

    def system(self, choice: Choice, wanted: Wanted, request: Drawing) -> System:
        """The model that the page's values ask for, with the weaker one that guidance compares with.

        Raises:
            UserError: it cannot be loaded, or the weaker one is of no use to it.
        """
        system = self.shelf.system(choice, wanted.weights)
        if not wanted.weaker and wanted.average is None:
            return system
        if request.sampling.guidance == 1:
            raise UserError("a weaker model is chosen and guidance 1 compares with nothing; raise guidance, e.g. to 2")
        if wanted.average is None:
            return system.autoguided(self.shelf.system(self.place.choice(wanted.weaker)))
        if isinstance(wanted.average, bool) or not isinstance(wanted.average, int | float):
            raise UserError(f"the shorter EMA is {wanted.average!r}; it takes a length, e.g. 0.05")
        if wanted.weaker:
            raise UserError("a weaker model and a shorter EMA are chosen; guidance compares with one of them")
        return system.autoguided(self.shelf.average(choice, wanted.average))

    def sampling(self, choice: Choice, wanted: Wanted) -> SamplingConfig:
        """The setting that the page's values ask for.

        Raises:
            UserError: it does not fit the model.
        """
        config, base = self.shelf.config(choice), self.presets(choice).get(wanted.preset)
        config.model.refuse_clips("the studio")
        if config.model.condition_shape and config.text is None:
            raise UserError(f"{choice.title} takes vectors, e.g. of a text; sample with `udit sample --context FILE`")
        if base is None:
            raise UserError(f"setting is {wanted.preset!r}; take own, draft, good or best")
        return sampling_of(config, base, wanted.changes)

    def start(self, image: object, system: System) -> StartImages:
        """An uploaded image, cropped and scaled to what the model draws.

        Args:
            image: what the page sends: the path of a file in this server's folder.
            system: the model.

        Raises:
            UserError: there is no such file, or no image in it.
        """
        name = image.get("path") if isinstance(image, dict) else None
        path = Path(str(name)).resolve()
        if not path.is_relative_to(self.folder.resolve()) or not path.is_file():
            raise UserError("the image is no longer there; choose it again")
        try:
            return start_images(path, system)
        except UserError as error:  # the folder is ours and tells nobody anything
            raise UserError(str(error).replace(str(path), path.name)) from None

    def save(self, choice: Choice, drawn: Generation, columns: int, frame: Frame) -> tuple[Path, Path]:
        """Writes the grid, and a zip of all images, both with their settings."""
        common = drawn.settings()
        each = [common | drawn.settings_of(i) for i in range(len(drawn))]
        titles, numbers = drawn.titles(len(drawn))
        side = {} if drawn.context is None else {"side": PROMPT_SIDE}
        sheet = grid(torch.stack(frame.images), titles, columns or None, numbers=numbers, **side)
        all_of = common | {key: [own.get(key) for own in each] for key in each[0] if key not in common}
        folder = self.room()
        path, archive = folder / f"{choice.file_name}.png", folder / f"{choice.file_name}.zip"
        save_png(sheet, path, all_of)
        write_zip(archive, frame.images, each, sheet, all_of)
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


def whole(name: str, value: object) -> int:
    """A whole number that a field holds.

    Raises:
        UserError: it holds none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise UserError(f"{name} is {value!r}; it takes a whole number")
    return int(value)


def progress_text(frame: Frame) -> str:
    """Where a drawing is."""
    each = frame.seconds / frame.done
    left = each * (frame.total - frame.done)
    rest = f", about {left:.0f} s to go" if left >= 2 else ""
    return f"Step {frame.done} of {frame.total}, {1000 * each:.0f} ms each{rest}"


def captions_of(config: SystemConfig, request: Drawing) -> list[str]:
    """Class or prompt, and seed of each image; of an image between two, how far it is from the first to the second."""
    labels = request.labels or request.prompts or [None] * len(request.seeds)
    captions = []
    for seed, label in zip(request.seeds, labels, strict=True):
        share = next((point.share for point in (seed, label) if isinstance(point, Between)), None)
        name = label if label is None or isinstance(label, str) else config.classes.title(label)
        named = "" if name is None else f"{name} · "
        captions.append(f"{named}seed {seed}" if share is None else f"{share:.0%}")
    return captions
