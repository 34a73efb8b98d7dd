"""Two models, or two checkpoints of one, on the same seeds and classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from udit.diffusion.config import SamplingConfig
from udit.errors import UserError
from udit.images import grid, save_png, to_image
from udit.run.system import SystemConfig
from udit.studio.drawing import Drawing, draw
from udit.studio.session import Shown, Studio, Wanted, captions_of, progress_text, told
from udit.studio.sheet import SMALL, data_uri, sheet, status

LETTERS = ("A", "B")


def compare(studio: Studio, one: Wanted, other: Wanted) -> Iterator[Shown]:
    """Draws the same seeds and classes from two models, and shows each pair side by side.

    Args:
        studio: where the models are.
        one: the first; its seeds and classes count for both.
        other: the second.
    """
    return told(_compare(studio, one, other))


def _compare(studio: Studio, one: Wanted, other: Wanted) -> Iterator[Shown]:
    choices = [studio.place.choice(each.model) for each in (one, other)]
    if choices[0] == choices[1] and one == other:
        raise UserError("A and B are the same weights with the same settings; choose something else for B")
    configs = [studio.shelf.config(choice) for choice in choices]
    if len({config.text is not None for config in configs}) > 1:
        raise UserError("only one of the two takes texts, so that their images make no pairs; choose another one")
    first = studio.request(choices[0], one)
    same = dataclasses.replace(other, seeds=one.seeds, prompts=one.prompts, negative=one.negative)
    second = studio.request(choices[1], dataclasses.replace(same, classes=same_classes(first, configs)))
    if len(first.seeds) != len(second.seeds):
        raise UserError("only one of the two has classes, so that their images make no pairs; choose another one")
    captions, finished, facts = captions_of(configs[0], first), list[list[Tensor]](), []
    for i, (choice, wanted, each) in enumerate(zip(choices, (first, second), (one, other), strict=True)):
        yield Shown(None, status(f"Loading {choice.title} …", i / 2))
        system = studio.system(choice, each, wanted)
        request = wanted.read_by(system)
        facts.append(request.generation(system).settings())
        images: list[Tensor] = []
        for frame in draw(system, request, each.view):
            images = frame.images
            left, right = (finished[0], images) if finished else (images, [])
            shown = pairs(left, right, captions, first.columns)
            yield Shown(shown, status(f"{LETTERS[i]}: {progress_text(frame)}", (i + frame.done / frame.total) / 2))
        finished.append(images)
    path = studio.room() / f"{choices[0].file_name}-and-{choices[1].file_name}.png"
    both: dict[str, object] = {
        "compared": facts,
        "seeds": list(first.seeds),
        "labels": None if first.labels is None else list(first.labels),
    }
    if first.prompts is not None:
        both |= {"prompts": list(first.prompts)} | ({"negative": first.negative} if first.negative else {})
    save_pairs(path, finished, captions, first.columns, both)
    apart = told_apart(one, other, [first.sampling, second.sampling]) if choices[0] == choices[1] else ""
    sides = f"Left A: {choices[0].title}; right B: {choices[1].title}{apart}. "
    yield Shown(None, status(sides + difference(finished, configs)), path)


def told_apart(one: Wanted, other: Wanted, settings: Sequence[SamplingConfig]) -> str:
    """What differs between two drawings from one model, of A and of B."""
    a, b = (
        {"weights": each.weights, "weaker model": each.weaker or each.average or "none", **setting.model_dump()}
        for each, setting in zip((one, other), settings, strict=True)
    )
    return " (" + ", ".join(f"{key} {a[key]} and {b[key]}" for key in a if a[key] != b[key]) + ")"


def same_classes(first: Drawing, configs: Sequence[SystemConfig]) -> list[str | int]:
    """The classes of the first model's drawing as the second one calls them: by name where both have names."""
    labels = [label for label in (first.labels or ())[: first.columns] if isinstance(label, int)]
    named = [bool(config.id2label) for config in configs]
    return [configs[0].classes.title(label) if all(named) else label for label in labels]


def pairs(left: Sequence[Tensor], right: Sequence[Tensor], captions: Sequence[str], columns: int) -> str:
    """Figures of two images each, A and B; those still to come are hollow."""
    cells = []
    for i, caption in enumerate(captions):
        images = [side[i] if i < len(side) else None for side in (left, right)]
        both = "".join(
            "<div class='hollow'></div>"
            if image is None
            else f"<img alt='{LETTERS[k]}: {escape(caption, quote=True)}' src='{data_uri(to_image(image))}'>"
            for k, image in enumerate(images)
        )
        cells.append(f"<figure class='pair'><div>{both}</div><figcaption>{escape(caption)}</figcaption></figure>")
    large = bool(left) and max(left[-1].shape[1:]) > SMALL
    return sheet(cells, columns, large=large, kind="pairs")


def save_pairs(
    path: Path, sides: Sequence[Sequence[Tensor]], captions: Sequence[str], columns: int, facts: dict[str, object]
) -> None:
    """One PNG of all pairs, A to the left of B; images of different sizes are enlarged to the larger one."""
    height, width = (max(side[0].shape[k] for side in sides) for k in (1, 2))
    channels = max(side[0].shape[0] for side in sides)
    images, titles = [], []
    for i, caption in enumerate(captions):
        for letter, side in zip(LETTERS, sides, strict=True):
            image = side[i].repeat_interleave(height // side[i].shape[1], 1)
            image = image.repeat_interleave(width // side[i].shape[2], 2)
            images.append(image.expand(channels, -1, -1))
            titles.append(f"{letter} {caption}")
    if len({image.shape for image in images}) > 1:
        raise UserError("the images of A and B have sizes of which one is no multiple of the other; save them apart")
    save_png(grid(torch.stack(images), titles, 2 * (columns or 4)), path, facts)


def difference(sides: Sequence[Sequence[Tensor]], configs: Sequence[SystemConfig]) -> str:
    """How far the images of each pair differ, in words."""
    a, b = (torch.stack(list(side)).float() for side in sides)
    if a.shape != b.shape:
        return f"{len(a)} pairs; A has images of {size(a)} and B of {size(b)}"
    noise = (
        "" if len({(c.model.in_channels, *c.model.size) for c in configs}) == 1 else ", which start from other noise"
    )
    return f"{len(a)} pairs{noise}; a pixel differs by {float((a - b).abs().mean()):.1f} of 255 levels on average"


def size(images: Tensor) -> str:
    """E.g. ``3x32x32``."""
    return "x".join(map(str, images.shape[1:]))
