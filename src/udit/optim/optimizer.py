"""One or several of torch's optimisers as one, whose state is named tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from udit.dist import World

State = dict[str, Any]
"""An optimiser's state of one parameter: tensors, and numbers that count steps."""


@dataclass(frozen=True)
class Part:
    """One of torch's optimisers and what the library has to know of it."""

    optimizer: torch.optim.Optimizer
    blank: Callable[[nn.Parameter], State]
    """The state of a parameter before its first step."""
    bytes: Callable[[nn.Parameter], int]
    """Size of a parameter's state."""
    title: str
    """In messages."""
    shared: tuple[str, ...] = ()
    """Keys of the parameter groups that are state as well: numbers that change with every step."""
    constant: tuple[str, ...] = ()
    """Keys of a parameter's state that never change, and so are in no checkpoint."""
    gated: bool = False
    """Whether its step reads ``found_inf`` on the device and changes nothing where that is 1."""


@dataclass(frozen=True)
class Optimizer:
    """Changes the weights of a network."""

    parts: Sequence[Part]
    named: Mapping[str, nn.Parameter]
    """Every parameter of the network that is not frozen, by name."""
    average: Callable[[nn.Parameter], Tensor] | None = None
    """The average of a parameter that the optimiser keeps itself; None where it keeps none."""
    _owner: dict[int, Part] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for part in self.parts:
            for group in part.optimizer.param_groups:
                for parameter in group["params"]:
                    self._owner[id(parameter)] = part

    @property
    def gated(self) -> bool:
        """Whether ``step`` takes ``found_inf``."""
        return all(part.gated for part in self.parts)

    def step(self, lr: float, found_inf: Tensor | None = None) -> None:
        """Changes the weights by their gradients, with the learning rate times each group's ``scale``.

        Args:
            lr: of all groups.
            found_inf: [] float32 on the weights' device; 1 leaves weights and state as they are.
        """
        for part in self.parts:
            for group in part.optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            if found_inf is not None:  # as GradScaler tells torch's fused optimisers
                assert part.gated
                part.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            part.optimizer.step()

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for part in self.parts:
            part.optimizer.zero_grad(set_to_none=True)

    @property
    def bytes(self) -> int:
        """Size of the state of all parameters."""
        return sum(self._owner[id(p)].bytes(p) for p in self.named.values())

    def state(self, parameter: nn.Parameter) -> State:
        """The state of a parameter, empty before its first step."""
        return self._owner[id(parameter)].optimizer.state.get(parameter) or {}

    def tensors(self) -> dict[str, Tensor]:
        """The whole state: ``exp_avg.stem.weight`` and so on; ``k.#0`` is that of a whole parameter group."""
        tensors = {
            f"{key}.{name}": _tensor(value)
            for name, parameter in self.named.items()
            for key, value in self.state(parameter).items()
            if key not in self._owner[id(parameter)].constant
        }
        return tensors | {f"{key}.#{i}": _tensor(group[key]) for i, group, key in self._shared()}

    def blank(self) -> dict[str, Tensor]:
        """The whole state before the first step, to be filled and loaded; as ``tensors`` names it."""
        tensors = {
            f"{key}.{name}": _tensor(value)
            for name, parameter in self.named.items()
            for key, value in self._owner[id(parameter)].blank(parameter).items()
            if key not in self._owner[id(parameter)].constant
        }
        return tensors | {f"{key}.#{i}": _tensor(group[key]) for i, group, key in self._shared()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the state of a checkpoint; a parameter that it does not name has not been changed yet."""
        for name, parameter in self.named.items():
            part = self._owner[id(parameter)]
            state = part.blank(parameter)
            kept = {key: f"{key}.{name}" for key in state if key not in part.constant}
            if all(saved in tensors for saved in kept.values()):
                loaded = {key: _like(tensors[saved], state[key]) for key, saved in kept.items()}
                part.optimizer.state[parameter] = state | loaded
        for i, group, key in self._shared():
            group[key] = _like(tensors[f"{key}.#{i}"], group[key])

    def share(self, world: World) -> None:
        """Sends rank 0's state to the other ranks."""
        there = torch.tensor([float(bool(self.state(p))) for p in self.named.values()])
        world.broadcast([there])
        for parameter, present in zip(self.named.values(), there.tolist(), strict=True):
            if present:
                owner = self._owner[id(parameter)]
                state = self.state(parameter) or owner.blank(parameter)
                values = {key: _tensor(value) for key, value in state.items()}
                world.broadcast(values.values())
                owner.optimizer.state[parameter] = {key: _like(values[key], value) for key, value in state.items()}
        for _, group, key in self._shared():
            value = _tensor(group[key])
            world.broadcast([value])
            group[key] = _like(value, group[key])

    def told(self) -> str:
        """Which optimiser changes what, e.g. "muon: 24 tensors, 1.92 million weights; adamw: ..."."""
        return "; ".join(f"{part.title}: {_counted(part.optimizer.param_groups)}" for part in self.parts)

    def _shared(self) -> Iterable[tuple[int, dict[str, Any], str]]:
        groups = [(part, group) for part in self.parts for group in part.optimizer.param_groups]
        return [(i, group, key) for i, (part, group) in enumerate(groups) for key in part.shared]


def _tensor(value: Any) -> Tensor:
    """A number of an optimiser's state as a tensor."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _like(tensor: Tensor, value: Any) -> Any:
    """``tensor`` as the optimiser keeps it: on the device of ``value``, or as a number."""
    return tensor.to(value.device, value.dtype) if isinstance(value, Tensor) else type(value)(tensor.item())


def _counted(groups: list[dict[str, Any]]) -> str:
    tensors = [parameter for group in groups for parameter in group["params"]]
    count = len(tensors)
    weights = sum(p.numel() for p in tensors) / 1e6
    return f"{count} tensor{'s' * (count != 1)}, {weights:,.2f} million weights"
