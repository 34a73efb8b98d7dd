"""What the families' ``parity.py`` share: from the description in a reference file to a config.

A reference file describes its network in neutral words ("width", "depth", "label_rows"), whatever its program calls
them. A builder removes the words that it uses; if any are left, ``udit parity`` refuses the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from udit.errors import UserError
from udit.models.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

Words = dict[str, Any]
Draw = Callable[..., "Tensor"]
"""(name, k, *shape) -> [B, *shape] float32, drawn from the file's seed + k. The file may hold ``grad_NAME``."""


def label_alone(y: Tensor | None, draw: Draw) -> Any:
    """The condition of most networks: the file's y, unchanged."""
    return y


def output_alone(model: nn.Module, x: Tensor, t: Tensor, y: Any) -> tuple[Tensor, ...]:
    """The outputs of most networks: one."""
    return (model(x, t, y),)


@dataclass(frozen=True)
class Described:
    """The network that a reference file describes."""

    config: ModelConfig
    condition: Callable[[Tensor | None, Draw], Any] = label_alone
    """(y of the file, a way to draw further inputs) -> the condition that the network takes. Where the config's
    ``condition_shape`` is that of vectors, y is drawn as the input ``context``, from the seed + 3."""
    outputs: Callable[[nn.Module, Tensor, Tensor, Any], tuple[Tensor, ...]] = output_alone
    """(network, x, t, condition) -> the file's ``out``, ``aux0``, ``aux1`` ..."""
    sequence: Callable[[nn.Module, Tensor, Tensor, Any, Tensor, Tensor], Tensor] | None = None
    """(network, tokens [B, N, P], t, condition, grid [B, 2, N], mask [B, N]) -> tokens [B, N, Q], the network's own; a
    file's ``seq_out`` is that times the mask."""
    channel_axis: int = 1
    """Of the file's x and out. The network's own is 1."""


Builder = Callable[[Words, tuple[int, int]], Described]
"""(words, (H, W) of the file's x, its last two axes) -> the network; removes the words it uses.

Raises:
    KeyError: a word is missing.
    UserError: a word says what the family cannot build.
"""
Systems = dict[str, Builder]
"""{the system's name in reference files: its builder}."""


def take(words: Words, *names: str) -> Words:
    """The named words, removed."""
    return {name: words.pop(name) for name in names}


def class_labels(words: Words) -> Words:
    """``num_classes`` where the words are ``classes`` and ``null_label``, and the null label follows the classes."""
    classes, null = words.pop("classes"), words.pop("null_label")
    if null != (classes or None):
        raise UserError(f"the null label follows the {classes} classes; the file says {null}")
    return {"num_classes": classes}


def label_rows(words: Words) -> Words:
    """``num_classes`` and ``null_class`` where the words are ``label_rows`` and ``null_label``."""
    rows, null = words.pop("label_rows"), words.pop("null_label")
    if null not in (None, rows - 1):
        raise UserError(
            f"a label table's null label, where it has one, is the last of its {rows} rows; the file says {null}"
        )
    return {"num_classes": rows - (null is not None), "null_class": null is not None}


def flow_direction(words: Words) -> Words:
    """``reversed_flow``, from the time at which x is pure noise (``noise_at``; null under DDPM)."""
    noise = words.pop("noise_at")
    if noise not in (None, 0, 1, 1000):
        raise UserError(f"x is pure noise at time 0, 1 or 1000 here; the file says {noise}")
    return {"reversed_flow": noise == 0}


def channel_axis(words: Words) -> int:
    """The axis of channels in the file's x and out, from their ``layout``, e.g. "b f c h w".

    Raises:
        UserError: it is no layout of clips.
    """
    layout = words.pop("layout")
    if layout not in ("b c f h w", "b f c h w"):
        raise UserError(f'a clip is laid out as "b c f h w" or "b f c h w"; the file says {layout!r}')
    return str(layout).split().index("c")


def isotropic(words: Words) -> Words:
    """The words of a transformer of one width over patches."""
    return take(words, "width", "depth", "heads", "patch", "input_size", "in_channels", "time")


def seed_offset(words: object) -> int | None:
    """The k of an input that is drawn as RandomState(seed + k).standard_normal(...), however the file puts it.

    None where there is no such input.

    Raises:
        UserError: there is one, and no such number is in its description.
    """
    if not words:
        return None
    text = json.dumps(words)
    offset = re.search(r"seed\D{0,12}?(\d+)", text)
    if offset is None:
        raise UserError(f"an input is drawn as {text}; this version knows RandomState(seed+k).standard_normal only")
    return int(offset[1])
