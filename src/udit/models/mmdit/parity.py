"""MMDiT as reference files describe it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from udit.errors import UserError
from udit.models.mmdit.config import MMDiTConfig
from udit.models.parity import Described, Draw, Systems, Words, class_labels, flow_direction, take
from udit.spec.base import parse

NORM = "rms, affine, eps 1e-6"


def mmdit(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``."""
    positions, context, pooled = words.pop("positions"), words.pop("context"), words.pop("pooled")
    said = {"crop": positions["crop"], "flow_time": words.pop("flow_time"), "qk_norm": words.pop("qk_norm") or NORM}
    qk_norm = said["qk_norm"] is not NORM
    for name, wanted in (("crop", "centre"), ("flow_time", "1000*sigma"), ("qk_norm", NORM)):
        if said[name] != wanted:
            raise UserError(f"MMDiT's {name} is {wanted!r} here; the file says {said[name]!r}")
    heads, channels = words["heads"], words.pop("head_channels")
    if heads * channels != words["width"]:
        raise UserError(
            f"MMDiT's heads fill its width here; the file has {heads} of {channels} channels for {words['width']}"
        )
    if words.pop("out_channels") != words["in_channels"]:
        raise UserError("MMDiT's output has the input's channels here; the file's has others")
    values = {
        **class_labels(words),
        **flow_direction(words),
        **take(words, "width", "depth", "heads", "patch", "input_size", "in_channels", "learn_sigma", "time"),
        "context": {name: context[name] for name in ("tokens", "width")},
        "pooled": pooled["width"],
        "table_side": positions["table_side"],
        "base_side": positions["base_side"],
        "second_attention": words.pop("second_attention_blocks"),
        "qk_norm": qk_norm,
    }
    config = parse(MMDiTConfig, values, where="model")

    def condition(y: Tensor | None, draw: Draw) -> Tensor:
        tokens, width, of_pooled = config.texts
        rows = draw("pooled", 4, of_pooled)[:, None], draw("context", 3, tokens, width)
        widest = max(width, of_pooled)
        return torch.cat([F.pad(row, (0, widest - row.shape[-1])) for row in rows], dim=1)

    return Described(config, condition=condition)


SYSTEMS: Systems = {"mmdit": mmdit}
