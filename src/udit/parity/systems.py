"""Reference files describe a system in neutral words; here they become configs.

Each builder takes out the words it uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from udit.config.adm import ADMConfig
from udit.config.base import parse
from udit.config.dic import DiCConfig
from udit.config.dit import DiTConfig
from udit.config.model import ModelConfig
from udit.config.udit import UDiTConfig
from udit.errors import UserError

Builder = Callable[[dict[str, Any]], ModelConfig]


def _udit(words: dict[str, Any]) -> ModelConfig:
    values = {
        **_labels(words),
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


def _dic(words: dict[str, Any]) -> ModelConfig:
    same = ("width", "depths", "in_channels", "learn_sigma", "time")
    return parse(DiCConfig, {**_labels(words), **{word: words.pop(word) for word in same}}, where="model")


SYSTEMS: dict[str, Builder] = {"u-dit": _udit, "dit": _dit, "sit": _sit, "dic": _dic, "adm": _adm}
