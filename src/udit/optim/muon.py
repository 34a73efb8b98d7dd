"""Muon: momentum whose matrices are made orthogonal by a few Newton-Schulz iterations (Jordan et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from udit.errors import UserError
from udit.optim.adamw import adamw_part
from udit.optim.config import Betas, MuonConfig
from udit.optim.groups import Choices, grouped, matrices, trained
from udit.optim.optimizer import Optimizer, Part, State

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial of degree 5 that is iterated; singular values end between about 0.7 and 1.2."""
EPS = 1e-7


def muon(config: MuonConfig, model: nn.Module, choices: Choices, betas: Betas) -> Optimizer:
    """Muon of the matrices within blocks, AdamW of all else.

    Raises:
        UserError: the network's blocks have no matrices.
    """
    named = trained(model)
    inside = matrices(model)
    if not inside:
        raise UserError(
            "training.optimizer is muon and the model has no linear layer within its blocks, which is all that muon "
            "changes; set training.optimizer=adamw"
        )
    others = {name: p for name, p in named.items() if name not in inside}
    rest = [adamw_part(others, choices, betas)] if others else []  # of a low-rank adapter all is matrices
    return Optimizer([_muon_part(config, inside, choices), *rest], named)


def _muon_part(config: MuonConfig, named: dict[str, nn.Parameter], choices: Choices) -> Part:
    groups = grouped(named.items(), choices)
    if all(p.device.type == "cuda" for p in named.values()):
        adjust = config.adjust.replace("-", "_")
        optimizer: torch.optim.Optimizer = torch.optim.Muon(
            groups,
            lr=0.0,
            momentum=config.momentum,
            nesterov=config.nesterov,
            ns_steps=config.iterations,
            adjust_lr_fn=adjust,
        )
    else:
        optimizer = Muon(groups, config)
    return Part(optimizer, _no_momentum, lambda p: p.numel() * p.element_size(), "muon")


def _no_momentum(parameter: nn.Parameter) -> State:
    return {"momentum_buffer": torch.zeros_like(parameter, requires_grad=False)}


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` in the weights' own precision, where torch computes in bfloat16."""

    def __init__(self, groups: list[dict[str, object]], config: MuonConfig) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "scale": 1.0})
        self.config = config

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Changes every matrix that has a gradient."""
        assert closure is None
        momentum = self.config.momentum
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(_no_momentum(parameter))
                buffer: Tensor = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(buffer, momentum) if self.config.nesterov else buffer
                update = orthogonalized(update, self.config.iterations)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update, alpha=group["lr"] * self._adjusted(parameter))

    def _adjusted(self, matrix: Tensor) -> float:
        rows, columns = matrix.shape
        if self.config.adjust == "original":
            return math.sqrt(max(1.0, rows / columns))
        return 0.2 * math.sqrt(max(rows, columns))


def orthogonalized(matrix: Tensor, iterations: int = 5) -> Tensor:
    """A matrix [n, m] of about the same singular vectors whose singular values are near 1, in the matrix's dtype."""
    a, b, c = COEFFICIENTS
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=EPS)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrix.shape[0] > matrix.shape[1] else x
