"""What generation takes beside seeds and labels: vectors from a file, images to start from, a weaker model."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from udit.assemble import System
from udit.data.decode import KNOWN, decode
from udit.data.fields import read_fields
from udit.data.listing import image_files
from udit.errors import UserError
from udit.evaluation.sets import GRID
from udit.exporting.find import find_graph, load_graph
from udit.images import has_settings
from udit.store import load
from udit.training.posthoc import posthoc_ema

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """Conditions of a model that takes vectors, e.g. a text encoder's output."""

    rows: Tensor
    """float [N, tokens, width]; image i has row i modulo N."""
    null: Tensor | None = None
    """float [tokens, width]: the empty condition, which guidance needs."""
    name: str = ""
    """Of the file they come from; PNGs carry it."""

    def of(self, indices: Sequence[int]) -> Tensor:
        """The conditions of some images."""
        return self.rows[[i % len(self.rows) for i in indices]]


def read_context(path: Path) -> Context:
    """The conditions in a ``.safetensors`` or ``.npz`` file.

    Args:
        path: holds ``context``, floats [N, tokens, width], and for guidance ``null``, floats [tokens, width].

    Raises:
        UserError: the file is missing, damaged, or does not hold finite floats under these names.
    """
    damaged = (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        else:
            found = load_file(path)
    except damaged as error:
        detail = "it is not there" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200]
        raise UserError(f"cannot read the context {path}: {detail}; name a .safetensors or .npz file") from None
    rows, null = found.get("context"), found.get("null")
    if rows is None or rows.ndim < 2 or not len(rows):
        held = "nothing" if rows is None else f"{list(rows.shape)}"
        raise UserError(f"{path} holds {held} under 'context'; write floats [N, tokens, width], and 'null' beside them")
    for key, part in (("context", rows), ("null", null)):
        if part is not None and not (part.is_floating_point() and bool(part.isfinite().all())):
            kind = str(part.dtype).removeprefix("torch.")
            held = "with numbers that are not finite" if part.is_floating_point() else f"as {kind}"
            raise UserError(f"{path} holds {key!r} {held}; write finite floats")
    return Context(rows.float(), None if null is None else null.float(), path.name)


@dataclass(frozen=True)
class StartImages:
    """Images that sampling starts from."""

    pixels: Tensor
    """uint8 or, of a condition, float32 [M, C, H, W]; image i has number i modulo M."""
    names: Sequence[str]
    """Of each one; PNGs carry it. Empty where they have none."""

    def of(self, indices: Sequence[int]) -> Tensor:
        """Those of some images."""
        return self.pixels[[i % len(self.pixels) for i in indices]]

    def name(self, i: int) -> str | None:
        """Of the one that image i starts from."""
        return self.names[i % len(self.pixels)] if self.names else None


def start_images(source: str | Path | Tensor, system: System) -> StartImages:
    """Images to start from: of a file or a folder, decoded and cropped as training does, or as they are given.

    Args:
        source: an image file; a folder of them, whose own images and those below it are taken in order of their paths
            (a grid of ``udit sample`` is left out); or uint8 [M, C, H, W] of the size that the model draws.
        system: whose channels and size they get.

    Raises:
        UserError: there are none, one cannot be read, or the model draws none that a file can hold.
    """
    system.config.model.refuse_clips("from_image")
    channels, height, width = system.image_shape
    if isinstance(source, Tensor):
        if source.ndim != 4 or not len(source):
            raise UserError(f"from_image is {list(source.shape)}; give a file, a folder, or uint8 [M, C, H, W]")
        return StartImages(source, ())
    path = Path(source).expanduser()
    if path.is_dir():
        paths = [file for file in image_files(path) if not (file.name == GRID and has_settings(file))]
        names = [file.relative_to(path).as_posix() for file in paths]
    else:
        paths, names = [path], [path.name]
    if not paths:
        raise UserError(f"{path} holds no {KNOWN} to start from; give a folder of images, or one image")
    if channels not in (1, 3) or height != width:
        raise UserError(
            f"the model draws {height}x{width} images of {channels} channels and files become squares of 1 or 3; hand "
            "it pixels in Python (udit.generate, from_image)"
        )
    colours: Literal[1, 3] = 3 if channels == 3 else 1
    return StartImages(torch.from_numpy(np.stack([decode(file, height, colours) for file in paths])), names)


def condition_images(source: str | Path | Tensor, system: System) -> StartImages:
    """Images of which a condition is made, as those to start from; of a model of fields an ``.npz`` of them.

    Args:
        source: as of ``start_images``; or a file with ``fields``, float [M, C, H, W].
        system: that sees the condition.

    Raises:
        UserError: there are none, they have another shape, or the model sees none.
    """
    if system.config.condition is None:
        raise UserError("a condition was given and the model sees nothing beside the noisy image; leave it out")
    if isinstance(source, Tensor) or system.config.codec.kind != "field":
        return start_images(source, system)
    path = Path(source).expanduser()
    fields = read_fields(path)
    if fields.shape[1:] != system.image_shape:
        shapes = ["{} channels of {}x{}".format(*shape) for shape in (fields.shape[1:], system.image_shape)]
        raise UserError(
            f"{path} holds fields with {shapes[0]} and the model makes {shapes[1]}; take fields of that shape"
        )
    return StartImages(torch.from_numpy(fields), [f"{path.name} {i}" for i in range(len(fields))])


def weaker_model(source: System | str | Path | float, model: System | str | Path) -> System:
    """The model that autoguidance compares with.

    Args:
        source: a loaded system; a run folder, a model folder or a hub id; or the length (sigma_rel) of an EMA of the
            model's own run, which needs ``training.posthoc_ema``.
        model: that it guides.

    Raises:
        UserError: there is none, or a length for something else than a run folder.
    """
    if isinstance(source, System):
        return source
    if isinstance(source, int | float):
        if isinstance(model, System):
            raise UserError(
                f"autoguide is the EMA length {source:g} and the model is loaded already; give the run's folder, or a "
                "system (udit.posthoc_ema)"
            )
        average = posthoc_ema(model, float(source))
        if not average.spanned:
            logger.warning(
                "the snapshots of %s hardly represent an EMA of length %g: take one between theirs, e.g. 0.05",
                model,
                source,
            )
        return average.system
    graph = find_graph(source, None)
    return load_graph(graph, source, "ema") if graph else load(source)
