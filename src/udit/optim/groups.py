"""Learning rate and weight decay of each parameter of a network."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from udit.errors import UserError, nearest
from udit.optim.config import GroupConfig


@dataclass(frozen=True)
class Choice:
    """What is chosen for one parameter."""

    scale: float
    """Factor on the learning rate."""
    weight_decay: float


Choices = Mapping[str, Choice]
"""By the parameter's name."""


def choices_of(
    model: nn.Module, groups: Sequence[GroupConfig] = (), layer_decay: float = 1.0, weight_decay: float = 0.0
) -> Choices:
    """Learning rate and weight decay of every parameter.

    Args:
        model: a network of the catalogue.
        groups: rules; of those that match a parameter the last one counts.
        layer_decay: the rate of block k of n is multiplied by layer_decay ** (n - k), that of what comes before the
            blocks by layer_decay ** (n + 1), and that of what comes after by 1.
        weight_decay: where no rule says otherwise.

    Raises:
        UserError: a rule matches no parameter, or all are frozen.
    """
    names = list(trained(model))
    depths = _depths(model) if layer_decay != 1 else {}
    last = max(depths.values(), default=0)
    choices = {name: Choice(layer_decay ** (last - depths.get(name, last)), weight_decay) for name in names}
    for group in groups:
        matched = fnmatch.filter(names, group.match)
        if not matched:
            raise UserError(
                f"training.groups: no parameter is called {group.match!r}{nearest(group.match, names)}; * stands for "
                "any characters, e.g. *.label.weight"
            )
        for name in matched:
            decay = choices[name].weight_decay if group.weight_decay is None else group.weight_decay
            choices[name] = Choice(choices[name].scale * group.lr, decay)
    if not any(choice.scale for choice in choices.values()):
        raise UserError(
            "training.groups has lr 0 for every parameter, so that nothing is trained; leave some out of it"
        )
    return choices


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def grouped(parameters: Iterable[tuple[str, nn.Parameter]], choices: Choices) -> list[dict[str, object]]:
    """Parameter groups as torch's optimisers take them, each with its ``scale`` of the learning rate."""
    groups: dict[Choice, list[nn.Parameter]] = {}
    for name, parameter in parameters:
        groups.setdefault(choices[name], []).append(parameter)
    return [
        {"params": parts, "scale": choice.scale, "weight_decay": choice.weight_decay}
        for choice, parts in groups.items()
    ]


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the linear layers within a network's blocks that are not frozen, by name."""
    inside = {
        id(layer.weight)
        for module in model.modules()
        for block in getattr(module, "blocks", ())
        for layer in block.modules()
        if isinstance(layer, nn.Linear)
    }
    return {name: p for name, p in trained(model).items() if id(p) in inside and p.ndim == 2}


def _depths(model: nn.Module) -> dict[str, int]:
    """Place of each parameter: 0 before the first block, k in the k-th, one more than the last one after all of them.

    Blocks and what lies between them count in the order in which the network registers them.
    """
    owner = {
        id(p): block
        for module in model.modules()
        for block in getattr(module, "blocks", ())
        for p in block.parameters()
    }
    blocks = list(dict.fromkeys(owner.values()))
    names = [(name, owner.get(id(p))) for name, p in model.named_parameters()]
    within = [i for i, (_, block) in enumerate(names) if block is not None]
    if not within:
        return {}
    depths, depth = {}, 0
    for i, (name, block) in enumerate(names):
        depth = blocks.index(block) + 1 if block is not None else depth
        depths[name] = depth if i <= within[-1] else len(blocks) + 1
    return depths
