"""Skip-DiT as reference files describe it."""

from __future__ import annotations

from udit.models.parity import Described, Systems, Words, class_labels, isotropic, take
from udit.models.skipdit.config import SkipDiTConfig
from udit.spec.base import parse


def skip_dit(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``."""
    values = {**isotropic(words), **class_labels(words), **take(words, "learn_sigma")}
    return Described(parse(SkipDiTConfig, values, where="model"))


SYSTEMS: Systems = {"skip-dit": skip_dit}
