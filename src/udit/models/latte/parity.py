"""Latte as reference files describe it."""

from __future__ import annotations

from udit.models.latte.config import LatteConfig
from udit.models.parity import Described, Systems, Words, channel_axis, class_labels, isotropic, take
from udit.spec.base import parse


def latte(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``."""
    axis = channel_axis(words)
    values = {**isotropic(words), **class_labels(words), **take(words, "learn_sigma", "frames")}
    return Described(parse(LatteConfig, values, where="model"), channel_axis=axis)


SYSTEMS: Systems = {"latte": latte}
