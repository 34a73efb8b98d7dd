"""What is wrong with a value of a config, in one line of our own words: the only reader of pydantic's reports."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from udit.errors import nearest

LONGEST = 60
"""Characters of a value that a message repeats."""


@dataclass(frozen=True)
class Takes:
    """What a field takes, in the words of a message: ``Annotated[Path, Takes("a folder")]``."""

    what: str


TYPES = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "path": "a path",
    "bool": "true or false",
    "dict": "keys of its own",
}
"""What a value must be, by the beginning of pydantic's name of the error."""
LISTS = ("tuple_type", "list_type", "set_type", "frozen_set_type", "too_long", "too_short")
BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
"""Pydantic's name of the error -> the rule, and the name of its limit."""


def one_line(problems: Sequence[ErrorDetails], spec: type[BaseModel], values: Any, where: str, file: bool) -> str:
    """The most telling one of pydantic's problems with ``values``: key, value and what it takes.

    Args:
        problems: of one validation.
        spec: the class that the values are of.
        values: what was validated.
        where: the key of the values, or the file that holds them; may be empty.
        file: whether ``where`` is a file.
    """
    problem = sorted(problems, key=_rank)[0]
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    path = _path(problem, values)
    short = kind == "missing" and path and path[-1].isdigit()
    if kind == "unknown_key":
        path.append(str(context["key"]))
    elif short:  # an entry of a list of fixed length
        path.pop()
    key = _joined(where, ".".join(path), file)
    if kind == "unknown_key":
        return f"unknown key {key!r}{context['hint']}"
    if kind == "missing" and not short:
        return f"{key} is missing; give it a value"
    if kind.startswith("union_tag"):
        tags = [tag.strip(" '") for tag in context.get("expected_tags", "").split(",") if tag.strip()]
        named = value.get("kind") if isinstance(value, dict) else value
        return f"{key}.kind is {shown(named)}" + (nearest(str(named), tags) if tags else "; name one")
    if kind.startswith("model_"):
        return f"{key} is {shown(value)}; it is a section with keys of its own, e.g. {key}.KEY=VALUE"
    if kind in ("value_error", "assertion_error"):
        message = str(context.get("error") or problem["msg"])
        if not key or isinstance(value, dict | BaseModel):
            return message if not key or message.startswith(key) else f"{key}: {message}"
        return f"{key} is {shown(value)}: {message}"
    field = _field(spec, path)
    if kind in BOUNDS:
        rule, limit = BOUNDS[kind]
        return f"{key} is {shown(value)}; it must be {rule} {_number(context[limit])}"
    if kind == "finite_number":
        return f"{key} is {shown(value)}; it must be finite"
    if short:
        return f"{key} has too few entries; it takes {_list(field)}"
    same = [p for p in problems if _path(p, values)[: len(path)] == path and p["input"] is value]
    wanted = " or ".join(dict.fromkeys(_wanted(p, field) for p in same if p["type"] not in BOUNDS))
    wanted = wanted.replace("true or false or", "true, false or")
    quoted = (
        f"; in quotes it is one: '{path[-1]}=\"{shown(value)}\"'"
        if wanted == "text" and _is_scalar(value) and path
        else ""
    )
    return f"{key} is {shown(value)}; {'give' if value is None else 'it takes'} {wanted}{quoted}"


def shown(value: Any) -> str:
    """A value as a message repeats it: as YAML writes it, and not too much of it."""
    if value is None or (isinstance(value, str) and not value):
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | PurePath):
        text = repr(str(value))
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, Mapping):
        text = f"{{{', '.join(f'{key}: {shown(part)}' for key, part in value.items())}}}"
    elif isinstance(value, int | float):
        text = repr(value)
    else:
        text = f"an object of another kind ({type(value).__name__})"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _rank(problem: ErrorDetails) -> int:
    """Unknown keys first; then broken rules; last that a value is of another type, of which a union reports several."""
    kind = problem["type"]
    if kind == "unknown_key":
        return 0
    if kind.endswith(("_type", "_parsing")) or kind == "literal_error":
        in_list = kind in ("int_type", "float_type") and isinstance(problem["input"], list | tuple)
        return 3 if in_list or kind in LISTS else 2
    return 1


def _joined(where: str, key: str, file: bool) -> str:
    return f"{where}{': ' if file else '.'}{key}" if where and key else where or key


def _wanted(problem: ErrorDetails, field: Any) -> str:
    kind = problem["type"]
    told = [part.what for part in _annotations(field) if isinstance(part, Takes)]
    if told:
        return told[0]
    if kind in LISTS:
        return _list(field)
    if kind in ("literal_error", "enum"):
        return str(problem.get("ctx", {})["expected"])
    if kind == "int_from_float":
        return TYPES["int"]
    return next((word for start, word in TYPES.items() if kind.startswith(f"{start}_")), "another kind of value")


def _list(field: Any) -> str:
    """A list with an example: the field's default, or one for its type."""
    default = getattr(field, "default", None)
    if isinstance(default, tuple | list) and 0 < len(default) <= 9:
        return f"a list, e.g. {shown(default)}"
    for kind in _annotations(field):
        if get_origin(kind) in (tuple, list):
            entries = [entry for entry in get_args(kind) if entry is not Ellipsis]
            if str in entries:
                return "a list, e.g. [cat, dog]"
            fixed = Ellipsis not in get_args(kind)
            return (
                f"a list of {len(entries)}, e.g. [{', '.join(['1'] * len(entries))}]"
                if fixed
                else "a list, e.g. [1, 1, 2]"
            )
    return "a list, e.g. [1, 1, 2]"


def _field(spec: Any, path: list[str]) -> Any:
    """The field at a path of keys, through sections and unions of them; None where it is not known."""
    field = None
    for key in path:
        if key.isdigit():
            continue
        specs = [spec] if field is None else specs_of(field)
        field = next((s.model_fields[key] for s in specs if key in s.model_fields), None)
        if field is None:
            return None
    return field


def _annotations(field: Any) -> Iterator[Any]:
    """A field's metadata and all parts of its annotation."""
    if field is None:
        return
    yield from getattr(field, "metadata", ())
    stack = [getattr(field, "annotation", None)]
    while stack:
        part = stack.pop()
        yield part
        if get_origin(part) in (Union, types.UnionType, Annotated):
            stack += reversed(get_args(part))


def specs_of(field: Any) -> list[type[BaseModel]]:
    """The config classes among which a field's annotation chooses."""
    return [part for part in _annotations(field) if isinstance(part, type) and issubclass(part, BaseModel)]


def _number(limit: Any) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float)


def _path(problem: ErrorDetails, values: Any) -> list[str]:
    """The keys that lead to a problem; pydantic's path also has the members of unions that it tried."""
    path = []
    for i, part in enumerate(problem["loc"]):
        if isinstance(values, BaseModel):
            values = {key: getattr(values, key) for key in type(values).model_fields}
        if isinstance(part, int) or (isinstance(values, Mapping) and part in values):
            path.append(str(part))
            try:
                values = values[part]
            except (LookupError, TypeError):
                values = None
        elif problem["type"] == "missing" and i == len(problem["loc"]) - 1:
            path.append(str(part))
    return path
