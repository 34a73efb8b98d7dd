"""What all configs share: frozen, strict, and checked when they are made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from udit.errors import UserError, nearest

S = TypeVar("S", bound=BaseModel)

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Spec(BaseModel):
    """A frozen description of one part. Unknown keys, wrong types, NaN and infinity are refused."""

    # validators are built when first needed: a command needs a few of all the specs there are
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _no_guessing(cls, values: Any) -> Any:
        """Pydantic would read true as 1, "10" as 10 and 1 as true: slips of the pen, not values."""
        for key, value in values.items() if isinstance(values, dict) else ():
            kinds = _leaves(cls.model_fields[key].annotation) if key in cls.model_fields else set()
            for item in value if isinstance(value, list | tuple) else (value,):
                refused = (int | float) if str in kinds else (int | float | str)
                if bool in kinds and isinstance(item, refused) and not isinstance(item, bool):
                    raise ValueError(f"{key} is {item!r}; it takes true or false")
                if kinds & {int, float} and isinstance(item, bool | str) and not kinds & {bool, str}:
                    raise ValueError(f"{key} is {item!r}; it takes a number")
        return values

    def write(self, path: Path) -> None:
        """Writes all fields as JSON; a half-written file never bears the name."""
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(path)

    def replace(self, **changes: Any) -> Self:
        """A checked copy with some fields changed; a section without a ``kind`` is of the kind that stands there.

        Raises:
            UserError: an unknown field (with the nearest one) or a value the field refuses.
        """
        own = {key: getattr(self, key) for key in type(self).model_fields}  # a dump would forget what subclasses add
        for key, value in changes.items():
            kind = getattr(own.get(key), "kind", None)
            own[key] = {"kind": kind, **value} if kind and isinstance(value, dict) else value
        return parse(type(self), own, where=type(self).__name__)


def parse(spec: type[S], values: dict[str, Any], where: str = "") -> S:
    """``spec`` from plain values, with pydantic's report told as one line.

    Args:
        spec: the config class.
        values: nested dicts, lists and scalars as YAML or JSON give them.
        where: prefix for the key in the message.

    Raises:
        UserError: the first key that is unknown or holds a value its field refuses.
    """
    try:
        return spec.model_validate(values)
    except ValidationError as error:
        raise UserError(_one_line(spec, error, where)) from None


def differing_keys(old: Any, new: Any, free: frozenset[str] = frozenset(), path: str = "") -> list[str]:
    """Dotted keys, outside ``free``, at which two nested dicts of plain values differ."""
    if path in free or old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        dotted = f"{path}." if path else ""
        return [key for k in {**old, **new} for key in differing_keys(old.get(k), new.get(k), free, f"{dotted}{k}")]
    return [path]


def _one_line(spec: type[BaseModel], error: ValidationError, where: str) -> str:
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path = [str(part) for part in problem["loc"]]
    holder = _holder(spec, path)
    dotted = ".".join(part for part in _without_tags(spec, path))
    if where and dotted:
        dotted = f"{where}.{dotted}" if where[0].islower() else f"{where}: {dotted}"
    dotted = dotted or where
    if problem["type"] == "extra_forbidden":
        return f"unknown key {dotted!r}" + (nearest(path[-1], holder.model_fields) if holder else "")
    if problem["type"] == "missing":
        return f"{dotted} is missing; give it a value"
    if problem["type"].startswith("union_tag"):
        tags = [t.strip(" '") for t in problem.get("ctx", {}).get("expected_tags", "").split(",") if t.strip()]
        kind = problem["input"].get("kind") if isinstance(problem["input"], dict) else problem["input"]
        return f"{dotted}.kind is {kind!r}" + (nearest(str(kind), tags) if tags else "; name one")
    if problem["type"].startswith("model_"):
        return f"{dotted} is {problem['input']!r}; it is a section with keys of its own, e.g. {dotted}.KEY=VALUE"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    value = problem.get("input")
    if problem["type"] == "value_error" and (not dotted or isinstance(value, dict | BaseModel)):
        return message if not dotted or message.startswith(dotted) else f"{dotted}: {message}"
    if problem["type"].startswith("bool_"):
        words = [
            p["ctx"]["expected"]
            for p in problems
            if p["type"] == "literal_error" and p["loc"][:-1] == problem["loc"][:-1]
        ]
        return f"{dotted} is {value!r}; it takes true, false{''.join(f' or {word}' for word in words)}"
    return f"{dotted} is {value!r}: {message[0].lower()}{message[1:]}"


def _walk(spec: type[BaseModel], path: list[str]) -> tuple[type[BaseModel] | None, list[str]]:
    """Follows an error's path through nested specs; drops the union tags pydantic puts between keys."""
    holder: type[BaseModel] | None = spec
    kept: list[str] = []
    pending: list[type[BaseModel]] = []
    leaf = False
    for part in path:
        if leaf and not part.isdigit():
            continue  # which member of a union of plain types was tried
        if pending:
            tagged = [s for s in pending if part in (s.__name__, _tag(s))]
            pending = []
            if tagged:
                holder = tagged[0]
                continue
        kept.append(part)
        field = holder.model_fields.get(part) if holder else None
        if field is None:
            continue
        specs = _specs_in(field.annotation)
        if len(specs) == 1:
            holder = specs[0]
        elif specs:
            pending = specs
        leaf = not specs
    return holder, kept


def _holder(spec: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    return _walk(spec, path[:-1])[0]


def _without_tags(spec: type[BaseModel], path: list[str]) -> list[str]:
    return _walk(spec, path)[1]


def _tag(spec: type[BaseModel]) -> str:
    field = spec.model_fields.get("kind")
    return str(field.default) if field else ""


def _leaves(annotation: Any) -> set[Any]:
    """The plain types an annotation is made of, the types of its literals among them."""
    args = get_args(annotation)
    if not args:
        return {annotation if isinstance(annotation, type) else type(annotation)}
    return {leaf for arg in args for leaf in _leaves(arg)}


def _specs_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    args = getattr(annotation, "__args__", ()) or ()
    return [spec for arg in args for spec in _specs_in(arg)]
