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
    """Write the latent cache of a recipe's pictures; then train on it with latents=FOLDER.

    Run the same command again to go on after a stop; what is there and whole is kept, and the bytes are the same on any
    number of ranks. Several processes: torchrun --nproc_per_node=N -m udit encode ...

    Parameters
    ----------
    recipe
        A shipped recipe's name or a YAML file.
    overrides
        KEY.PATH=VALUE laid over the recipe, e.g. data.root=pictures codec.kind=vae codec.source=FOLDER
    out
        The folder of the cache.
    dtype
        Of a VAE's moments; pixels stay uint8.
    measure
        Normalise each latent channel by its own mean and deviation over these pictures, not by the VAE's factor.
    shard_size
        Pictures a shard; a kill loses at most one on each rank.
    batch_size
        Pictures decoded at a time.
    device
        auto, cpu, cuda, cuda:N or mps.
    progress
        Show the progress bar.
    """
    for name, count in (("shard-size", shard_size), ("batch-size", batch_size)):
        if count < 1:
            raise UserError(f"--{name} is {count}; it counts pictures, at least 1")
    from udit.run.recipes import load_run

    run = load_run(recipe, overrides)
    if run.latents is not None:
        raise UserError(f"latents is {str(run.latents)!r} and is being written here, to --out; leave latents out")

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
        with tqdm(total=mine, desc="encode", unit="picture", disable=off) as bar:
            manifest = write_cache(
                out.expanduser(), plan, source, codec, world, batch_size=batch_size, on_pictures=bar.update
            )
    if world.is_main:
        total = sum(facts.bytes for facts in manifest.shards)
        shape = "x".join(map(str, plan.shape))
        say(
            f"wrote {out}: {plan.count:,} pictures{', also mirrored,' if plan.mirrored else ''} as {plan.dtype} "
            f"{shape} in {len(manifest.shards)} shards, {total / 1e6:,.1f} MB; next: udit train {recipe} latents={out}"
        )
    world.close()
    return 0
