"""Weights under the names of their releases, in and out.

Every family's map (``ModelConfig.published_keys``) is a bijection between the release's keys and ours, except for fixed
tables, which releases store and this library computes. The numbers of a tensor keep their order; its shape may differ
(a 1x1 or patch convolution there is an ``nn.Linear`` here). Nothing is downloaded and no code of a release is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from udit.errors import UserError
from udit.models.config import ModelConfig
from udit.models.fixed import Fixed, Unused


@dataclass(frozen=True)
class Layout:
    """The form that another program has given to a family's weights."""

    marker: str
    """A key that weights of this form have, and no others."""
    config: Callable[[dict[str, Any], str], ModelConfig]
    """From that program's config (plain values) and the place it stands at, for messages."""
    published: Callable[[Mapping[str, Tensor], ModelConfig, str], dict[str, Tensor]]
    """From its state dict to one under the release's key names; config and place as above."""
    note: str = ""
    """How that program's own network differs from the release's, into which the weights are read."""


def frozen_parameters(config: ModelConfig) -> int:
    """How many parameters of the release are not parameters here: tables that we compute, layers that are never used.

    0 if there is no release.
    """
    try:
        rows = config.published_keys().values()
    except UserError:
        return 0
    return sum(math.prod(shape) for name, shape in rows if is_frozen(name))


def is_frozen(name: str | Fixed) -> bool:
    """Whether a tensor is a parameter in the release and not here."""
    return name.parameter if isinstance(name, Fixed) else isinstance(name, Unused)


def clean_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without the prefixes that DDP (``module.``) and torch.compile (``_orig_mod.``) leave."""
    cleaned = {}
    for key, value in state.items():
        while key.startswith(("module.", "_orig_mod.")):
            key = key.split(".", 1)[1]
        cleaned[key] = value
    return cleaned


def import_published(model: nn.Module, state: Mapping[str, Tensor], *, repair: bool = False) -> None:
    """Fills ``model`` in place from a state under the release's own key names: all of it, or nothing.

    Args:
        model: a network of ``udit.build``, unfused.
        state: the release's state dict.
        repair: undo damage by the release's own code where it is recognised (``ModelConfig.check_published``).

    Raises:
        UserError: missing or unexpected keys or shapes (the first five are named), non-finite weights, a stored table
            that is not the one this library computes, or a checkpoint that the release's own code has damaged.
    """
    config = cast(ModelConfig, model.config)
    wanted = config.published_keys()
    state = {config.current_key(key): tensor for key, tensor in clean_keys(state).items()}
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {list(state[key].shape)}, not {list(shape)}"
        for key, (_, shape) in wanted.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    problems = [
        f"{problem}: {', '.join(keys[:5])}" + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
        for problem, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
        if keys
    ]
    if problems:
        raise UserError(
            f"these weights are of another model or size: {'; '.join(problems)}; build the model they were trained as"
        )
    bad = [key for key in wanted if not torch.isfinite(state[key]).all()]
    if bad:
        raise UserError(f"weights hold NaN or infinity in {', '.join(bad[:5])}; take another checkpoint")
    for key, (name, shape) in wanted.items():
        if isinstance(name, Fixed):
            name.check(key, state[key].reshape(shape))
    config.check_published(state, repair)
    own = dict(model.state_dict())
    with torch.no_grad():
        for key, (name, _) in wanted.items():
            if isinstance(name, str):
                own[name].copy_(state[key].reshape(own[name].shape))


def export_published(model: nn.Module) -> dict[str, Tensor]:
    """The weights under the release's key names, in the release's order and shapes; new tensors."""
    own = model.state_dict()
    return {
        key: (name.value() if isinstance(name, Fixed) else own[name].detach().clone()).reshape(shape)
        for key, (name, shape) in cast(ModelConfig, model.config).published_keys().items()
    }
