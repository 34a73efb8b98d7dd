"""What all configs share: frozen, strict, and checked when they are made. No torch and no files here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from udit.errors import UserError, nearest
from udit.spec.words import one_line, shown

S = TypeVar("S", bound=BaseModel)

MAX_SEED = 2**63 - 1

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


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
                    name = str(key).encode("utf-8", "backslashreplace").decode()  # JSON has halves of characters
                    context = {"key": name, "hint": nearest(name, cls.model_fields)}
                    raise PydanticCustomError("unknown_key", "unknown key {key}{hint}", context)
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
        return parse(type(self), own)


def parse(spec: type[S], values: dict[str, Any], where: str | Path = "") -> S:
    """``spec`` from plain values; what is wrong with them in one line.

    Args:
        spec: the config class.
        values: nested dicts, lists and scalars as YAML or JSON give them.
        where: what the message puts before the key: the key of a section, or the file that was read.

    Raises:
        UserError: the first key that is unknown or holds a value its field refuses.
    """
    try:
        return spec.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise UserError(one_line(problems, spec, values, str(where), isinstance(where, Path))) from None


def kinds_of(union: Any) -> dict[str, type[Spec]]:
    """The members of such a union as ``parse_kind`` takes, by their ``kind``."""
    return {spec.model_fields["kind"].default: spec for spec in get_args(get_args(union)[0])}


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
    kinds = kinds_of(union)
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{where}.kind is {shown(kind)}{nearest(str(kind), kinds)}")
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
        raise PydanticCustomError("int_type", "a whole number")
    return value
