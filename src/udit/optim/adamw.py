"""AdamW: torch's, bitsandbytes' with 8 bits, and the Schedule-Free one."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from udit.errors import missing_extra
from udit.optim.config import Betas
from udit.optim.groups import Choices, grouped, trained
from udit.optim.optimizer import Optimizer, Part, State

SMALL = 4096
"""Elements below which bitsandbytes keeps moments of 32 bits."""


def adamw(model: nn.Module, choices: Choices, betas: Betas) -> Optimizer:
    """AdamW of all parameters."""
    named = trained(model)
    return Optimizer([adamw_part(named, choices, betas)], named)


def adamw_part(named: dict[str, nn.Parameter], choices: Choices, betas: Betas) -> Part:
    """torch's fused AdamW of some parameters."""
    fused = all(p.device.type in ("cuda", "cpu") for p in named.values())
    optimizer = torch.optim.AdamW(grouped(named.items(), choices), lr=0.0, betas=betas, fused=fused)
    return Part(optimizer, _no_moments, lambda p: 2 * p.numel() * p.element_size(), "adamw", gated=fused)


def _no_moments(parameter: nn.Parameter) -> State:
    zeros = {key: torch.zeros_like(parameter, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), device=parameter.device), **zeros}


def adamw_8bit(model: nn.Module, choices: Choices, betas: Betas) -> Optimizer:
    """bitsandbytes' AdamW of all parameters.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    package = _package("bitsandbytes", "adamw-8bit")
    named = trained(model)
    optimizer: Any = package.optim.AdamW8bit(grouped(named.items(), choices), lr=0.0, betas=betas)

    def blank(parameter: nn.Parameter) -> State:
        group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
        before = optimizer.state.pop(parameter, None)
        if not optimizer.name2qmap:
            optimizer.fill_qmap()
        optimizer.init_state(group, parameter, 0, 0)
        state: State = optimizer.state.pop(parameter)
        if before is not None:
            optimizer.state[parameter] = before
        return state

    def size(parameter: nn.Parameter) -> int:
        return parameter.numel() * (2 if parameter.numel() >= SMALL else 8)

    return Optimizer([Part(optimizer, blank, size, "adamw-8bit", constant=("qmap1", "qmap2"))], named)


def schedule_free(model: nn.Module, choices: Choices, betas: Betas) -> Optimizer:
    """Schedule-Free AdamW of all parameters. The weights stay those that are trained; the average is computed beside.

    Raises:
        UserError: schedulefree is not installed.
    """
    package = _package("schedulefree", "schedule-free")
    named = trained(model)
    optimizer: Any = package.AdamWScheduleFree(grouped(named.items(), choices), lr=0.0, betas=betas)
    optimizer.train()

    def blank(parameter: nn.Parameter) -> State:
        return {"z": parameter.detach().clone(), "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False)}

    def average(parameter: nn.Parameter) -> Tensor:
        """x of y = beta x + (1 - beta) z, where y are the trained weights (Defazio et al. 2024, eq. 1)."""
        state = optimizer.state.get(parameter)
        return parameter.detach() if not state else torch.lerp(parameter.detach(), state["z"], 1 - 1 / betas[0])

    part = Part(
        optimizer, blank, lambda p: 2 * p.numel() * p.element_size(), "schedule-free", ("k", "weight_sum", "lr_max")
    )
    return Optimizer([part], named, average)


def _package(name: str, kind: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing_extra(f"training.optimizer={kind}", name, "optimizers") from None
