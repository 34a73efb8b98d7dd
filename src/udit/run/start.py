"""A run with initial weights: model, noising process and codec are those of the weights; free of torch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from udit.diffusion.config import PROCESSES
from udit.errors import UserError, nearest
from udit.spec.base import Spec
from udit.spec.words import shown
from udit.text.config import TextConfig

if TYPE_CHECKING:
    from udit.run.config import Run

log = logging.getLogger(__name__)

BOUNDARY = frozenset({"in_channels", "num_classes", "input_size", "learn_sigma", "second_time", "condition_channels"})
"""Of a model's config: keys that may differ from the weights'. Parameters of another shape are initialised."""
DECIDED = ("model", "diffusion", "codec", "sampling")
"""Sections that the weights decide; they replace a recipe's own."""


def follow_start(values: dict[str, Any], origin: dict[str, Any]) -> dict[str, Any]:
    """A run's plain values, with the sections that its initial weights decide where the run does not give them.

    Args:
        values: of the run.
        origin: plain ``model``, ``diffusion``, ``codec``, ``sampling`` and ``text`` of the weights, see
            ``recipes.read_origin``.

    Raises:
        UserError: a key of model or diffusion does not match the weights; names it with both values.
    """
    source = values["init_from"]
    old = dict(origin["model"])
    given = values.get("model") or {}
    given = given.model_dump(mode="json") if isinstance(given, Spec) else dict(given)
    for key, value in given.items():
        if key not in old and key not in BOUNDARY:
            raise UserError(f"unknown key 'model.{key}'{nearest(key, old)}")
        if key not in BOUNDARY and value != old[key]:
            raise UserError(
                f"model.{key} is {shown(value)} and the weights of init_from={source} have {shown(old[key])}; "
                "leave it out"
            )
    text: dict[str, Any] = {}
    if origin.get("text") and not isinstance(values.get("text"), str):  # a text alone is refused where it is parsed
        text = {"text": origin["text"] | _plain(values.get("text"))}
    free = BOUNDARY - {"learn_sigma"}  # decided by the data and the process
    model = {key: value for key, value in old.items() if key not in free} | given
    diffusion, before = _plain(values.get("diffusion")), origin["diffusion"]
    sections = {key: values.get(key) or origin[key] for key in DECIDED}
    if diffusion:
        sections["diffusion"] = _continuing(before, {"kind": before["kind"]} | diffusion, source)
    if sections["diffusion"]["kind"] != before["kind"]:
        sections["sampling"] = values.get("sampling") or {}  # another process has other samplers and steps
    else:
        sections["sampling"] = {**origin["sampling"], **dict(sections["sampling"])}
    return values | sections | text | {"model": model}


def check_language_model(text: TextConfig, origin: dict[str, Any] | None, source: object) -> None:
    """Refuses another language model than the one whose hidden states the initial weights were trained with.

    Args:
        text: the run's, complete.
        origin: plain values of that of the weights; None where they take no texts.
        source: ``init_from``.

    Raises:
        UserError: digests or layers differ.
    """
    if not origin:
        return
    if origin.get("sha256") not in (None, text.sha256):
        raise UserError(
            f"the language model {text.source!r} is {str(text.sha256)[:12]} (sha256) and the weights of "
            f"init_from={source} were trained with {str(origin['sha256'])[:12]}; give that one"
        )
    layers = origin.get("layers")
    if layers and text.layers is not None and [*text.layers] != [*layers]:
        raise UserError(
            f"text.layers is {[*text.layers]} and the weights of init_from={source} read {[*layers]}; leave it out"
        )


def _continuing(before: dict[str, Any], given: dict[str, Any], source: str) -> dict[str, Any]:
    """The section of a process, with what weights that were trained with the same or another one decide of it.

    Raises:
        UserError: weights of that process are of no use to it, or a key does not match them.
    """
    process = PROCESSES.get(str(given["kind"]))
    taken = None if process is None else process.continuing(before)
    if taken is None:
        trained = ", ".join(f"{key} {before[key]}" for key in ("kind", "path", "predict") if key in before)
        raise UserError(
            f"diffusion.kind is {shown(given['kind'])} and the weights of init_from={source} were trained with "
            f"{trained}, from which it cannot go on; leave it out"
        )
    for key, value in taken.items():
        if given.get(key, value) != value:
            raise UserError(
                f"diffusion.{key} is {shown(given[key])} and the weights of init_from={source} were trained with "
                f"{shown(value)}; leave it out"
            )
    return taken | given


def _plain(section: Any) -> dict[str, Any]:
    return section.model_dump(mode="json") if isinstance(section, Spec) else dict(section or {})


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


def check_beginning(run: Run) -> None:
    """Refuses a new run that makes no sense from its first step; logs what is odd. One that goes on may do it.

    Raises:
        UserError: an adapter of no weights.
    """
    if run.init_from is None and run.training.adapter is not None:
        raise UserError(
            "training.adapter changes trained weights by little; say which, e.g. init_from=demo:digits, or leave "
            "adapter out"
        )
    if run.init_from is None and run.diffusion.kind == "consistency":
        log.warning(
            "diffusion.kind=consistency goes on from a trained flow and begins with untrained weights; set init_from"
        )
