"""MPDiT as reference files describe it."""

from __future__ import annotations

from udit.errors import UserError
from udit.models.mpdit.config import MPDiTConfig
from udit.models.parity import Described, Systems, Words, class_labels, flow_direction, take
from udit.spec.base import parse


def mpdit(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``."""
    patches, skips = words.pop("patches"), words.pop("skips")
    if not skips:
        raise UserError("MPDiT is built with the skips of patches only; the file's has none")
    values = {
        **class_labels(words),
        **flow_direction(words),
        **take(words, "width", "heads", "depths", "label_tokens", "time_embedding", "input_size", "in_channels"),
        **take(words, "learn_sigma", "time"),
        "patch": patches[-1],
    }
    config = parse(MPDiTConfig, values, where="model")
    if list(config.patches) != list(patches):
        raise UserError(f"every level of MPDiT halves the patches' side; the file says {patches}")
    return Described(config)


SYSTEMS: Systems = {"mpdit": mpdit}
