"""ADM as reference files describe it."""

from __future__ import annotations

from udit.errors import UserError
from udit.models.adm.config import ADMConfig
from udit.models.parity import Described, Systems, Words, take
from udit.spec.base import parse


def adm(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``."""
    pixels, classes, null = words.pop("image_size"), words.pop("classes") or 0, words.pop("null_label")
    if null not in (None, classes):
        raise UserError(f"ADM's null label, where it has one, follows the {classes} classes; the file says {null}")
    head_channels = words.pop("head_channels", None)
    heads, decoder_heads = words.pop("heads", None), words.pop("heads_upsample", None)
    same = ("in_channels", "width", "channel_mult", "res_blocks", "learn_sigma", "scale_shift_norm", "resblock_updown")
    values = {
        **take(words, *same, "qkv_order", "time"),
        "input_size": pixels,
        "num_classes": classes,
        "null_class": null is not None,
        "attention_factors": [pixels // side for side in words.pop("attention_at_pixels")],
        "head_channels": head_channels,
        "heads": heads if head_channels is None else None,
        "decoder_heads": decoder_heads if head_channels is None else None,
    }
    return Described(parse(ADMConfig, values, where="model"))


SYSTEMS: Systems = {"adm": adm}
