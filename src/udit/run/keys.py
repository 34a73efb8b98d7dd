"""Dotted keys of a run, to tell which one a word on the command line may stand for."""

from __future__ import annotations

import functools
from typing import Any

from udit.diffusion.config import PROCESSES
from udit.errors import A_SLIP, resembling
from udit.models.catalog import families
from udit.run.config import Run
from udit.spec.words import specs_of


@functools.cache
def known_keys() -> tuple[str, ...]:
    """Every key that some run may have, e.g. ``training.lr``; those of training, sampling and data first."""
    sections: dict[str, Any] = {name: specs_of(Run.model_fields[name]) for name in ("training", "sampling", "data")}
    sections |= {"model": list(families().values()), "codec": specs_of(Run.model_fields["codec"])}
    sections |= {"diffusion": list(PROCESSES.values()), "evaluation": specs_of(Run.model_fields["evaluation"])}
    keys = [f"{section}.{key}" for section, specs in sections.items() for spec in specs for key in spec.model_fields]
    return tuple(dict.fromkeys([*Run.model_fields, *keys]))


def keys_like(word: str) -> list[str]:
    """The dotted keys that a word without a section may stand for: the last part is it, or resembles it."""
    word = word.replace("-", "_")
    if word in known_keys():
        return [word]
    last = {key: key.rpartition(".")[2] for key in known_keys()}
    exact = [key for key, name in last.items() if name == word]
    close = resembling(word, list(dict.fromkeys(last.values())), A_SLIP) if not exact else []
    return (exact or [key for key, name in last.items() if name in close])[:3]
