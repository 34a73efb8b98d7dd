"""Where the curves, alarms and sample grids of a training are shown: TensorBoard, Weights & Biases, Trackio."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from udit.errors import by_product, missing_extra
from udit.run.config import Run
from udit.training.folder import replace_text

ID = "tracking-id"
"""File of a run folder: the run's identity at Weights & Biases and Trackio, which know nothing of folders."""
TITLES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases", "trackio": "Trackio"}
PROJECT = "udit"
"""Of Weights & Biases and Trackio, where WANDB_PROJECT or TRACKIO_PROJECT names no other."""


class Tracker(Protocol):
    """A place that shows a training. A method may raise whatever its library does."""

    def write(self, step: int, scalars: dict[str, float], texts: Mapping[str, str]) -> None:
        """Adds the scalars of a step, and texts under "alarms/"."""

    def image(self, step: int, path: Path) -> None:
        """Adds a PNG, the grid of samples of a step."""

    def close(self) -> None:
        """Ends it."""


class Trackers:
    """The places of ``training.trackers``. What fails there is a warning; a place that fails is opened anew later."""

    def __init__(self, run: Run) -> None:
        """Opens nothing.

        Raises:
            UserError: the library of one that was asked for is not installed; TensorBoard's is told when it is opened.
        """
        for name in run.training.trackers:
            if name != "tensorboard" and not installed(name):
                raise missing_extra(f"training.trackers=[{name}]", name, "tracking")
        self.run = run
        self._open: dict[str, Tracker] = {}
        self._seen = 0

    def open(self, step: int, seen: int = 0) -> None:
        """Opens those that are not open.

        Args:
            step: the newest one that they keep; TensorBoard drops what its older files hold of later ones.
            seen: steps up to this one were written before an interruption, and are not sent elsewhere once more.
        """
        self._seen = max(self._seen, seen)
        for name in self.run.training.trackers:
            if name not in self._open:
                with by_product(f"{TITLES[name]}'s log of the steps after {step}"):
                    self._open[name] = _OPEN[name](self.run, step)

    def write(self, step: int, scalars: dict[str, float], texts: Mapping[str, str]) -> None:
        """Adds a step; see ``Tracker``."""
        self._each(step, "line", lambda tracker: tracker.write(step, scalars, texts))

    def image(self, step: int, path: Path) -> None:
        """Adds a grid of samples."""
        self._each(step, "grid", lambda tracker: tracker.image(step, path))

    def _each(self, step: int, what: str, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            if name != "tensorboard" and step <= self._seen:
                continue
            written = False
            with by_product(f"{TITLES[name]}'s {what} of step {step}"):
                tell(tracker)
                written = True
            if not written:  # a torn record of TensorBoard's hides all that follow in the same file
                self._close(name)

    def close(self) -> None:
        """Closes all of them."""
        for name in list(self._open):
            self._close(name)

    def _close(self, name: str) -> None:
        tracker = self._open.pop(name)
        with by_product(f"closing {TITLES[name]}'s log"):
            tracker.close()


class WandbLog:
    """A run of Weights & Biases; WANDB_MODE=offline writes it to RUN/wandb alone, for ``wandb sync``."""

    def __init__(self, run: Run) -> None:
        """Begins it, or goes on with it."""
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.out.name,
            id=identity(run.out),
            resume="allow",
            dir=str(run.out),
            config=run.plain(),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def write(self, step: int, scalars: dict[str, float], texts: Mapping[str, str]) -> None:
        """Adds a step; an alarm is also W&B's own alert."""
        self._run.log({**scalars, **{f"alarms/{kind}": text for kind, text in texts.items()}}, step=step)
        for kind, text in texts.items():
            self._run.alert(title=kind, text=text)

    def image(self, step: int, path: Path) -> None:
        """Adds a grid of samples."""
        self._run.log({"samples": self._image(str(path))}, step=step)

    def close(self) -> None:
        """Sends what is left, and ends it."""
        self._run.finish()


class TrackioLog:
    """A run of Trackio, on this machine (``trackio show``) or in the Space that TRACKIO_SPACE_ID names."""

    def __init__(self, run: Run) -> None:
        """Begins it, or goes on with it."""
        import trackio

        self._trackio = trackio
        with contextlib.redirect_stdout(sys.stderr):
            self._run: Any = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=f"{run.out.name}-{identity(run.out)}",
                config=run.plain(),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
            )

    def write(self, step: int, scalars: dict[str, float], texts: Mapping[str, str]) -> None:
        """Adds a step; an alarm is also Trackio's own alert."""
        self._run.log(dict(scalars), step=step)
        for kind, text in texts.items():
            self._run.alert(title=kind, text=text, step=step)

    def image(self, step: int, path: Path) -> None:
        """Adds a grid of samples."""
        self._run.log({"samples": self._trackio.Image(path)}, step=step)

    def close(self) -> None:
        """Ends it."""
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


def installed(name: str) -> bool:
    """Whether a module can be imported."""
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None  # W&B leaves folders called wandb, which can be imported too


def identity(out: Path) -> str:
    """Eight letters and digits that a run folder keeps, drawn when it is first tracked."""
    path = out / ID
    if not path.is_file():
        replace_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()


def _tensorboard(run: Run, step: int) -> Tracker:
    from udit.training.events import EventLog

    return EventLog(run.out / "tensorboard", step)


_OPEN: dict[str, Callable[[Run, int], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": lambda run, step: WandbLog(run),
    "trackio": lambda run, step: TrackioLog(run),
}
