"""What all configs share: frozen, strict, and checked when they are made. No torch and no files here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from udit.errors import UserError, nearest

S = TypeVar("S", bound=BaseModel)

NOT_A_NUMBER = ("int_type", "float_type")
"""Pydantic's types of the error on a value that is no number."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Spec(BaseModel):
    """A frozen description of one part. Unknown keys, wrong types, NaN and infinity are refused."""

    # validators are built at first use: a command uses few of all specs
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Fields take numbers and booleans as they are: pydantic would read true as 1, "10" as 10 and 1 as true."""
        schema: CoreSchema = _strict(handler(source), cls)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, dict) and cls.model_config.get("extra") == "forbid":
            for key in values:
                if key not in cls.model_fields:
                    hint = nearest(str(key), cls.model_fields)
                    raise PydanticCustomError("unknown_key", "unknown key {key}{hint}", {"key": str(key), "hint": hint})
        return values

    def replace(self, **changes: Any) -> Self:
        """A checked copy with some fields changed; a section without a ``kind`` is of the kind that stands there.

        Raises:
            UserError: an unknown field (with the nearest one) or a value the field refuses.
        """
        own = {key: getattr(self, key) for key in type(self).model_fields}  # a dump would lose fields of subclasses
        for key, value in changes.items():
            kind = getattr(own.get(key), "kind", None)
            own[key] = {"kind": kind, **value} if kind and isinstance(value, dict) else value
        return parse(type(self), own, where=type(self).__name__)


def parse(spec: type[S], values: dict[str, Any], where: str = "") -> S:
    """``spec`` from plain values, with pydantic's report in one line.

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
        raise UserError(_one_line(error.errors(include_url=False), values, where)) from None


def parse_kind(union: Any, values: Any, where: str) -> Any:
    """The member of a union of specs that ``values["kind"]`` names; errors are those of that member alone.

    Args:
        union: ``Annotated[A | B, Field(discriminator="kind")]``.
        values: a mapping, or a spec, which is returned as it is.
        where: prefix for the key in the message.

    Raises:
        UserError: an unknown kind or key, or a value out of range.
    """
    if isinstance(values, Spec):
        return values
    kinds = {spec.model_fields["kind"].default: spec for spec in get_args(get_args(union)[0])}
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{where}.kind is {kind!r}{nearest(str(kind), kinds)}")
    return parse(kinds[kind], values, where=where)


def differing_keys(old: Any, new: Any, free: frozenset[str] = frozenset(), path: str = "") -> list[str]:
    """Dotted keys, outside ``free``, at which two nested dicts of plain values differ."""
    if path in free or old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        dotted = f"{path}." if path else ""
        return [key for k in {**old, **new} for key in differing_keys(old.get(k), new.get(k), free, f"{dotted}{k}")]
    return [path]


def value_at(values: Any, key: str) -> Any:
    """The value of a dotted key in nested dicts; None where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _strict(schema: Any, owner: type[BaseModel]) -> Any:
    """A core schema of pydantic's in which numbers and booleans are not converted; specs within see to themselves."""
    if isinstance(schema, list | tuple):
        return type(schema)(_strict(part, owner) for part in schema)
    if not isinstance(schema, dict) or schema.get("cls", owner) is not owner:
        return schema
    match schema.get("type"):
        case "bool" | "float":
            return {**schema, "strict": True}
        case "int":  # not strict: YAML's 1e5 is a float, and a whole number
            return core_schema.no_info_before_validator_function(_number, schema)
    return {key: value if key == "metadata" else _strict(value, owner) for key, value in schema.items()}


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


def _one_line(problems: Sequence[ErrorDetails], values: Any, where: str) -> str:
    """The first of pydantic's problems, an unknown key before any other."""
    unknown = [p for p in problems if p["type"] == "unknown_key"]
    problem = [*unknown, *(p for p in problems if not _is_number_or_list(p)), *problems][0]
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    path = _path(problem, values)
    if kind == "unknown_key":
        path.append(str(context["key"]))
    dotted = ".".join(path)
    if where and dotted:
        dotted = f"{where}.{dotted}" if where[0].islower() else f"{where}: {dotted}"
    dotted = dotted or where
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "unknown_key":
        return f"unknown key {dotted!r}{context['hint']}"
    if kind == "missing":
        return f"{dotted} is missing; give it a value"
    if kind.startswith("union_tag"):
        tags = [tag.strip(" '") for tag in context.get("expected_tags", "").split(",") if tag.strip()]
        named = value.get("kind") if isinstance(value, dict) else value
        return f"{dotted}.kind is {named!r}" + (nearest(str(named), tags) if tags else "; name one")
    if kind.startswith("model_"):
        return f"{dotted} is {value!r}; it is a section with keys of its own, e.g. {dotted}.KEY=VALUE"
    if kind == "value_error" and (not dotted or isinstance(value, dict | BaseModel)):
        return message if not dotted or message.startswith(dotted) else f"{dotted}: {message}"
    if kind.startswith("bool_"):
        words = [p["ctx"]["expected"] for p in problems if p["type"] == "literal_error" and p["input"] is value]
        return f"{dotted} is {value!r}; it takes {f'true, false or {words[0]}' if words else 'true or false'}"
    if kind in NOT_A_NUMBER:
        return f"{dotted} is {value!r}; it takes a number"
    return f"{dotted} is {value!r}: {message[0].lower()}{message[1:]}"


def _is_number_or_list(problem: ErrorDetails) -> bool:
    """For a list where a number or a list is allowed: the error about the list is more specific."""
    return problem["type"] in NOT_A_NUMBER and isinstance(problem["input"], list | tuple)


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
