"""What a pickle holds that is not opened, read from its opcodes: nothing in it runs."""

from __future__ import annotations

import json
import pickletools
import shlex
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from udit.convert.averages import is_average

MARK, TENSOR = object(), object()
MAKES_TENSORS = ("_rebuild_tensor", "_rebuild_parameter")
"""In the names of torch's functions that a pickled tensor is made with."""
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, StopIteration)
SAME = ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "BUILD", "ADDITEMS")
"""Opcodes that leave the container that they change."""


def rescue(path: Path) -> str:
    """A command that saves the weights of a file of torch: its average, or else its largest state.

    It unpickles the whole file, which only someone who trusts it should do.
    """
    found = sorted(_states(_content(path)), key=lambda state: (not is_average(".".join(state[0])), -state[1]))
    keys = "".join(f"[{_literal(key)}]" for key in found[0][0]) if found else "[KEY]"
    code = f"import torch; torch.save(torch.load({_literal(str(path))}, weights_only=False){keys}, "
    command = f"python -c {shlex.quote(code + _literal('tensors.pt') + ')')}"
    return command if found else f"{command}, with the name of its state for KEY"


def _literal(text: str) -> str:
    """A text in Python's double quotes, which a shell's single quotes keep."""
    return json.dumps(text, ensure_ascii=False)


def _states(
    content: Any, path: tuple[str, ...] = (), seen: frozenset[int] = frozenset()
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Paths of the mappings that hold tensors alone, with their number."""
    if not isinstance(content, dict) or id(content) in seen:
        return
    if path and content and all(value is TENSOR for value in content.values()):
        yield path, len(content)
    for key, value in content.items():
        yield from _states(value, (*path, key), seen | {id(content)})


def _content(path: Path) -> Any:
    """The containers of a pickle in a file of torch: dicts by their text keys, ``TENSOR``, and None for all else."""
    try:
        with zipfile.ZipFile(path) as file:
            name = next(name for name in file.namelist() if name.endswith("/data.pkl"))
            return _run(file.read(name))
    except (*UNREADABLE, zipfile.BadZipFile, zlib.error):
        return None  # of an older form, or damaged


def _run(pickle: bytes) -> Any:
    """What the opcodes would build, of dicts and tensors alone."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for code, argument, _ in pickletools.genops(pickle):
        if code.name.endswith("PUT"):
            memo[argument] = stack[-1]
        elif code.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code.name.endswith("GET"):
            stack.append(memo[argument])
        elif code.name == "MARK":
            stack.append(MARK)
        else:
            _apply(stack, code, argument)
    return stack[-1] if stack else None


def _apply(stack: list[Any], code: pickletools.OpcodeInfo, argument: Any) -> None:
    before = code.stack_before
    if pickletools.markobject in before:
        start = len(stack) - 1 - next(i for i, item in enumerate(reversed(stack)) if item is MARK)
        taken = stack[start + 1 :]
        del stack[start:]
        for _ in range(before.index(pickletools.markobject)):
            taken.insert(0, stack.pop())
    else:
        taken = [stack.pop() for _ in before][::-1]
    if code.name == "STOP":
        stack.extend(taken)
    elif code.name in SAME:
        if isinstance(taken[0], dict) and code.name.startswith("SETITEM"):
            pairs = zip(taken[1::2], taken[2::2], strict=True)
            taken[0].update((key, value) for key, value in pairs if isinstance(key, str))
        stack.append(taken[0])
    elif code.name == "REDUCE":
        stack.append(_made(str(taken[0])))
    elif code.name in ("EMPTY_DICT", "DICT"):
        pairs = zip(taken[::2], taken[1::2], strict=True)
        stack.append({key: value for key, value in pairs if isinstance(key, str)})
    elif code.name == "STACK_GLOBAL":
        stack.append(" ".join(map(str, taken)))
    elif isinstance(argument, str) and code.stack_after:
        stack.append(argument)
    else:
        stack.extend(None for _ in code.stack_after)


def _made(function: str) -> Any:
    """What a function gives that a pickle calls."""
    if any(word in function for word in MAKES_TENSORS):
        return TENSOR
    return {} if function == "collections OrderedDict" else None
