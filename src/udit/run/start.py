"""A run with initial weights: model, noising process and codec are those of the weights; free of torch."""

from __future__ import annotations

from typing import Any

from udit.errors import UserError, nearest
from udit.spec.base import Spec
from udit.spec.words import shown

BOUNDARY = frozenset({"in_channels", "num_classes", "input_size", "learn_sigma"})
"""Of a model's config: keys that may differ from the weights'. Parameters of another shape are initialised."""
DECIDED = ("model", "diffusion", "codec", "sampling")
"""Sections that the weights decide; they replace a recipe's own."""


def follow_start(values: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """A run's plain values, with the sections that its initial weights decide where the run does not give them.

    Args:
        values: of the run.
        origin: plain ``model``, ``diffusion``, ``codec`` and ``sampling`` of the weights, see ``recipes.read_origin``.

    Raises:
        UserError: a key of model or diffusion does not match the weights; names it with both values.
    """
    source = values["init_from"]
    old = dict(origin["model"])
    given = values.get("model") or {}
    given = given.model_dump(mode="json") if isinstance(given, Spec) else dict(given)
    for key, value in given.items():
        if key not in old:
            raise UserError(f"unknown key 'model.{key}'{nearest(key, old)}")
        if key not in BOUNDARY and value != old[key]:
            raise UserError(
                f"model.{key} is {shown(value)} and the weights of init_from={source} have {shown(old[key])}; "
                "leave it out"
            )
    free = BOUNDARY - {"learn_sigma"}  # decided by the data
    model = {key: value for key, value in old.items() if key not in free} | given
    kind = (values.get("diffusion") or {}).get("kind", origin["diffusion"]["kind"])
    if kind != origin["diffusion"]["kind"]:
        raise UserError(
            f"diffusion.kind is {kind!r} and the weights of init_from={source} were trained with "
            f"{origin['diffusion']['kind']!r}; leave it out"
        )
    sections = {key: values.get(key) or origin[key] for key in DECIDED}
    sections["sampling"] = {**origin["sampling"], **dict(sections["sampling"])}
    return values | sections | {"model": model}


def trained_on(model: dict[str, Any], codec: dict[str, Any]) -> dict[str, int | list[int]]:
    """Size and channels of the images of which a codec makes a model's input; only what follows from both.

    Args:
        model: plain values with ``input_size`` (a side, or [H, W]) and ``in_channels``.
        codec: plain values; a VAE decides the channels by itself.
    """
    found: dict[str, int | list[int]] = {}
    kind, factor = codec.get("kind", "identity"), codec.get("factor")
    factor = 1 if kind == "identity" else factor
    size = model.get("input_size")
    sides = [size, size] if isinstance(size, int) else list(size or ())
    if not isinstance(factor, int) or factor < 1:
        return found
    if len(sides) == 2 and all(isinstance(side, int) for side in sides):
        height, width = (side * factor for side in sides)
        found["size"] = height if height == width else [height, width]
    channels = model.get("in_channels")
    if kind != "vae" and isinstance(channels, int) and channels // factor**2 in (1, 3) and not channels % factor**2:
        found["channels"] = channels // factor**2
    return found
