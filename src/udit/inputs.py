"""What generation takes beside seeds and labels: vectors from a file, images to start from, a weaker model."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from udit.assemble import System
from udit.data.decode import KNOWN, decode, peek
from udit.data.fields import read_fields
from udit.data.listing import image_files
from udit.errors import UserError, as_list, require_type
from udit.evaluation.sets import GRID
from udit.exporting.find import find_graph, load_graph
from udit.images import has_settings
from udit.interpolation import Between, Through, between
from udit.prompts import NONE_GIVEN
from udit.rng import Seed
from udit.run.classes import Classes, Label
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
    prompts: tuple[str, ...] = ()
    """The texts that they are conditions of, where they are; PNGs carry each image's."""
    negative: str = ""
    """The text that ``null`` is the condition of."""

    def recorded(self, i: int) -> dict[str, Any]:
        """What the PNG of image i says of its condition."""
        row = i % len(self.rows)
        if not self.prompts:
            return {"context": self.name, "row": row}
        return {"prompt": self.prompts[row]} | ({"negative": self.negative} if self.negative else {})

    def of(self, indices: Sequence[int]) -> Tensor:
        """The conditions of some images."""
        return self.rows[[i % len(self.rows) for i in indices]]


def conditions_of_images(
    system: System,
    labels: object,
    prompts: str | Sequence[str] | None,
    negative: str,
    context: Context | str | Path | None,
    guidance: float,
    count: int,
) -> Context | None:
    """The conditions of ``generate``'s images beside labels, from prompts or from a context.

    Args:
        system: the model.
        labels: that were given; None for none.
        prompts: one text, or several in turn.
        negative: the text that guidance compares with.
        context: the conditions themselves, or a file of them.
        guidance: the scale; 1 compares with nothing.
        count: of the images.

    Raises:
        UserError: the model takes others, several of them are given, or its language model is missing or another one.
    """
    if prompts is None and negative:
        raise UserError("a negative prompt is given and no prompt; give one (--prompt)")
    if prompts is None:
        if system.config.text is not None and labels is not None:
            raise UserError("labels were given to a model that takes texts; give prompts (--prompt)")
        if system.config.text is not None and context is None:
            raise UserError(NONE_GIVEN)
        return context if isinstance(context, Context) or context is None else read_context(Path(context))
    texts = [prompts] if isinstance(prompts, str) else as_list("prompts", prompts)
    for text in (*texts, negative):
        require_type("a prompt", text, str, "give a text")
    if labels is not None or context is not None:
        other = "labels" if labels is not None else "a context"
        raise UserError(f"prompts and {other} are given; both are conditions, leave one of them out")
    if not 0 < len(texts) <= count:
        raise UserError(
            f"prompts are {len(texts)} and seeds {count}; give a seed for each prompt, and a prompt at least"
        )
    if negative and system.weak is not None:
        raise UserError(
            "a negative prompt and a weaker model (autoguide) are given and guidance compares with one; leave one of "
            "them out"
        )
    if negative and guidance == 1:
        raise UserError("a negative prompt is given and guidance 1 compares with nothing; give a guidance above 1")
    rows = system.conditions_of([*texts, negative])
    return Context(rows[:-1], rows[-1], prompts=tuple(texts), negative=negative)


def read_prompts(path: Path) -> list[str]:
    """The prompts in a text file, one a line; empty lines are left out.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    try:
        lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; write one prompt a line") from None
    except OSError as error:
        raise UserError(f"the prompts {str(path)!r} cannot be read ({error.strerror}); check the path") from None
    if not any(lines):
        raise UserError(f"{path} holds no prompt; write one a line")
    return [line for line in lines if line]


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
    if told := _scaling(paths, names, height):
        logger.info(told)
    return StartImages(torch.from_numpy(np.stack([decode(file, height, colours) for file in paths])), names)


def _scaling(paths: Sequence[Path], names: Sequence[str], side: int) -> str:
    """What happens to images of another size than the model's; empty where there are none."""
    headers = {name: peek(path) for path, name in zip(paths, names, strict=True)}
    others = [name for name, header in headers.items() if (header.width, header.height) != (side, side)]
    if not others:
        return ""
    first = headers[others[0]]
    whose = repr(others[0]) if len(headers) == 1 else f"{len(others)} of {len(headers)} images, e.g. {others[0]!r}"
    return (
        f"{whose} with {first.width}x{first.height} pixels: the model draws {side}x{side}, so the centre square is "
        "taken and scaled"
    )


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


def labels_of_images(
    wanted: str | Sequence[int | str | Between[Any]] | Through | None, seeds: Sequence[Seed], classes: Classes
) -> list[Label] | None:
    """A label for each seed, or None for a model without classes."""
    if isinstance(wanted, Through):
        return between(classes.labels(wanted.ends), len(seeds))
    if wanted is None and classes.trained > 1 and any(isinstance(seed, Between) for seed in seeds):
        raise UserError("an interpolation between seeds shows one class, and none is named; give labels")
    return classes.each(wanted, len(seeds))


def recorded(what: str, value: Seed | Label) -> dict[str, Any]:
    """A seed or a label as a PNG records it; of a point between two, both and the share of the second."""
    if not isinstance(value, Between):
        return {what: value}
    return {f"{what}s": [value.first, value.second], f"{what}_share": value.share}
