"""``udit encode``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from udit.cli.output import say
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.reconstruction import Reconstruction


def encode(
    recipe: str,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=False)],
    out: Path,
    teacher: str | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    measure: Annotated[bool, Parameter(negative="")] = False,
    shard_size: int = 1024,
    batch_size: int = 32,
    device: str = "auto",
    features: str | None = None,
    weights_file: Path | None = None,
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
        KEY.PATH=VALUE in place of the recipe's values, e.g. data.root=images codec.kind=vae codec.source=FOLDER
    out
        The folder of the cache.
    teacher
        A vision model whose features are written too, for training.align: efficientnet-lite0, judge, inception,
        dinov2:SOURCE or timm:SOURCE, where SOURCE is a folder or a hub id.
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
    features
        Of a VAE, the Fréchet distance of decoded to encoded held-out images is printed by these: as --features of
        `udit eval`. Left out: by the judge that `udit eval` has trained on these data, where there is one.
    weights_file
        Weights of --features; without, a published network is downloaded.
    progress
        Show the progress bar.
    """
    sizes = {"shard-size": shard_size, "batch-size": batch_size}
    for name, count in sizes.items():
        if count < 1:
            raise UserError(f"--{name} is {count}; it counts images, at least 1")
    from udit.run.recipes import load_run

    run = load_run(recipe, overrides)
    if run.latents is not None:
        raise UserError(f"latents is {str(run.latents)!r} and a new cache is written to --out; leave latents out")

    from udit import dist
    from udit.evaluation.teachers import load_teacher
    from udit.reconstruction import reconstruction
    from udit.training.encoding import encode as write

    world = dist.start(device)
    cache = write(
        run,
        out,
        teacher=None if teacher is None else load_teacher(teacher, run, world.device),
        dtype=dtype,
        measure=measure,
        shard_size=shard_size,
        batch_size=batch_size,
        world=world,
        progress=progress,
    )
    if world.is_main:
        lost = reconstruction(
            run,
            out,
            features=features,
            weights_file=weights_file,
            batch_size=batch_size,
            device=world.device,
            progress=progress,
        )
        if lost is not None:
            _tell(lost)
        align = "" if cache.teacher is None else " training.align={}"
        beside = "" if cache.teacher is None else f" with features of {cache.teacher}"
        shape, mirrored = "x".join(map(str, cache.shape)), " and their mirror images" if cache.mirrored else ""
        say(
            f"wrote {out}: {cache.images:,} images{mirrored} as {cache.dtype} {shape}{beside} in {cache.shards} "
            f"shards, {cache.bytes / 1e6:,.1f} MB; next: udit train {recipe} latents={out}{align}"
        )
    world.close()
    return 0


def _tell(found: Reconstruction) -> None:
    """Says what a VAE loses of held-out images."""
    line = f"{found.images:,} held-out images, decoded: PSNR {found.psnr:.2f} dB, SSIM {found.ssim:.4f}"
    if found.distance is None:
        say(f"{line}; no Fréchet distance: these data have no judge yet (`udit eval` trains one), or give --features")
    else:
        say(f"{line}, Fréchet distance {found.distance:.4g} by {found.features}")
