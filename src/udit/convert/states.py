"""Finds the state of a network in what a file holds: under any name, at any depth, behind any prefix."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from udit.convert.averages import COUNTER, is_average
from udit.convert.files import read_file
from udit.errors import UserError, nearest

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a name that DDP, torch.compile, FSDP and recomputed activations add, which name no state."""
RAW_OF_LIGHTNING = "current_model_state"
"""Where Lightning's ``WeightAveraging`` puts the raw weights; its ``state_dict`` then is the average."""
DEPTH = 6
"""Levels of containers that are searched."""
OWN = "."
"""The name that ``--key`` gives to the tensors of the file itself."""


@dataclass(frozen=True)
class State:
    """Tensors that belong together."""

    name: str
    """Where they stood: keys of containers and prefixes, joined by dots; ``OWN`` for the file itself."""
    tensors: dict[str, Tensor] = field(repr=False)
    matching: int
    """How many of them the wanted network has."""
    averaged: bool
    """Whether they are averaged weights, by their name or by what stands beside them."""


@dataclass(frozen=True)
class Choice:
    """The state that was taken from a file, and what was left."""

    taken: State
    left: tuple[str, ...]
    """Names of other states of the same network."""
    empty: tuple[str, ...]
    """Names of averages that the file holds as None, or without content."""
    filled: tuple[str, ...] = ()
    """Keys that the average lacks because averaging leaves them alone, and that came from ``source``."""
    source: str = ""

    def __str__(self) -> str:
        """In words, empty where the file holds nothing else."""
        if not (self.left or self.empty or self.taken.averaged):
            return ""
        kind = "averaged" if self.taken.averaged else "not averaged"
        if self.filled:
            kind += f"; {_listed(self.filled)} of {self.source!r}, as averages leave out what is not trained"
        said = f"took {_called(self.taken.name)} ({kind})"
        said += f", left {', '.join(map(_called, self.left))} (choose with --key)" if self.left else ""
        return said + (f"; {', '.join(map(repr, self.empty))} is empty" if self.empty else "")


def read_published(path: Path, wanted: Collection[str] = (), *, key: str | None = None) -> Choice:
    """The state of a network in a file; see ``files.read_file`` and ``choose``.

    Raises:
        UserError: no such file, a file that is not read, or no state in it.
    """
    return choose(read_file(path), wanted, key=key, where=str(path))


def choose(
    content: Mapping[Any, Any],
    wanted: Collection[str] = (),
    *,
    untrained: Collection[str] = (),
    key: str | None = None,
    where: str,
) -> Choice:
    """The state of a network: of averaged weights if there are some, else the one that fits best.

    Raw weights are never taken in silence: where the file holds an average that cannot be read, it takes ``key``.

    Args:
        content: of ``files.read_file``.
        wanted: the network's keys; where none of them is found, containers of tensors alone are states.
        untrained: those of them that an average may lack (buffers, fixed tables); then the raw state has them.
        key: name of the state to take, e.g. ``"model"``.
        where: the file, for messages.

    Raises:
        UserError: there is none, or none of that name, or an average that cannot be read.
    """
    fitting = _fitting(content, set(wanted))
    found = fitting or _containers(content)
    if not found:
        raise UserError(_nothing(content, where))
    most = max(state.matching for state in found)
    states = sorted((s for s in found if 2 * s.matching > most), key=lambda s: (len(s.name), s.name))
    whole = [s for s in states if s.matching == most or not fitting]
    averages = sorted((s for s in found if s.averaged), key=lambda s: s.matching, reverse=True)
    raw = next((s for s in whole if not s.averaged), whole[0])
    if key is not None:
        taken = _named(key, [*states, *averages], content, where)
    elif average := next((s for s in [*whole, *averages] if s.averaged), None):
        taken = average
    elif unread := _unread(content, found):
        raise UserError(
            f"{where} holds an average that is not read: {unread}; load it into its network in the program that saved "
            f"it and save its state dict, or take {raw.name!r}, not averaged, with --key {shlex.quote(raw.name)}"
        )
    else:
        taken = raw
    left = tuple(s.name for s in states if s.name != taken.name)
    choice = Choice(taken, left, tuple(_empty(content)))
    return _filled(choice, raw, set(wanted), untrained, where) if fitting and taken.averaged else choice


def _named(key: str, states: Sequence[State], content: Mapping[Any, Any], where: str) -> State:
    for state in states:
        if state.name == key or state.name.endswith(f".{key}") or state.name.startswith(f"{key}."):
            return state
    unread = _unread(content, states)
    because = f"; {unread}" if unread and is_average(key) else nearest(key, [s.name for s in states])
    raise UserError(f"{where} holds no state {key!r}{because}")


def _filled(choice: Choice, raw: State, wanted: set[str], untrained: Collection[str], where: str) -> Choice:
    """An average, with what is never averaged from the raw state beside it.

    Raises:
        UserError: it lacks more than that.
    """
    taken = choice.taken
    lacking = [key for key in raw.tensors if key in wanted and key not in taken.tensors]
    if trained := [key for key in lacking if key not in untrained]:
        raise UserError(
            f"{where} holds an average under {taken.name!r} that lacks {_listed(trained)} of this network; save the "
            f"whole average, or take {raw.name!r}, not averaged, with --key {shlex.quote(raw.name)}"
        )
    if not lacking:
        return choice
    tensors = taken.tensors | {key: raw.tensors[key] for key in lacking}
    return replace(choice, taken=replace(taken, tensors=tensors), filled=tuple(lacking), source=raw.name)


def _fitting(content: Mapping[Any, Any], wanted: set[str]) -> list[State]:
    """A state for each prefix under which keys of the network stand."""
    leaves = {name: value for name, value in _leaves(content) if isinstance(value, Tensor)}
    parts = {part for key in wanted for part in key.split(".")}
    wrappers = tuple(word for word in WRAPPERS if word not in parts)
    bare = _without(wrappers)
    flat = _flat(wanted)
    counts: Counter[str] = Counter()
    for name in leaves:
        counts.update(prefix for prefix in _prefixes(name, wrappers) if bare(name[len(prefix) :]) in wanted)
    runs: Counter[str] = Counter()
    for name in leaves:
        start = name.rfind(".") + 1
        runs.update(name[:i] for i in range(start, len(name)) if "." in flat.get(name[i:], ""))
    both = counts + runs
    states = []
    for prefix, count in both.items():
        others = tuple(p for p in both if len(p) > len(prefix) and p.startswith(prefix) and 2 * both[p] > count)
        own: dict[str, Tensor] = {}
        raw = not is_average(prefix)
        for name, tensor in leaves.items():
            if not name.startswith(prefix) or (others and name.startswith(others)):
                continue
            rest = name[len(prefix) :]
            key = bare(rest) if prefix in counts else flat.get(rest, "")
            inner = raw and key not in wanted and is_average(rest.rpartition(".")[0])  # of an average within this state
            if key and not inner:
                own[key if key not in own else rest] = tensor
        counted = f"{_unwrapped(prefix)}{COUNTER}" in leaves
        states.append(_state(content, prefix, own, count, counted=counted))
    return states


def _flat(wanted: set[str]) -> dict[str, str]:
    """Keys without their dots, as LDM's ``LitEma`` names its buffers, where they are still distinct."""
    counts = Counter(key.replace(".", "") for key in wanted)
    return {name: key for key in wanted if counts[name := key.replace(".", "")] == 1}


def _containers(content: Mapping[Any, Any]) -> list[State]:
    """A state for each container that holds tensors alone."""
    bare = _without(WRAPPERS)
    states = []
    for name, holder in _mappings(content):
        if holder and all(isinstance(value, Tensor) for value in holder.values()):
            own = {bare(str(key)): value for key, value in holder.items()}
            counted = own.pop(COUNTER, None) is not None
            states.append(_state(content, name, own, len(own), counted=counted))
    return states


def _state(
    content: Mapping[Any, Any], prefix: str, tensors: dict[str, Tensor], matching: int, *, counted: bool
) -> State:
    name = ".".join(part for part in prefix.split(".") if part and part not in WRAPPERS) or OWN
    lightning = RAW_OF_LIGHTNING in content and name.split(".")[0] == "state_dict"
    return State(name, tensors, matching, averaged=is_average(name) or counted or lightning)


def _mappings(content: Any, name: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """All mappings by their paths; a list that holds mappings is one, from the place to the item."""
    if isinstance(content, list | tuple):
        content = dict(enumerate(content)) if any(isinstance(item, Mapping) for item in content) else {}
    elif not isinstance(content, Mapping):
        return
    if name and not content:
        return
    yield name, content
    for key, value in content.items() if depth else ():
        yield from _mappings(value, f"{name}.{key}" if name else str(key), depth - 1)


def _leaves(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Everything that is no container of containers, by its path; lists without mappings are leaves."""
    for name, holder in _mappings(content):
        for key, value in holder.items():
            if not isinstance(value, Mapping):
                yield f"{name}.{key}" if name else str(key), value


def _empty(content: Mapping[Any, Any]) -> Iterator[str]:
    """Paths of averages without content."""
    for name, holder in _mappings(content):
        for key, value in holder.items():
            nothing = value is None or (isinstance(value, Mapping | list | tuple) and not value)
            if nothing and is_average(str(key)):
                yield f"{name}.{key}" if name else str(key)


def _prefixes(name: str, wrappers: Sequence[str]) -> Iterator[str]:
    """Every part of a name that ends before a dot's successor, the empty one first; none ends before a wrapper."""
    length = 0
    for part in name.split("."):
        if part not in wrappers:
            yield name[:length]
        length += len(part) + 1


def _unwrapped(prefix: str) -> str:
    """A prefix without the wrappers at its end."""
    while prefix.rstrip(".").rpartition(".")[2] in WRAPPERS:
        prefix = prefix[: prefix.rstrip(".").rfind(".") + 1]
    return prefix


def _without(wrappers: Sequence[str]) -> Callable[[str], str]:
    """A function that takes wrappers out of a key."""
    pattern = re.compile(rf"(?<![^.])(?:{'|'.join(wrappers)})\.")
    return lambda key: pattern.sub("", key)


def _unread(content: Mapping[Any, Any], read: Sequence[State]) -> str:
    """The average that the file holds beside the states that were read, in words; empty if there is none."""
    known = {id(tensor) for state in read for tensor in state.tensors.values()}
    size = max((sum(t.numel() for t in state.tensors.values()) for state in read), default=0)
    for name, value in _leaves(content):
        path = name.rpartition(".")[0]
        if _is_list(value) and is_average(name):
            return _unnamed(name, value)
        if not isinstance(value, Tensor) or value.numel() < 2 or id(value) in known:
            continue
        if is_average(path):
            parts = path.split(".")
            end = next(i for i in range(len(parts)) if is_average(parts[i]))
            return f"tensors under {'.'.join(parts[: end + 1])!r}, none by a name of this network"
        if is_average(name) and 2 * value.numel() > size:
            return f"all weights in one tensor {name!r}, without names"
    return ""


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, Tensor) for item in value)


def _unnamed(name: str, value: Sequence[Tensor]) -> str:
    return f"{len(value)} tensors under {name!r} as a list without names (as diffusers' EMAModel saves them)"


def _nothing(content: Mapping[Any, Any], where: str) -> str:
    """Why no state was found."""
    for name, value in _leaves(content):
        if _is_list(value):
            return f"{where} holds {_unnamed(name, value)}; load them into their network there and save its state dict"
    names = [str(name) for name in content]
    held = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{where} holds no state of this network; it holds {held or 'nothing'}"


def _called(name: str) -> str:
    return f"{OWN!r} (its own tensors)" if name == OWN else repr(name)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
