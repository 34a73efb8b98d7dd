"""``udit encode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from udit.cli.output import say
from udit.errors import UserError


def encode(
    recipe: str,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=False)],
    out: Path,
    dtype: Literal["float16", "float32"] = "float16",
    measure: Annotated[bool, Parameter(negative="")] = False,
    shard_size: int = 1024,
    batch_size: int = 32,
    device: str = "auto",
    progress: bool = True,
) -> int:
    """Encode a recipe's images once and cache the latents; then train on them with latents=FOLDER.

    Run the same command again to go on after an interruption; finished shards are kept, and the bytes are the same on
    any number of ranks. Several processes: torchrun --nproc_per_node=N -m udit encode ...

    Parameters
    ----------
    recipe
        A shipped recipe's name or a YAML file.
    overrides
        KEY.PATH=VALUE laid over the recipe, e.g. data.root=photos codec.kind=vae codec.source=FOLDER
    out
        The folder of the cache.
    dtype
        Of a VAE's posteriors; pixels stay uint8.
    measure
        Normalise each latent channel with its mean and standard deviation over these images, not with the VAE's factor.
    shard_size
        Images per shard; an interruption loses at most one shard on each rank.
    batch_size
        Images encoded at a time.
    device
        auto, cpu, cuda, cuda:N or mps.
    progress
        Show the progress bar.
    """
    for name, count in (("shard-size", shard_size), ("batch-size", batch_size)):
        if count < 1:
            raise UserError(f"--{name} is {count}; it counts images, at least 1")
    from udit.run.recipes import load_run

    run = load_run(recipe, overrides)
    if run.latents is not None:
        raise UserError(f"latents is {str(run.latents)!r} and a new cache is written to --out; leave latents out")

    from tqdm.auto import tqdm

    from udit import dist
    from udit.data.encode import plan_of, write_cache

    world = dist.start(device)
    with world.together():
        source = run.data.build()
        codec = run.codec.build()
        plan = plan_of(run.data, source, codec, dtype=dtype, measured=measure, shard_size=shard_size)
        mine = sum(plan.shard_sizes()[world.rank :: world.size])
        off = None if progress and world.is_main else True
        with tqdm(total=mine, desc="encode", unit="image", disable=off) as bar:
            manifest = write_cache(
                out.expanduser(), plan, source, codec, world, batch_size=batch_size, on_images=bar.update
            )
    if world.is_main:
        total = sum(facts.bytes for facts in manifest.shards)
        shape = "x".join(map(str, plan.shape))
        say(
            f"wrote {out}: {plan.count:,} images{' and their mirror images' if plan.mirrored else ''} as {plan.dtype} "
            f"{shape} in {len(manifest.shards)} shards, {total / 1e6:,.1f} MB; next: udit train {recipe} latents={out}"
        )
    world.close()
    return 0
