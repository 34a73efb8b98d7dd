"""U-shaped diffusion transformers: train, sample, score, compare, export (U-DiT, arXiv 2405.02730, and its peers).

Names load on first use, so that ``import udit`` and the command line's help cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udit.assemble import System as System
    from udit.benchmarking.job import bench as bench
    from udit.comparison.job import compare as compare
    from udit.diagnosis.doctor import doctor as doctor
    from udit.diffusion.denoiser import Denoiser as Denoiser
    from udit.diffusion.guidance import Guided as Guided
    from udit.diffusion.sample import sample as sample
    from udit.exporting.folder import export as export
    from udit.generation import generate as generate
    from udit.interpolation import between as between
    from udit.models.build import build as build
    from udit.models.build import fuse as fuse
    from udit.models.catalog import list_models as list_models
    from udit.models.published import export_published as export_published
    from udit.models.published import import_published as import_published
    from udit.publishing.pull import pull as pull
    from udit.publishing.push import push as push
    from udit.run.config import Run as Run
    from udit.run.recipes import load_run as load_run
    from udit.scoring import evaluate as evaluate
    from udit.store import load as load
    from udit.store import save as save
    from udit.training.encoding import encode as encode
    from udit.training.fork import fork as fork
    from udit.training.posthoc import posthoc_ema as posthoc_ema
    from udit.training.trainer import Trainer as Trainer
    from udit.training.trainer import train as train
    from udit.tuning.rates import find_lr as find_lr
    from udit.tuning.search import tune as tune

__version__ = "0.1.0"

_HOME = {
    "Denoiser": "udit.diffusion.denoiser",
    "Guided": "udit.diffusion.guidance",
    "Run": "udit.run.config",
    "System": "udit.assemble",
    "Trainer": "udit.training.trainer",
    "bench": "udit.benchmarking.job",
    "between": "udit.interpolation",
    "build": "udit.models.build",
    "compare": "udit.comparison.job",
    "doctor": "udit.diagnosis.doctor",
    "encode": "udit.training.encoding",
    "evaluate": "udit.scoring",
    "export": "udit.exporting.folder",
    "export_published": "udit.models.published",
    "fork": "udit.training.fork",
    "fuse": "udit.models.build",
    "find_lr": "udit.tuning.rates",
    "generate": "udit.generation",
    "import_published": "udit.models.published",
    "list_models": "udit.models.catalog",
    "load": "udit.store",
    "load_run": "udit.run.recipes",
    "posthoc_ema": "udit.training.posthoc",
    "pull": "udit.publishing.pull",
    "push": "udit.publishing.push",
    "sample": "udit.diffusion.sample",
    "save": "udit.store",
    "train": "udit.training.trainer",
    "tune": "udit.tuning.search",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'udit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
