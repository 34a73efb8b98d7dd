"""PDE-Transformer as reference files describe it."""

from __future__ import annotations

from udit.errors import UserError
from udit.models.parity import Described, Systems, Words, class_labels, take
from udit.models.pde.config import PDEConfig
from udit.models.pde.network import TIME_SCALE
from udit.spec.base import parse


def pde(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``; its time is not that of a noising process."""
    kind, scale = words.pop("channels"), words.pop("time_scale")
    words.pop("input_size")
    words.pop("noise_at", None)
    if kind != "mixed":
        raise UserError(f"channels are {kind!r}; only the form that mixes them is built")
    if scale != TIME_SCALE:
        raise UserError(f"time is multiplied by {scale}; only {TIME_SCALE} is built")
    values = {
        **class_labels(words),
        **take(words, "width", "heads", "depths", "window", "patch", "in_channels", "periodic", "learn_sigma", "time"),
        "input_size": size,
    }
    if (out := words.pop("out_channels")) != values["in_channels"]:
        raise UserError(f"the output has {out} channels and the input {values['in_channels']}; they must be as many")
    return Described(parse(PDEConfig, values, where="model"))


SYSTEMS: Systems = {"pde-transformer": pde}
