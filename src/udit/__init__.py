"""U-shaped diffusion transformers: train, sample, score, compare, export (U-DiT, arXiv 2405.02730, and its peers).

Names load on first use, so that ``import udit`` and the command line's help cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udit.config.catalog import list_models as list_models
    from udit.models.build import build as build
    from udit.models.build import fuse as fuse
    from udit.published import export_published as export_published
    from udit.published import import_published as import_published

__version__ = version("udit")

_HOME = {
    "build": "udit.models.build",
    "fuse": "udit.models.build",
    "list_models": "udit.config.catalog",
    "import_published": "udit.published",
    "export_published": "udit.published",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'udit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
