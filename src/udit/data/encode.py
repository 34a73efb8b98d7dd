"""Writes the latent cache: the same bytes on any number of ranks, and after any number of interruptions.

A shard depends on the plan alone, is written to a temporary sibling, fsynced and renamed, and holds the digests of
plan and payload; one that exists and matches both is kept. Two writers of one plan write the same bytes, so nothing is
locked.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from udit.checkpoint import write_tensors
from udit.data.buckets import buckets_of, grouped_all
from udit.data.cache_config import (
    INDEX,
    MANIFEST,
    PLAN,
    LatentManifest,
    LatentPlan,
    Shard,
    TeacherFacts,
    shard_name,
)
from udit.data.codec import Codec, LatentVAE
from udit.data.codec_config import VAECodec
from udit.data.config import DataConfig
from udit.data.describe import describe
from udit.data.latents import Raw, index_arrays, read_sealed, shard_layout, shard_wanted
from udit.data.sources import Source, cropper, crops_of
from udit.dist import World
from udit.errors import RunError, UserError
from udit.files import TEMPORARY, file_facts, seal, sweep, whole_file, write_text
from udit.spec.base import differing_keys, parse, value_at

KEY = "udit"
"""Key of a shard's metadata that holds a JSON object with the digests of plan and payload."""


class Teacher(Protocol):
    """A vision model whose features are stored beside the latents."""

    @property
    def facts(self) -> TeacherFacts:
        """By which a cache records it."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> features, float32 [B, Z, h, w]."""


def plan_of(
    data: DataConfig,
    source: Source,
    codec: Codec,
    *,
    dtype: str = "float16",
    measured: bool = False,
    shard_size: int = 1024,
    teacher: TeacherFacts | None = None,
) -> LatentPlan:
    """The plan of a cache.

    Args:
        data: the run's section; says which images, and whether they are mirrored.
        source: the images.
        codec: the run's.
        dtype: of latents, float16 or float32; pixels stay uint8.
        measured: normalise every channel with this cache's own mean and standard deviation, not with the VAE's factor.
        shard_size: images per shard.
        teacher: whose features are stored too.

    Raises:
        UserError: ``measured`` for a codec that is not a VAE.
    """
    vae = isinstance(codec, LatentVAE)
    if measured and not vae:
        raise UserError(f"the {codec.config.kind} codec has nothing to measure; it maps pixels to [-1, 1]")
    buckets = buckets_of(source)
    first = torch.from_numpy(np.array(source.image(0)))
    if buckets is not None:  # of the main shape, which no image may have
        first = first.new_zeros((len(first), *buckets.shapes[0]))
    raw = codec.raw(first[None])
    section = data.model_dump(mode="json")
    if "root" in section:
        section["root"] = str(Path(section["root"]).expanduser().resolve())
    return parse(
        LatentPlan,
        {
            "data": section,
            "fingerprint": source.fingerprint,
            "count": len(source),
            "counts": np.bincount(buckets.of, minlength=len(buckets.shapes)).tolist() if buckets else [],
            "id2label": list(describe(data).id2label),
            "pixels": list(first.shape),
            "codec": codec.config.model_dump(mode="json"),
            "measured": measured,
            "shape": list(raw.shape[1:]),
            "dtype": dtype if vae else "float32" if first.is_floating_point() else "uint8",
            "mirrored": data.mirrored,
            "shard_size": shard_size,
            "teacher": teacher,
        },
        where="the cache",
    )


def write_cache(
    root: Path,
    plan: LatentPlan,
    source: Source,
    codec: Codec,
    world: World,
    *,
    teacher: Teacher | None = None,
    batch_size: int = 32,
    on_images: Callable[[int], object] | None = None,
) -> LatentManifest:
    """Writes the missing shards of a cache, each rank its own; rank 0 writes the manifest last.

    Args:
        root: the folder.
        plan: of ``plan_of``.
        source: the images.
        codec: the plan's.
        world: rank and device.
        teacher: the plan's, if it has one.
        batch_size: images encoded at a time.
        on_images: called with the number of images of each finished shard.

    Raises:
        UserError: the folder holds a cache of another plan, or an image cannot be decoded.
        RunError: it cannot be written.
    """
    world.on_main(_open_folder, root, plan)
    try:
        members = grouped_all(source)
        for number, shard in enumerate(plan.shards()):
            if number % world.size == world.rank:
                path = root / shard_name(number)
                if not _is_whole(path, plan, shard):
                    ids = members[shard.bucket][shard.first : shard.first + shard.size].tolist()
                    made = _encode(source, codec, teacher, plan, shard, ids, world.device, batch_size)
                    _write(path, made, {"plan": plan.digest, **_payloads(made)})
                if on_images:
                    on_images(shard.size)
    except (OSError, SafetensorError) as error:
        raise _refused(root, error) from None
    world.barrier()
    world.on_main(_finish, root, plan, source)
    return parse(LatentManifest, read_sealed(root / MANIFEST), where=root / MANIFEST)


def _open_folder(root: Path, plan: LatentPlan) -> None:
    """Makes the folder, or checks that it was made for the same plan; removes what interrupted writers left."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        if (root / PLAN).exists():
            old = parse(LatentPlan, read_sealed(root / PLAN), where=root / PLAN).comparable()
            changed = differing_keys(old, plan.comparable(), frozenset({"data.verify"}))
            if changed:
                raise UserError(
                    f"{root} holds a latent cache with another {changed[0]}: {value_at(old, changed[0])!r}, and "
                    f"{value_at(plan.comparable(), changed[0])!r} now; take another --out, or remove it"
                )
        elif any(entry for entry in root.iterdir() if not entry.name.startswith(TEMPORARY)):
            raise UserError(f"{root} is not empty and not a latent cache; take another --out")
        else:
            write_text(root / PLAN, seal(plan.model_dump(mode="json")))
        sweep(root)
    except OSError as error:
        raise _refused(root, error) from None


def _is_whole(path: Path, plan: LatentPlan, shard: Shard) -> bool:
    """Whether a shard exists, is of this plan, and is undamaged."""
    if not path.is_file():
        return False
    try:
        if shard_layout(path) != shard_wanted(plan, shard):
            return False
        with safe_open(path, framework="pt") as stream:
            said = json.loads((stream.metadata() or {}).get(KEY, "{}"))
            made = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  it is no dict
            return bool(said == {"plan": plan.digest, **_payloads(made)})
    except (UserError, OSError, ValueError, SafetensorError):
        return False


def _payloads(made: dict[str, Tensor]) -> dict[str, str]:
    """The digest of each tensor of a shard; that of latents is called payload."""
    return {
        "payload" if name == "raw" else name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in sorted(made.items(), reverse=True)
    }


def _encode(
    source: Source,
    codec: Codec,
    teacher: Teacher | None,
    plan: LatentPlan,
    shard: Shard,
    members: list[int],
    device: torch.device,
    batch_size: int,
) -> dict[str, Tensor]:
    """One shard of the images ``members``, crop by crop, each with its mirror image.

    Returns:
        raw [size, views, c, h, w], and with a teacher features [size, views, Z, h, w].
    """
    size, sides = shard.size, 2 if plan.mirrored else 1
    shape = plan.raw_shape(shard.bucket)
    made = {"raw": torch.empty(size, plan.views, *shape, dtype=getattr(torch, plan.dtype))}
    makers: dict[str, Callable[[Tensor], Tensor]] = {"raw": codec.raw}
    if plan.teacher is not None:
        assert teacher is not None, "the plan's teacher"
        made["features"] = torch.empty(size, plan.views, *plan.teacher.shape, dtype=torch.float16)
        makers["features"] = teacher
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start, crop in itertools.product(range(0, size, batch_size), range(crops_of(source))):
            ids = members[start : start + batch_size]
            cropped = list(pool.map(cropper(source), ids, itertools.repeat(crop)))
            pixels = torch.from_numpy(np.stack(cropped)).to(device)
            for k, turned in enumerate((pixels, pixels.flip(-1)) if plan.mirrored else (pixels,)):
                for name, make in makers.items():
                    part = make(turned).cpu().to(made[name].dtype)
                    finite = torch.isfinite(part).flatten(1).all(dim=1)
                    if not bool(finite.all()):
                        bad = source.names[ids[int(finite.logical_not().nonzero()[0])]]
                        raise UserError(_overflow(name, bad, plan))
                    made[name][start : start + len(ids), crop * sides + k] = part
    return made


def _overflow(name: str, image: str, plan: LatentPlan) -> str:
    if name == "raw":
        return f"the latents of {image} overflow {plan.dtype}; take --dtype float32"
    assert plan.teacher is not None
    return f"the features that {plan.teacher.name} makes of {image} overflow float16; take another --teacher"


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    with whole_file(path) as temporary:
        # one key: the order of several is not fixed
        write_tensors(tensors, temporary, {KEY: json.dumps(metadata)} if metadata else None)


def _finish(root: Path, plan: LatentPlan, source: Source) -> None:
    """Writes index and manifest, after reading every shard."""
    try:
        _write(root / INDEX, {key: torch.from_numpy(np.array(value)) for key, value in index_arrays(source).items()})
        sums = [np.zeros(0), np.zeros(0)]
        facts, samples = [], 0
        for number, shard in enumerate(plan.shards()):
            path = root / shard_name(number)
            facts.append(file_facts(path))
            if isinstance(plan.codec, VAECodec):
                with safe_open(path, framework="np") as stream:
                    parts = _sums(stream.get_tensor("raw"), plan)
                samples += shard.size * plan.views * math.prod(plan.raw_shape(shard.bucket)[1:])
                sums = [part if not len(total) else total + part for total, part in zip(sums, parts, strict=True)]
        mean = std = None
        if isinstance(plan.codec, VAECodec):
            centre = sums[0] / samples
            mean, std = centre.tolist(), np.sqrt(sums[1] / samples - centre**2).tolist()
        manifest = LatentManifest.model_validate(
            {"plan": plan.model_dump(), "index": file_facts(root / INDEX), "shards": facts, "mean": mean, "std": std}
        )
        write_text(root / MANIFEST, seal(manifest.model_dump(mode="json")))
    except (OSError, SafetensorError) as error:
        raise _refused(root, error) from None


def _sums(raw: Raw, plan: LatentPlan) -> tuple[Raw, Raw]:
    """Expected sums of z and z squared over all axes but channels; z is drawn from the posterior where it has one."""
    z: Raw = raw.astype(np.float64)
    variance: Raw = np.zeros(1)
    if isinstance(plan.codec, VAECodec) and plan.codec.has_posterior:
        z, log_variance = np.split(z, 2, axis=2)
        variance = np.exp(log_variance)
    axes = (0, 1, 3, 4)
    return z.sum(axes), (z**2 + variance).sum(axes)


def _refused(root: Path, error: Exception) -> RunError:
    cause = getattr(error, "strerror", None) or " ".join(str(error).split())
    return RunError(f"cannot write the latent cache {root}: {cause}; mend that and run the same command again")
