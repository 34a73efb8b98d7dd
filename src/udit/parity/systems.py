"""Reference files describe a system in neutral words; here they become configs.

Each builder takes out the words it uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from udit.errors import UserError, nearest
from udit.models.adm.config import ADMConfig
from udit.models.config import ModelConfig
from udit.models.dic.config import DiCConfig
from udit.models.dimsum.config import DiMSUMConfig
from udit.models.dit.config import DiTConfig
from udit.models.hdit.config import HDiTConfig
from udit.models.skipdit.config import SkipDiTConfig
from udit.models.udit.config import UDiTConfig
from udit.models.uvit.config import UViTConfig
from udit.spec.base import parse

Builder = Callable[[dict[str, Any]], ModelConfig]


SIZELESS = ("u-dit", "dic", "hdit")
"""Systems whose words do not say the size of the input; their builders are given that of x."""
EXTRA_INPUTS = ("aug_cond", "mapping_cond")
"""Words that say how a further input is drawn."""


def seed_offset(words: object) -> int:
    """The k of an input that is drawn as RandomState(seed + k).standard_normal(...), however that is put.

    Raises:
        UserError: no such number is in it.
    """
    text = json.dumps(words)
    offset = re.search(r"seed\D{0,12}?(\d+)", text)
    if offset is None:
        raise UserError(f"an input is drawn as {text}; this version knows RandomState(seed+k).standard_normal only")
    return int(offset[1])


def _udit(words: dict[str, Any]) -> ModelConfig:
    values = {
        **_labels(words),
        "input_size": words.pop("input_size"),
        "width": words.pop("width"),
        "heads": words.pop("heads"),
        "depths": words.pop("depths_in_pairs"),
        "ffn": {"kind": "rep-conv", "ratio": words.pop("ffn_ratio")},
        "in_channels": words.pop("in_channels"),
        "learn_sigma": words.pop("learn_sigma"),
        "time": words.pop("time"),
    }
    return parse(UDiTConfig, values, where="model")


def _labels(words: dict[str, Any]) -> dict[str, Any]:
    """``num_classes`` of a file with a null label behind the classes."""
    classes, null = words.pop("classes"), words.pop("null_label")
    if null != (classes or None):
        raise UserError(f"the null label follows the {classes} classes; the file says {null}")
    return {"num_classes": classes}


def _isotropic(words: dict[str, Any]) -> dict[str, Any]:
    same = ("width", "depth", "heads", "patch", "input_size", "in_channels", "time")
    return {word: words.pop(word) for word in same}


def _dit(words: dict[str, Any]) -> ModelConfig:
    values = {**_isotropic(words), **_labels(words), "learn_sigma": words.pop("learn_sigma")}
    return parse(DiTConfig, values, where="model")


def _skip_dit(words: dict[str, Any]) -> ModelConfig:
    values = {**_isotropic(words), **_labels(words), "learn_sigma": words.pop("learn_sigma")}
    return parse(SkipDiTConfig, values, where="model")


def _sit(words: dict[str, Any]) -> ModelConfig:
    words.pop("returns", None)  # says in prose what spare_outputs does
    values = {
        **_isotropic(words),
        **_labels(words),
        "learn_sigma": False,
        "spare_outputs": words.pop("learn_sigma"),
        "reversed_flow": True,
    }
    return parse(DiTConfig, values, where="model")


def _u_vit(words: dict[str, Any]) -> ModelConfig:
    rows, null = words.pop("label_rows"), words.pop("null_label")
    if null not in (None, rows - 1):
        raise UserError(f"U-ViT's null label, where it has one, is the last of its {rows} rows; the file says {null}")
    values = {
        **_isotropic(words),
        "num_classes": rows - (null is not None),
        "null_class": null is not None,
        "final_conv": words.pop("final_conv"),
        "learn_sigma": words.pop("learn_sigma"),
        "context": _context(words),
    }
    return parse(UViTConfig, values, where="model")


def _context(words: dict[str, Any]) -> dict[str, int] | None:
    """Count and width of a text's vectors, from whatever words of the file speak of one."""
    said = {word: words.pop(word) for word in list(words) if re.search("context|text|clip", word)}
    if not any(said.values()):
        return None
    text = json.dumps(said)
    shape = re.search(r"(\d+), *(\d+) *[\])]", text)
    tokens, width = re.search(r"tokens?\W+(\d+)", text), re.search(r"(?:dim|width|channels)\W+(\d+)", text)
    if tokens and width:
        return {"tokens": int(tokens[1]), "width": int(width[1])}
    if shape is None:
        raise UserError(f"the file takes a text as {text}; say how many vectors of which width it is")
    return {"tokens": int(shape[1]), "width": int(shape[2])}


def _adm(words: dict[str, Any]) -> ModelConfig:
    size, classes, null = words.pop("image_size"), words.pop("classes") or 0, words.pop("null_label")
    if null not in (None, classes):
        raise UserError(f"ADM's null label, where it has one, follows the {classes} classes; the file says {null}")
    head_channels = words.pop("head_channels", None)
    heads, decoder_heads = words.pop("heads", None), words.pop("heads_upsample", None)
    same = ("in_channels", "width", "channel_mult", "res_blocks", "learn_sigma", "scale_shift_norm", "resblock_updown")
    values = {
        **{word: words.pop(word) for word in (*same, "qkv_order", "time")},
        "input_size": size,
        "num_classes": classes,
        "null_class": null is not None,
        "attention_factors": [size // pixels for pixels in words.pop("attention_at_pixels")],
        "head_channels": head_channels,
        "heads": heads if head_channels is None else None,
        "decoder_heads": decoder_heads if head_channels is None else None,
    }
    return parse(ADMConfig, values, where="model")


def _hdit(words: dict[str, Any]) -> ModelConfig:
    patch, rows = words.pop("patch"), words.pop("label_rows") or 0
    if len(set(patch)) != 1:
        raise UserError(f"HDiT's patches are square here; the file has {patch}")
    if words.pop("null_label") != (rows - 1 if rows else None):
        raise UserError(f"HDiT's null label is the last of its {rows} rows; the file says another")
    mapping = words.pop("mapping")
    values = {
        **{word: words.pop(word) for word in ("in_channels", "input_size", "learn_sigma", "time")},
        "patch": patch[0],
        "num_classes": rows - 1 if rows else 0,
        "stages": [_hdit_level(dict(level)) for level in words.pop("levels")],
        "vector_cond": mapping.pop("cond_dim"),
        "mapping": {"ratio": mapping.pop("d_ff") / mapping["width"], **mapping},
    }
    return parse(HDiTConfig, values, where="model")


def _hdit_level(words: dict[str, Any]) -> dict[str, Any]:
    kinds = {"global": "global", "shifted-window": "window"}
    if (kind := words.pop("type")) not in kinds:
        raise UserError(f"HDiT attention of type {kind!r} is not built here{nearest(kind, kinds)}")
    attention = {"kind": kinds[kind]}
    if kind == "shifted-window":
        attention["size"] = words.pop("window_size", None) or words.pop("window")
    ratio, head_channels = words.pop("d_ff") / words["width"], words.pop("d_head")
    return {"ratio": ratio, "head_channels": head_channels, "attention": attention, **words}


def _dic(words: dict[str, Any]) -> ModelConfig:
    same = ("width", "depths", "in_channels", "input_size", "learn_sigma", "time")
    return parse(DiCConfig, {**_labels(words), **{word: words.pop(word) for word in same}}, where="model")


def _dimsum(words: dict[str, Any]) -> ModelConfig:
    rows, null = words.pop("label_rows"), words.pop("null_label")
    if null not in (None, rows - 1):
        raise UserError(f"DiMSUM's null label, where it has one, is the last of its {rows} rows; the file says {null}")
    same = ("width", "depth", "patch", "input_size", "in_channels", "attention_every", "learn_sigma", "time")
    values = {
        **{word: words.pop(word) for word in same},
        "num_classes": rows - (null is not None),
        "null_class": null is not None,
    }
    return parse(DiMSUMConfig, values, where="model")


SYSTEMS: dict[str, Builder] = {
    "u-dit": _udit,
    "dit": _dit,
    "sit": _sit,
    "skip-dit": _skip_dit,
    "u-vit": _u_vit,
    "dic": _dic,
    "adm": _adm,
    "hdit": _hdit,
    "dimsum": _dimsum,
}
