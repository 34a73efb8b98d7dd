"""Finished images as the bytes of an answer."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from udit.evaluation.npz import FACTS
from udit.images import PROMPT_SIDE, grid, png_bytes, to_image
from udit.run.classes import Classes
from udit.serving.queue import Drawn
from udit.serving.requests import Output

TYPES: dict[Output, str] = {
    "png": "image/png",
    "grid": "image/png",
    "npz": "application/octet-stream",
    "json": "application/json",
}


@dataclass(frozen=True)
class Answer:
    """A body and its media type."""

    body: bytes
    media_type: str


def encode(images: Sequence[Drawn], output: Output, classes: Classes) -> Answer:
    """Images in one of the forms that a request may ask for; every PNG has a text chunk as those of ``udit sample``."""
    pixels = torch.stack([_pixels(image) for image in images])
    labels = [image.settings["label"] for image in images if "label" in image.settings]
    if output == "npz":
        stream = io.BytesIO()
        arrays = {"arr_0": pixels.permute(0, 2, 3, 1).numpy()} | (
            {"arr_1": np.array(labels, np.int64)} if labels else {}
        )
        facts = json.dumps({"images": [image.settings for image in images]})
        np.savez(stream, allow_pickle=False, **arrays, **{FACTS: np.array(facts)})
        body = stream.getvalue()
    elif output == "grid":
        own = ("seed", "label", "class", "prompt")
        common = {key: value for key, value in images[0].settings.items() if key not in own}
        prompts = [image.settings["prompt"] for image in images if "prompt" in image.settings]
        titles = prompts or [classes.title(label) for label in labels]
        sheet = grid(pixels, titles, side=PROMPT_SIDE if prompts else 64, numbers=labels)
        body = png_bytes(
            sheet, common | {"images": [{k: v for k, v in i.settings.items() if k in own} for i in images]}
        )
    elif output == "json":
        each = [{"settings": image.settings, "png": _base64(image)} for image in images]
        body = json.dumps({"images": each}).encode()
    else:
        body = _png(images[0])
    return Answer(body, TYPES[output])


def _pixels(image: Drawn) -> Tensor:
    return torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8).reshape(image.shape)


def _png(image: Drawn) -> bytes:
    return png_bytes(to_image(_pixels(image)), image.settings)


def _base64(image: Drawn) -> str:
    return base64.b64encode(_png(image)).decode("ascii")
