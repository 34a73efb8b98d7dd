"""Reference files describe a system in neutral words; here they become configs. Each builder takes out the words it uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from udit.config.base import parse
from udit.config.model import ModelConfig
from udit.config.udit import UDiTConfig
from udit.errors import UserError

Builder = Callable[[dict[str, Any]], ModelConfig]


def _udit(words: dict[str, Any]) -> ModelConfig:
    classes, null = words.pop("classes"), words.pop("null_label")
    if null != (classes or None):
        raise UserError(f"U-DiT's null label follows its {classes} classes; the file says {null}")
    values = {
        "width": words.pop("width"),
        "heads": words.pop("heads"),
        "depths": words.pop("depths_in_pairs"),
        "ffn": {"kind": "rep-conv", "ratio": words.pop("ffn_ratio")},
        "num_classes": classes,
        "in_channels": words.pop("in_channels"),
        "learn_sigma": words.pop("learn_sigma"),
        "time": words.pop("time"),
    }
    return parse(UDiTConfig, values, where="model")


SYSTEMS: dict[str, Builder] = {"u-dit": _udit}
