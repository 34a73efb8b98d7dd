"""DiCo as reference files describe it."""

from __future__ import annotations

from udit.models.dico.config import DiCoConfig
from udit.models.parity import Described, Systems, Words, class_labels, take
from udit.spec.base import parse


def dico(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``; the words do not give the input's size."""
    words.pop("input_size", None)
    values = {
        **class_labels(words),
        **take(words, "width", "depths", "in_channels", "learn_sigma", "time"),
        "input_size": size,
        "ffn": {"ratio": words.pop("ffn_ratio"), "gelu": "exact"},
    }
    return Described(parse(DiCoConfig, values, where="model"))


SYSTEMS: Systems = {"dico": dico}
