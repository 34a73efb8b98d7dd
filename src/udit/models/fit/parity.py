"""FiT and FiTv2 as reference files describe them."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from udit.errors import UserError
from udit.models.fit.config import FiTConfig
from udit.models.fit.network import FiT
from udit.models.parity import Described, Systems, Words, class_labels, flow_direction, take
from udit.spec.base import parse

QK_NORM = "layernorm, no affine, eps 1e-6"
PATCH = "c p1 p2"


def sequence(model: nn.Module, tokens: Tensor, t: Tensor, y: Any, grid: Tensor, mask: Tensor) -> Tensor:
    """Rows of tokens of several images."""
    return cast(FiT, model).sequence(tokens, t, y, grid, mask)


def fit(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``."""
    words.pop("version")  # the other words say what differs
    qk_norm, patch_vector = words.pop("qk_norm"), words.pop("patch_vector")
    for name, said, known in (("qk_norm", qk_norm or QK_NORM, QK_NORM), ("patch_vector", patch_vector, PATCH)):
        if said != known:
            raise UserError(f"FiT's {name} is {known!r} here; the file says {said!r}")
    modulation, rope = dict(words.pop("modulation")), dict(words.pop("rope"))
    extrapolation = rope.pop("extrapolation") or {"mode": "normal"}
    renamed = {"mode": "extrapolation", "decouple": "decoupled"}
    values = {
        **take(words, "width", "depth", "heads", "patch", "in_channels", "time", "learn_sigma", "ffn"),
        **class_labels(words),
        **flow_direction(words),
        **rope,
        **{renamed.get(name, name): value for name, value in extrapolation.items()},
        "input_size": size,
        "qk_norm": qk_norm is not None,
        "rank": modulation.get("rank"),
    }
    return Described(parse(FiTConfig, values, where="model"), sequence=sequence)


SYSTEMS: Systems = {"fit": fit}
