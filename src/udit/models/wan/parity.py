"""Wan 2.1 as reference files describe it."""

from __future__ import annotations

from udit.errors import UserError
from udit.models.parity import Described, Systems, Words, channel_axis, class_labels, flow_direction, take
from udit.models.wan.config import WanConfig
from udit.spec.base import parse


def wan(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``; files do not say the number of frames, which the network computes with any."""
    axis, (frames, height, width) = channel_axis(words), words.pop("patch")
    ffn, context, width_of_blocks = words.pop("ffn"), words.pop("context"), words["width"]
    for name, said, wanted in (
        ("flow_time", words.pop("flow_time"), "1000*sigma"),
        ("ffn.kind", ffn["kind"], "gelu-tanh"),
        ("a patch's sides", height, width),
        ("out_channels", words.pop("out_channels"), words["in_channels"]),
    ):
        if said != wanted:
            raise UserError(f"Wan's {name} is {wanted!r} here; the file says {said!r}")
    values = {
        **class_labels(words),
        **flow_direction(words),
        **take(words, "width", "depth", "heads", "in_channels", "learn_sigma", "time"),
        "patch": height,
        "patch_frames": frames,
        "frames": frames,
        "input_size": size,
        "ffn": {"ratio": ffn["hidden"] / width_of_blocks},
        "context": {name: context[name] for name in ("tokens", "width")},
    }
    return Described(parse(WanConfig, values, where="model"), channel_axis=axis)


SYSTEMS: Systems = {"wan": wan}
