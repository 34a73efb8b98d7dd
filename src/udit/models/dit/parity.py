"""DiT and SiT as reference files describe them."""

from __future__ import annotations

from udit.models.dit.config import DiTConfig
from udit.models.parity import Described, Systems, Words, class_labels, isotropic, take
from udit.spec.base import parse


def dit(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``."""
    values = {**isotropic(words), **class_labels(words), **take(words, "learn_sigma")}
    return Described(parse(DiTConfig, values, where="model"))


def sit(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``; a file's ``learn_sigma`` is the head's spare half."""
    words.pop("returns", None)  # says in prose what spare_outputs does
    values = {
        **isotropic(words),
        **class_labels(words),
        "learn_sigma": False,
        "spare_outputs": words.pop("learn_sigma"),
        "reversed_flow": True,
    }
    return Described(parse(DiTConfig, values, where="model"))


SYSTEMS: Systems = {"dit": dit, "sit": sit}
