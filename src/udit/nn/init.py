"""Weights from a key: each parameter is drawn from a generator of (seed, its name).

Networks are built on the meta device and filled here, so any rank, in any order, draws the same weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from udit import rng

Fill = Callable[[Tensor, torch.Generator], None]


def xavier(tensor: Tensor, generator: torch.Generator) -> None:
    """Uniform with variance 2 / (fan in + fan out) (Glorot & Bengio 2010)."""
    nn.init.xavier_uniform_(tensor, generator=generator)


def xavier_flat(tensor: Tensor, generator: torch.Generator) -> None:
    """Xavier on the weight seen as a matrix [out, everything else], as patch embeddings are initialised in ViT."""
    nn.init.xavier_uniform_(tensor.view(tensor.shape[0], -1), generator=generator)


def gaussian(std: float) -> Fill:
    """N(0, std**2)."""
    return lambda tensor, generator: tensor.normal_(0.0, std, generator=generator)  # type: ignore[return-value]


def constant(value: float) -> Fill:
    """The same value everywhere."""
    return lambda tensor, generator: tensor.fill_(value)  # type: ignore[return-value]


def fill(model: nn.Module, rules: Mapping[str, Fill], seed: int, device: torch.device | str = "cpu") -> nn.Module:
    """Materialises a meta-built model and fills every parameter by the first rule whose pattern its name matches.

    Args:
        model: any module, typically on the meta device.
        rules: regular expression (searched in the parameter's name) -> fill. Order matters.
        seed: first part of every parameter's key.
        device: where the weights go. They are drawn on the CPU, so every device gets the same numbers.
    """
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rule = next(rule for pattern, rule in rules.items() if re.search(pattern, name))
            values = torch.empty(parameter.shape, dtype=torch.float32)
            rule(values, rng.generator(seed, f"init/{name}"))
            parameter.copy_(values)
    return model
