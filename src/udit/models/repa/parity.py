"""REPA as reference files describe it."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from udit.models.parity import Described, Systems, Words, class_labels, flow_direction, isotropic, take
from udit.models.repa.config import REPAConfig
from udit.models.repa.network import REPA
from udit.spec.base import parse


def outputs(model: nn.Module, x: Tensor, t: Tensor, y: Any) -> tuple[Tensor, ...]:
    """The velocity, then what each projector makes."""
    out, predicted = cast(REPA, model).aligned(x, t, y)
    return out, *predicted


def repa(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``."""
    values = {
        **isotropic(words),
        **class_labels(words),
        **flow_direction(words),
        **take(words, "learn_sigma", "projectors"),
    }
    return Described(parse(REPAConfig, values, where="model"), outputs=outputs)


SYSTEMS: Systems = {"repa": repa}
