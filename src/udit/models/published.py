"""Weights under the names of their releases, in and out.

Every family's map is a bijection between the release's keys and ours, but for fixed tables, which releases store and
this library computes. The numbers of a tensor keep their order, its shape may differ (a 1x1 or patch convolution there
is an ``nn.Linear`` here). Nothing is downloaded and no code of a release is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from udit.errors import UserError
from udit.models.adm import published as adm
from udit.models.config import ModelConfig
from udit.models.dic import published as dic
from udit.models.dimsum import published as dimsum
from udit.models.dit import published as dit
from udit.models.fixed import Fixed, Keys, Unused
from udit.models.hdit import published as hdit
from udit.models.skipdit import published as skipdit
from udit.models.udit import published as udit
from udit.models.uvit import published as uvit

KeyMap = Callable[[Any], Keys]
"""Config -> {published key: (our key or fixed table, published shape)} in the release's order."""

KEY_MAPS: dict[str, KeyMap] = {
    "U-DiT": udit.key_map,
    "DiT": dit.key_map,
    "Skip-DiT": skipdit.key_map,
    "U-ViT": uvit.key_map,
    "DiC": dic.key_map,
    "ADM": adm.key_map,
    "HDiT": hdit.key_map,
    "DiMSUM": dimsum.key_map,
}
INSPECT: dict[str, Callable[[dict[str, Tensor], bool], None]] = {"U-DiT": udit.inspect}


def key_map(config: ModelConfig) -> Keys:
    """The release's keys in its order, each with our key (or the table we compute) and the release's shape.

    Raises:
        UserError: the model has no published form (a fused or ablated config).
    """
    family = config.family
    if family not in KEY_MAPS:
        raise UserError(f"{family} has no published key names")
    return KEY_MAPS[family](config)


def frozen_parameters(config: ModelConfig) -> int:
    """How many numbers the release counts as parameters that here are none: tables we compute, layers no one reads.

    0 without a release.
    """
    try:
        rows = key_map(config).values()
    except UserError:
        return 0
    return sum(math.prod(shape) for name, shape in rows if is_frozen(name))


def is_frozen(name: str | Fixed) -> bool:
    """Whether the release holds as a parameter what is none here."""
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
        model: a network of ``udit.build``, in training form.
        state: the release's state dict.
        repair: undo what the release's ``eval()`` did to a U-DiT checkpoint, where that is recognised.

    Raises:
        UserError: missing or unexpected keys or shapes (the first five are named), non-finite weights, a stored table
            that is not the one this library computes, or a U-DiT checkpoint that was saved after the release's
            ``eval()`` spoiled it.
    """
    wanted = key_map(cast(ModelConfig, model.config))
    state = clean_keys(state)
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {list(state[key].shape)}, not {list(shape)}"
        for key, (_, shape) in wanted.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    for problem, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise UserError(
                f"these weights are of another model or size: {problem}: {', '.join(keys[:5])}{more}; "
                "build the model they were trained as"
            )
    bad = [key for key in wanted if not torch.isfinite(state[key]).all()]
    if bad:
        raise UserError(f"weights hold NaN or infinity in {', '.join(bad[:5])}; take another checkpoint")
    for key, (name, shape) in wanted.items():
        if isinstance(name, Fixed):
            name.check(key, state[key].reshape(shape))
    if (inspect := INSPECT.get(model.config.family)) is not None:  # type: ignore[union-attr, arg-type]
        inspect(state, repair)
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
        for key, (name, shape) in key_map(cast(ModelConfig, model.config)).items()
    }
