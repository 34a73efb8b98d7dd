"""The catalogue: one row a published size. Tests, documentation and the command line read their choices from it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from udit.config.base import Spec
from udit.config.model import ModelConfig
from udit.config.parts import Downsampled, Mlp
from udit.config.udit import UDiTConfig
from udit.errors import UserError, nearest


class Entry(Spec):
    """One row: a config under the name users know, with its papers' facts."""

    config: ModelConfig = Field(repr=False)
    paper: str
    """arXiv identifier."""
    weights: str
    """Where weights are published and under which licence; a dash where none are."""


_UDIT_WEIGHTS = "yuchuantian/U-DiT (licence per repository; code CC BY-NC 4.0)"


def _udit(width: int, heads: int, **overrides: Any) -> Entry:
    config = UDiTConfig(width=width, heads=heads, **overrides)
    return Entry(config=config, paper="2405.02730", weights="-" if overrides else _UDIT_WEIGHTS)


_VANILLA: dict[str, Any] = {"attention": Downsampled(cosine=False, rope=False), "ffn": Mlp(ratio=2)}

CATALOG: dict[str, Entry] = {
    "U-DiT-S": _udit(96, 4),
    "U-DiT-B": _udit(192, 8),
    "U-DiT-L": _udit(384, 16),
    "U-DiT-S-vanilla": _udit(96, 4, **_VANILLA),
    "U-DiT-B-vanilla": _udit(192, 8, **_VANILLA),
    "U-DiT-L-vanilla": _udit(384, 16, **_VANILLA),
}

FAMILIES: dict[str, type[ModelConfig]] = {"U-DiT": UDiTConfig}


def list_models() -> list[str]:
    """The names ``udit.build`` knows."""
    return list(CATALOG)


def find(name: str) -> Entry:
    """The catalogue's row of ``name``.

    Raises:
        UserError: no such name; the nearest one is told.
    """
    if name not in CATALOG:
        raise UserError(f"no model {name!r}{nearest(name, CATALOG)} (`udit models` lists all)")
    return CATALOG[name]
