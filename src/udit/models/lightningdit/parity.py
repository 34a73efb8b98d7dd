"""LightningDiT as reference files describe it."""

from __future__ import annotations

from udit.errors import UserError
from udit.models.lightningdit.config import LightningDiTConfig
from udit.models.parity import Described, Systems, Words, class_labels, flow_direction, isotropic, take
from udit.spec.base import parse

NORM = "rms, affine, eps 1e-6"


def lightning_dit(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``."""
    norm, qk_norm = words.pop("norm"), words.pop("qk_norm")
    for name, said in (("norm", norm), ("qk_norm", qk_norm or NORM)):
        if said != NORM:
            raise UserError(f"LightningDiT's {name} is {NORM!r} here; the file says {said!r}")
    values = {
        **isotropic(words),
        **class_labels(words),
        **flow_direction(words),
        **take(words, "learn_sigma", "ffn", "rope", "shift"),
        "qk_norm": qk_norm is not None,
    }
    return Described(parse(LightningDiTConfig, values, where="model"))


SYSTEMS: Systems = {"lightning-dit": lightning_dit}
