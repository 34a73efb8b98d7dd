"""DiMSUM as reference files describe it."""

from __future__ import annotations

from udit.models.dimsum.config import DiMSUMConfig
from udit.models.parity import Described, Systems, Words, label_rows, take
from udit.spec.base import parse


def dimsum(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``."""
    same = ("width", "depth", "patch", "input_size", "in_channels", "attention_every", "learn_sigma", "time")
    return Described(parse(DiMSUMConfig, {**take(words, *same), **label_rows(words)}, where="model"))


SYSTEMS: Systems = {"dimsum": dimsum}
