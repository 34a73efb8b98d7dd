"""Trained models that claims are measured on: those of the library, and small ones that are trained here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from udit import dist
from udit.assemble import System
from udit.run.config import Run
from udit.run.recipes import load_run
from udit.store import load
from udit.training.trainer import train

RUNS = Path("runs/claims")
"""Where they are trained; a finished run is used again."""


@dataclass(frozen=True)
class Trained:
    """A model, and the recipe of its data."""

    name: str
    """As tables call it."""
    recipe: str
    overrides: tuple[str, ...] | None = None
    """Of the recipe, to train it with; None for the model that comes with the library."""

    @property
    def folder(self) -> Path:
        """Of its run."""
        return RUNS / "-".join([self.recipe, *self.name.split(",")[0].replace("/", "-").split()])

    def run(self) -> Run:
        """The run, with the recipe's data."""
        overrides = () if self.overrides is None else (*self.overrides, f"out={self.folder}")
        return load_run(self.recipe, overrides)

    def system(self, tell: Callable[[str], object]) -> System:
        """The model, fused; trained first where that has not been done."""
        if self.overrides is None:
            return load(f"demo:{self.recipe}").fused()
        run = self.run()
        if not (self.folder / "model").is_dir():
            tell(f"training {self.name} on {self.recipe} in {self.folder} (minutes)")
            dist.keep_freed_memory()
            train(run, progress=False)
        return load(self.folder).fused()


U_DIT = Trained("U-DiT", "digits")
FASHION = Trained("U-DiT", "fashion-mnist")
DIT = Trained("DiT", "digits", ("model=DiT-tiny",))
SKIP_DIT = Trained("Skip-DiT", "digits", ("model=Skip-DiT-tiny",))
FINE_DIT = Trained("DiT/1", "digits", ("model=DiT-tiny", "model.patch=1", "model.width=32"))
"""One token for each pixel, as U-DiT has, at about U-DiT's MACs."""
