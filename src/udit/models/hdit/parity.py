"""HDiT as reference files describe it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from udit.errors import UserError, nearest
from udit.models.hdit.config import HDiTConfig
from udit.models.hdit.network import Conditioner
from udit.models.parity import Described, Draw, Systems, Words, seed_offset, take
from udit.nn.hourglass import Labels
from udit.spec.base import parse


def hdit(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``; the words do not give the input's size, and may name two further inputs."""
    words.pop("input_size", None)
    augmentation, vector = (seed_offset(words.pop(word, None)) for word in ("aug_cond", "mapping_cond"))
    patch, rows = words.pop("patch"), words.pop("label_rows") or 0
    if len(set(patch)) != 1:
        raise UserError(f"HDiT's patches are square here; the file has {patch}")
    if words.pop("null_label") != (rows - 1 if rows else None):
        raise UserError(f"HDiT's null label is the last of its {rows} rows; the file says otherwise")
    mapping = words.pop("mapping")
    values = {
        **take(words, "in_channels", "learn_sigma", "time"),
        "input_size": size,
        "patch": patch[0],
        "num_classes": rows - 1 if rows else 0,
        "stages": [_level(dict(level)) for level in words.pop("levels")],
        "vector_cond": mapping.pop("cond_dim"),
        "mapping": {"ratio": mapping.pop("d_ff") / mapping["width"], **mapping},
    }
    config = parse(HDiTConfig, values, where="model")

    def condition(y: Tensor | None, draw: Draw) -> Tensor | Labels | None:
        if augmentation is None and vector is None:
            return y
        return Labels(
            y,
            None if augmentation is None else draw("aug_cond", augmentation, Conditioner.AUGMENTATIONS),
            None if vector is None else draw("mapping_cond", vector, config.vector_cond),
        )

    return Described(config, condition)


def _level(words: Words) -> dict[str, Any]:
    kinds = {"global": "global", "shifted-window": "window"}
    if (kind := words.pop("type")) not in kinds:
        raise UserError(f"HDiT attention of type {kind!r} is not built here{nearest(kind, kinds)}")
    attention = {"kind": kinds[kind]}
    if kind == "shifted-window":
        attention["size"] = words.pop("window_size", None) or words.pop("window")
    ratio, head_channels = words.pop("d_ff") / words["width"], words.pop("d_head")
    return {"ratio": ratio, "head_channels": head_channels, "attention": attention, **words}


SYSTEMS: Systems = {"hdit": hdit}
