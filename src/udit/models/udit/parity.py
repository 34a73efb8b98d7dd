"""U-DiT as reference files describe it."""

from __future__ import annotations

from udit.models.parity import Described, Systems, Words, class_labels, take
from udit.models.udit.config import UDiTConfig
from udit.spec.base import parse


def u_dit(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``; the words do not give the input's size."""
    words.pop("input_size", None)
    values = {
        **class_labels(words),
        **take(words, "width", "heads", "in_channels", "learn_sigma", "time"),
        "input_size": size,
        "depths": words.pop("depths_in_pairs"),
        "ffn": {"kind": "rep-conv", "ratio": words.pop("ffn_ratio")},
    }
    return Described(parse(UDiTConfig, values, where="model"))


SYSTEMS: Systems = {"u-dit": u_dit}
