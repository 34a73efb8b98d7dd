"""Finds the state of a network in what a file holds: under any name, at any depth, behind any prefix."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from udit.convert.files import read_file
from udit.errors import UserError, nearest

AVERAGE = re.compile(r"(?<![a-z])(ema|avg|swa)(?![a-z])|averag", re.IGNORECASE)
"""In the name of averaged weights: ``ema``, ``model_ema``, ``ema_model``, ``state_dict_ema``, ``averaged_net`` ..."""
WRAPPERS = ("module", "_orig_mod")
"""Prefixes that DDP and torch.compile leave, which name no state."""
DEPTH = 6
"""Levels of containers that are searched."""


@dataclass(frozen=True)
class State:
    """Tensors that belong together."""

    name: str
    """Where they stood: keys of containers and prefixes, joined by dots; empty for the file itself."""
    tensors: dict[str, Tensor] = field(repr=False)
    matching: int
    """How many of them the wanted network has."""

    @property
    def averaged(self) -> bool:
        """Whether its name is that of averaged weights."""
        return AVERAGE.search(self.name) is not None


@dataclass(frozen=True)
class Choice:
    """The state that was taken from a file, and what was left."""

    taken: State
    left: tuple[str, ...]
    """Names of other states of the same network."""
    empty: tuple[str, ...]
    """Names of averages that the file holds as None."""

    def __str__(self) -> str:
        """In words, empty where the file holds nothing else."""
        if not (self.left or self.empty or self.taken.averaged):
            return ""
        kind = "averaged" if self.taken.averaged else "not averaged"
        said = f"took {self.taken.name!r} ({kind})" if self.taken.name else "took its own tensors"
        said += f", left {', '.join(map(repr, self.left))} (choose with --key)" if self.left else ""
        return said + (f"; {', '.join(map(repr, self.empty))} is empty" if self.empty else "")


def read_published(path: Path, wanted: Collection[str] = (), *, key: str | None = None) -> Choice:
    """The state of a network in a file; see ``files.read_file`` and ``choose``.

    Raises:
        UserError: no such file, a file that is not read, or no state in it.
    """
    return choose(read_file(path), wanted, key=key, where=str(path))


def choose(content: Mapping[Any, Any], wanted: Collection[str] = (), *, key: str | None = None, where: str) -> Choice:
    """The state of a network: of averaged weights if there are some, else the one that fits best.

    Args:
        content: of ``files.read_file``.
        wanted: the network's keys; where none of them is found, containers of tensors alone are states.
        key: name of the state to take, e.g. ``"model"``.
        where: the file, for messages.

    Raises:
        UserError: there is none, or none of that name.
    """
    empty = tuple(name for name, value in _leaves(content) if value is None and AVERAGE.search(name))
    found = _fitting(content, set(wanted)) or _containers(content)
    if not found:
        raise UserError(_nothing(content, where))
    most = max(state.matching for state in found)
    states = sorted((s for s in found if 2 * s.matching > most), key=lambda s: (len(s.name), s.name))
    if key is not None:
        named = [s for s in states if s.name == key or s.name.endswith(f".{key}") or s.name.startswith(f"{key}.")]
        if not named:
            raise UserError(f"{where} holds no state {key!r}{nearest(key, [s.name for s in states])}")
        taken = named[0]
    else:
        whole = [s for s in states if s.matching == most]
        taken = next((s for s in whole if s.averaged), whole[0])
    return Choice(taken, tuple(s.name or "its own tensors" for s in states if s is not taken), empty)


def _fitting(content: Mapping[Any, Any], wanted: set[str]) -> list[State]:
    """A state for each prefix under which keys of the network stand."""
    leaves = {name: value for name, value in _leaves(content) if isinstance(value, Tensor)}
    counts: dict[str, int] = {}
    for name in leaves:
        for prefix in _prefixes(name):
            if name[len(prefix) :] in wanted:
                counts[prefix] = counts.get(prefix, 0) + 1
    states = []
    for prefix, count in counts.items():
        others = tuple(p for p in counts if len(p) > len(prefix) and p.startswith(prefix) and 2 * counts[p] > count)
        own = {
            name[len(prefix) :]: tensor
            for name, tensor in leaves.items()
            if name.startswith(prefix) and not (others and name.startswith(others))
        }
        states.append(State(_name(prefix), own, count))
    return states


def _containers(content: Mapping[Any, Any]) -> list[State]:
    """A state for each container that holds tensors alone."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, holder in _mappings(content):
        if holder and all(isinstance(value, Tensor) for value in holder.values()):
            groups[name] = {_unwrapped(str(key)): value for key, value in holder.items()}
    return [State(name, tensors, len(tensors)) for name, tensors in groups.items()]


def _mappings(
    content: Mapping[Any, Any], name: str = "", depth: int = DEPTH
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    yield name, content
    for key, value in content.items() if depth else ():
        if isinstance(value, Mapping):
            yield from _mappings(value, f"{name}.{key}" if name else str(key), depth - 1)


def _leaves(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Everything that is no container, by its path."""
    for name, holder in _mappings(content):
        for key, value in holder.items():
            if not isinstance(value, Mapping):
                yield f"{name}.{key}" if name else str(key), value


def _prefixes(name: str) -> Iterator[str]:
    """Every part of a name that ends before a dot's successor, the empty one first."""
    yield ""
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()]


def _name(prefix: str) -> str:
    return ".".join(part for part in prefix.split(".") if part and part not in WRAPPERS)


def _unwrapped(key: str) -> str:
    while key.startswith(tuple(f"{word}." for word in WRAPPERS)):
        key = key.split(".", 1)[1]
    return key


def _nothing(content: Mapping[Any, Any], where: str) -> str:
    """Why no state was found."""
    for name, value in _leaves(content):
        if isinstance(value, Sequence) and value and all(isinstance(item, Tensor) for item in value):
            return (
                f"{where} holds {len(value)} tensors under {name!r} as a list without names (as diffusers' EMAModel "
                "saves them); load them into their network there and save its state dict"
            )
    names = [str(name) for name in content]
    held = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{where} holds no state of this network; it holds {held or 'nothing'}"
