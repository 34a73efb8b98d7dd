"""The latent cache: every image encoded by a codec, read from memory-mapped shards; free of torch.

A folder with ``plan.json`` (everything that decides the bytes), ``shard-00000.safetensors`` and so on (``raw``:
[n, views, c, h, w], of each crop, then mirrored; of a vision model, ``features`` [n, views, Z, h, w]),
``index.safetensors`` (labels, names, captions, test images) and, written last, ``manifest.json`` with the sha256 of
every file. ``data/encode.py`` writes it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from udit.data.buckets import Buckets, buckets_of
from udit.data.cache_config import INDEX, MANIFEST, PLAN, LatentManifest, LatentPlan, Shard, shard_name
from udit.data.captions import Captions, captions_of
from udit.data.names import Names
from udit.data.sources import Labels, Source
from udit.errors import UserError
from udit.files import file_facts, unseal
from udit.progress import progress_bar
from udit.spec.base import parse
from udit.spec.digest import FileFacts

Raw = NDArray[Any]
MAX_BYTES = 64_000_000
"""Largest plan or manifest that is read; ImageNet's has some 200,000 bytes."""


def read_manifest(root: Path) -> LatentManifest:
    """The manifest of a finished cache.

    Raises:
        UserError: there is none, the cache is unfinished, or its manifest is damaged or altered.
    """
    root = root.expanduser()
    if not (root / MANIFEST).is_file():
        unfinished = (root / PLAN).is_file()
        state = (
            "is unfinished; run the same `udit encode` again" if unfinished else "is not there; give the folder of one"
        )
        raise UserError(f"the latent cache {str(root)!r} {state}, or write one with `udit encode RECIPE --out FOLDER`")
    return parse(LatentManifest, read_sealed(root / MANIFEST), where=root / MANIFEST)


def read_sealed(path: Path) -> dict[str, Any]:
    """A JSON file that ends with its own digest.

    Raises:
        UserError: it cannot be read, or does not match its digest.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, more than any manifest")
        return unseal(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        detail = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        raise UserError(f"{path} is damaged or altered ({detail}); remove it and run `udit encode` again") from None


class LatentCache:
    """A source of raw latents in place of images."""

    def __init__(self, root: Path) -> None:
        """Reads manifest and index; opens no shard.

        Raises:
            UserError: no such cache, unfinished, or its manifest and index are damaged or do not belong together.
        """
        self.root = root.expanduser()
        self.manifest = read_manifest(self.root)
        self.plan = self.manifest.plan
        _check_file(self.root / INDEX, self.manifest.index)
        self.names: Sequence[str]
        self.labels, self.names, self.held_out, captions = _read_index(self.root / INDEX)
        if captions is not None:
            self.captions = captions
        count = self.plan.count
        if not len(self.labels) == len(self.names) == (count if captions is None else len(captions)) == count:
            raise UserError(
                f"{self.root / INDEX} lists {len(self.labels)} images and the manifest {count}; run `udit encode` "
                "into another folder"
            )
        if self.labels.min() < 0 or self.labels.max() >= max(1, len(self.plan.id2label)):
            raise UserError(f"{self.root / INDEX} has labels outside 0 to {len(self.plan.id2label) - 1}; encode again")
        facts = [facts.sha256 for facts in (self.manifest.index, *self.manifest.shards)]
        self.fingerprint = hashlib.sha256("\n".join([self.plan.digest, *facts]).encode()).hexdigest()
        if self.plan.counts:
            self.buckets = Buckets(_read_buckets(self.root / INDEX, self.plan), self.plan.data.shapes)
            self._shard, self._place = _places(self.buckets, self.plan)
        self.crops = self.plan.views // (2 if self.plan.mirrored else 1)
        self._open: dict[tuple[int, str], Any] = {}

    def __len__(self) -> int:
        """Number of images."""
        return self.plan.count

    def image(self, i: int) -> Raw:
        """Raw latent of image ``i``, its central crop, not mirrored, [c, h, w]."""
        return self.read(i, mirrored=False)

    def read(self, i: int, mirrored: bool, crop: int | None = None) -> Raw:
        """Raw latent of image ``i``, mirrored left to right or not, [c, h, w]; of the central crop if none is named.

        Raises:
            UserError: its shard is missing or damaged.
        """
        return self._slice("raw", i, mirrored, crop)

    def features(self, i: int, mirrored: bool, crop: int | None = None) -> Raw:
        """A vision model's features of image ``i``, float16 [Z, h, w], of a cache that has them.

        Raises:
            UserError: its shard is missing or damaged.
        """
        return self._slice("features", i, mirrored, crop)

    def _slice(self, name: str, i: int, mirrored: bool, crop: int | None) -> Raw:
        crop = self.crops // 2 if crop is None else crop
        view = crop * (2 if self.plan.mirrored else 1) + int(mirrored)
        if self.plan.counts:
            number, place = int(self._shard[i]), int(self._place[i])
        else:
            number, place = divmod(i, self.plan.shard_size)
        try:
            if (number, name) not in self._open:
                shard: Any = safe_open(self.root / shard_name(number), framework="np")
                self._open[number, name] = shard.get_slice(name)
            found: Raw = self._open[number, name][place, view]
        except (OSError, SafetensorError, IndexError) as error:
            raise UserError(_unreadable(self.root / shard_name(number), error)) from None
        return found

    def verify(self) -> None:
        """Checks every byte of every shard against the manifest, and its shape against the plan.

        Raises:
            UserError: a shard is missing, damaged, altered or of another shape; names the first.
        """
        shards = self.plan.shards()
        with (
            ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
            progress_bar(len(shards), "checking latents", "shard", leave=False) as bar,
        ):
            for _ in pool.map(self._check_shard, range(len(shards)), self.manifest.shards, shards):
                bar.update()

    def _check_shard(self, number: int, facts: FileFacts, shard: Shard) -> None:
        path = self.root / shard_name(number)
        _check_file(path, facts)
        found, wanted = shard_layout(path), shard_wanted(self.plan, shard)
        if found != wanted:
            raise UserError(f"{path} holds {found} and the manifest says {wanted}; encode again into another folder")


def shard_layout(path: Path) -> str:
    """Names, types and shapes of a shard's tensors, from its header.

    Raises:
        UserError: it is not a shard.
    """
    try:
        with safe_open(path, framework="np") as stream:
            slices = [(name, stream.get_slice(name)) for name in sorted(stream.keys())]
            return _layout((name, part.get_dtype(), part.get_shape()) for name, part in slices)
    except (OSError, SafetensorError) as error:
        raise UserError(_unreadable(path, error)) from None


def shard_wanted(plan: LatentPlan, shard: Shard) -> str:
    """The layout that a shard must have."""
    dtype = {"uint8": "U8", "float16": "F16", "float32": "F32"}[plan.dtype]
    features = [("features", "F16", [shard.size, plan.views, *plan.teacher.shape])] if plan.teacher else []
    return _layout([*features, ("raw", dtype, [shard.size, plan.views, *plan.raw_shape(shard.bucket)])])


def _layout(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> str:
    told = (f"{'' if name == 'raw' else name + ' '}{dtype} {list(shape)}" for name, dtype, shape in tensors)
    return ", ".join(told) or "no tensors"


def _check_file(path: Path, wanted: FileFacts) -> None:
    try:
        size = path.stat().st_size
        if size != wanted.bytes:
            raise UserError(f"{path} has {size:,} of {wanted.bytes:,} bytes; run the same `udit encode` again")
        if file_facts(path) != wanted:
            raise UserError(f"{path} does not match its sha256 in the manifest; run the same `udit encode` again")
    except OSError as error:
        raise UserError(_unreadable(path, error)) from None


def _unreadable(path: Path, error: Exception) -> str:
    detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
    return f"{path} of the latent cache cannot be read ({detail}); run the same `udit encode` again"


def index_arrays(source: Source) -> dict[str, Raw]:
    """The arrays of ``index.safetensors``: labels, names, captions and test images of a source."""
    names = source.names if isinstance(source.names, Names) else Names(source.names)
    captions = captions_of(source)
    found: dict[str, Raw] = {
        "labels": source.labels.astype(np.int64),
        "held_out": np.asarray(source.held_out, np.int64),
        "names": names.text,
        "ends": names.ends,
        **({"buckets": buckets.of} if (buckets := buckets_of(source)) else {}),
    }
    if captions is not None:
        texts = captions.texts
        found |= {"captions": texts.text, "caption_ends": texts.ends, "captions_of": captions.ends}
    return found


def _read_buckets(path: Path, plan: LatentPlan) -> Labels:
    """The number of each image's shape.

    Raises:
        UserError: they are not there, or not as many of each as the plan says.
    """
    found = load_file(path).get("buckets", np.empty(0, np.int64))
    if found.dtype != np.int64 or found.shape != (plan.count,) or found.min() < 0:
        raise UserError(f"{path} is not an index of images of several shapes; encode again into another folder")
    if np.bincount(found, minlength=len(plan.counts)).tolist() != list(plan.counts):
        raise UserError(f"{path} does not hold as many images of each shape as the manifest says; encode again")
    return found


def _places(buckets: Buckets, plan: LatentPlan) -> tuple[Labels, Labels]:
    """Shard of each image, and place in it."""
    shard, place = np.empty(plan.count, np.int64), np.empty(plan.count, np.int64)
    before = 0
    for _, ids in buckets.members(np.arange(plan.count)):
        rank = np.arange(len(ids))
        shard[ids], place[ids] = before + rank // plan.shard_size, rank % plan.shard_size
        before += -(-len(ids) // plan.shard_size)
    return shard, place


def _read_index(path: Path) -> tuple[Labels, Names, Labels, Captions | None]:
    try:
        arrays = load_file(path)
        labels, held_out, ends = (arrays[key] for key in ("labels", "held_out", "ends"))
        names = Names.of_arrays(arrays["names"], ends)
        captions = None
        if "captions" in arrays:
            captions = Captions(Names.of_arrays(arrays["captions"], arrays["caption_ends"]), arrays["captions_of"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(_unreadable(path, error)) from None
    if not all(array.ndim == 1 and array.dtype == np.int64 for array in (labels, held_out, ends)) or not len(labels):
        raise UserError(f"{path} is not an index of images; run `udit encode` into another folder")
    if len(held_out) and not 0 <= held_out.min() <= held_out.max() < len(labels):
        raise UserError(f"{path} lists test images that are not there; run `udit encode` into another folder")
    return labels, names, held_out, captions
