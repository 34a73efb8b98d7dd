"""U-shaped diffusion transformers: train, sample, score, compare, export (U-DiT, arXiv 2405.02730, and its peers).

Names load on first use, so that ``import udit`` and the command line's help cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udit.assemble import System as System
    from udit.diffusion.denoise import Denoiser as Denoiser
    from udit.diffusion.guidance import Guided as Guided
    from udit.diffusion.sample import sample as sample
    from udit.models.build import build as build
    from udit.models.build import fuse as fuse
    from udit.models.catalog import list_models as list_models
    from udit.models.published import export_published as export_published
    from udit.models.published import import_published as import_published
    from udit.run.config import Run as Run
    from udit.store import load as load
    from udit.store import save as save
    from udit.training.trainer import Trainer as Trainer

__version__ = "0.1.0"

_HOME = {
    "Denoiser": "udit.diffusion.denoise",
    "Guided": "udit.diffusion.guidance",
    "Run": "udit.run.config",
    "System": "udit.assemble",
    "Trainer": "udit.training.trainer",
    "build": "udit.models.build",
    "export_published": "udit.models.published",
    "fuse": "udit.models.build",
    "import_published": "udit.models.published",
    "list_models": "udit.models.catalog",
    "load": "udit.store",
    "sample": "udit.diffusion.sample",
    "save": "udit.store",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'udit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
