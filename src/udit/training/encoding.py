"""Writing a run's latent cache, from Python and for ``udit encode``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from udit import dist
from udit.data.encode import Teacher, plan_of, write_cache
from udit.errors import UserError, require_type
from udit.progress import progress_bar, progress_shown
from udit.run.config import Run
from udit.training.texts import FOLDER, texts_of

LatentType = Literal["float16", "float32"]
"""Of a VAE's latents on disk."""


@dataclass(frozen=True)
class EncodedCache:
    """A latent cache that is complete."""

    root: Path
    """Its folder; train on it with ``latents=FOLDER``."""
    images: int
    mirrored: bool
    """Whether every image's mirror image is there too."""
    shape: tuple[int, int, int]
    """Of what is kept of one image, [c, h, w]; a posterior's moments have twice its latent channels."""
    dtype: str
    """uint8 for pixels; float16 or float32 for latents."""
    shards: int
    bytes: int
    """Of all shards."""
    texts: int = 0
    """Distinct captions whose hidden states are there, the empty one among them; 0 for a run without texts."""
    teacher: str | None = None
    """The vision model whose features are there too."""


def encode(
    run: Run,
    out: Path | str,
    *,
    teacher: Teacher | None = None,
    dtype: LatentType = "float16",
    measure: bool = False,
    shard_size: int = 1024,
    batch_size: int = 32,
    device: str = "auto",
    world: dist.World | None = None,
    progress: bool = True,
) -> EncodedCache:
    """Encodes every image of a run once and caches what its codec made of them; training then decodes no image.

    Of a run whose model takes texts, the hidden states of all captions are cached too, of the layers that it reads.

    Called again with the same arguments, it keeps the shards that are whole and writes the others; the bytes are the
    same on any number of ranks.

    Args:
        run: names the data and the codec, e.g. of ``udit.load_run("folder", ["data.root=images"])``.
        out: the folder of the cache.
        teacher: a vision model whose features are written too, for ``training.align``; of
            ``udit.evaluation.teachers.load_teacher``.
        dtype: of latents; pixels stay uint8.
        measure: normalise each latent channel with its mean and standard deviation over these images, not with the
            VAE's factor.
        shard_size: images per shard; an interruption loses at most one shard on each rank.
        batch_size: images encoded at a time.
        device: auto, cpu, cuda, cuda:N or mps.
        world: this process's place among its peers; joins those of ``torchrun`` on ``device`` if not given.
        progress: shows a bar on rank 0.

    Returns:
        The cache, on every rank.

    Raises:
        UserError: an image cannot be read, the folder holds another cache, a size is not positive, or an unknown dtype.
        RunError: the disk refuses it, or a rank was lost.
    """
    require_type("run", run, Run, "give a Run, e.g. udit.load_run('digits')")
    run.model.refuse_clips("a latent cache")
    if dtype not in get_args(LatentType):
        raise UserError(f"dtype is {dtype!r}; it takes {' or '.join(get_args(LatentType))}")
    for name, count in (("shard_size", shard_size), ("batch_size", batch_size)):
        if count < 1:
            raise UserError(f"{name} is {count}; it counts images, at least 1")
    if run.latents is not None:
        raise UserError(f"latents is {str(run.latents)!r} and a new cache is written to {out}; leave latents out")
    if run.encoded:
        raise UserError("data.holds is moments: the data are encoded already; train on them as they are")
    if run.codec.kind == "field":
        raise UserError("data.kind is fields, which are read as they are; train without latents")
    root = Path(out).expanduser()
    joined: AbstractContextManager[dist.World] = nullcontext(world) if world else dist.joined(device)
    with joined as world, world.together(), progress_shown(progress):
        source, codec = run.data.build(), run.codec.build()
        facts = None if teacher is None else teacher.facts
        plan = plan_of(run.data, source, codec, dtype=dtype, measured=measure, shard_size=shard_size, teacher=facts)
        mine = sum(shard.size for shard in plan.shards()[world.rank :: world.size])
        with progress_bar(mine, "encode", "image", show=progress and world.is_main) as bar:
            manifest = write_cache(
                root, plan, source, codec, world, teacher=teacher, batch_size=batch_size, on_images=bar.update
            )
        texts = texts_of(run, source, world, root / FOLDER, progress)
    return EncodedCache(
        root=root,
        images=plan.count,
        mirrored=plan.mirrored,
        shape=plan.shape,
        dtype=plan.dtype,
        shards=len(manifest.shards),
        bytes=sum(facts.bytes for facts in manifest.shards),
        texts=len(texts.places) if texts else 0,
        teacher=None if teacher is None else teacher.facts.name,
    )
