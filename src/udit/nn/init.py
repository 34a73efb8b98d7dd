"""Initial weights: each parameter is drawn from a generator keyed by (seed, its name).

Networks are built on the meta device and filled here, so any rank, in any order, draws the same weights. Persistent
buffers are filled by the same rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from udit import rng

Draw = Callable[[Tensor, torch.Generator], None]


@dataclass(frozen=True)
class PerLayer:
    """A fill that depends on the layer's number of inputs, which the shape of a bias does not contain."""

    make: Callable[[int], Draw]


Fill = Draw | PerLayer


def xavier(tensor: Tensor, generator: torch.Generator) -> None:
    """Uniform with variance 2 / (fan in + fan out) (Glorot & Bengio 2010)."""
    nn.init.xavier_uniform_(tensor, generator=generator)


def xavier_flat(tensor: Tensor, generator: torch.Generator) -> None:
    """Xavier on the weight seen as a matrix [out, everything else], as patch embeddings are initialised in ViT."""
    nn.init.xavier_uniform_(tensor.view(tensor.shape[0], -1), generator=generator)


def gaussian(std: float) -> Draw:
    """N(0, std**2)."""
    return lambda tensor, generator: tensor.normal_(0.0, std, generator=generator)  # type: ignore[return-value]


def constant(value: float) -> Draw:
    """The same value everywhere."""
    return lambda tensor, generator: tensor.fill_(value)  # type: ignore[return-value]


def values(make: Callable[[torch.Size], Tensor]) -> Draw:
    """A fixed table: what ``make`` returns for the tensor's shape."""
    return lambda tensor, generator: tensor.copy_(make(tensor.shape))  # type: ignore[return-value]


def by_width(tensor: Tensor, generator: torch.Generator) -> None:
    """N(0, 1 / D), D the last axis."""
    tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)


def uniform(bound: float) -> Draw:
    """Uniform in [-bound, bound]."""
    return lambda tensor, generator: tensor.uniform_(-bound, bound, generator=generator)  # type: ignore[return-value]


torch_default = PerLayer(lambda inputs: uniform(1 / math.sqrt(inputs)))
"""Torch's initialisation of ``nn.Linear`` and ``nn.Conv2d``, weight and bias: uniform within 1 / sqrt(inputs)."""


def scaled(rule: PerLayer, factor: float) -> PerLayer:
    """What ``rule`` draws, times ``factor``."""

    def make(inputs: int) -> Draw:
        draw = rule.make(inputs)

        def drawn(tensor: Tensor, generator: torch.Generator) -> None:
            draw(tensor, generator)
            tensor.mul_(factor)

        return drawn

    return PerLayer(make)


def inverse_softplus(low: float, high: float) -> Draw:
    """Values whose softplus is log-uniform in [low, high]: Mamba's step sizes (Gu & Dao 2023, Sec. 3.6)."""

    def draw(tensor: Tensor, generator: torch.Generator) -> None:
        step = tensor.uniform_(math.log(low), math.log(high), generator=generator).exp_()
        tensor.copy_(step + torch.log(-torch.expm1(-step)))

    return draw


def fill(
    model: nn.Module,
    rules: Mapping[str, Fill],
    seed: int,
    device: torch.device | str = "cpu",
    put: Callable[[Tensor, Tensor], object] = Tensor.copy_,
) -> nn.Module:
    """Materialises a meta-built model and fills every tensor by the first rule whose pattern its name matches.

    Args:
        model: any module, typically on the meta device.
        rules: regular expression (searched in the tensor's name) -> fill. Order matters.
        seed: first part of the key of every tensor's generator.
        device: where the weights go. They are drawn on the CPU, so every device gets the same numbers.
        put: copies a tensor that was drawn into the model's own, which may hold a part of it alone.
    """
    model.to_empty(device=device)
    with torch.no_grad(), torch.device("cpu"):
        state = model.state_dict()
        for name, tensor in state.items():
            rule = next(rule for pattern, rule in rules.items() if re.search(pattern, name))
            if isinstance(rule, PerLayer):
                rule = rule.make(state[f"{name.rpartition('.')[0]}.weight"].shape[1:].numel())
            values = torch.empty(tensor.shape, dtype=torch.float32)
            rule(values, rng.generator(seed, f"init/{name}"))
            put(tensor, values)
    return model
