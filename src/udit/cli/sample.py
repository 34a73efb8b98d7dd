"""``udit sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from udit.cli.options import SamplerOption
from udit.cli.output import say
from udit.errors import UserError
from udit.spec.base import MAX_SEED
from udit.tuning.quality import Level


def sample(
    model: str,
    /,
    *,
    labels: str | None = None,
    context: Path | None = None,
    seeds: str | None = None,
    n: int | None = None,
    quality: Level | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: SamplerOption = None,
    guidance_channels: int | None = None,
    eta: float | None = None,
    cache: int | None = None,
    out: Path = Path("samples"),
    output: Literal["png", "npz"] = "png",
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    batch_size: int = 64,
    device: str = "auto",
    weights: Literal["ema", "raw"] = "ema",
    engine: Literal["torch", "onnxruntime", "openvino"] | None = None,  # EngineName loads all configs
    progress: bool = True,
) -> int:
    """Generate images with a run or a model: PNGs that carry their settings and a labelled grid, or one .npz file.

    Image i has the i-th seed and the i-th label (labels repeat); the same seed and label give the same image at any
    batch size and on any number of ranks. Several processes: torchrun --nproc_per_node=N -m udit sample ...

    Parameters
    ----------
    model
        A run folder, a model folder, a hub id, or a folder that `udit export` wrote.
    labels
        Class names or numbers, e.g. cat,dog or 3,7; all classes in turn if not given. A text is a name first, commas
        included, and a number if no class has that name.
    context
        For a model that takes vectors, e.g. a text encoder's: a .safetensors or .npz file with context (floats [N,
        tokens, width]; rows repeat as labels do) and, for guidance, null ([tokens, width], e.g. the empty text's).
    seeds
        E.g. 0-15 or 3,5,8. With a larger --n they continue to count from the last.
    n
        Number of images; as many as seeds, or 16.
    quality
        draft, good or best, in place of the six below: what `udit tune` found for this run, or a default.
    steps
        Network evaluations per image; the model's own setting if not given, as for the next five.
    guidance
        Guidance scale w of u + w (c - u); 1 means no guidance.
    guidance_channels
        Guide only the first so many channels; 3 is the published DiT protocol.
    eta
        DDIM's share of fresh noise, 0 to 1.
    cache
        Run the deep part of the network at every N-th evaluation only; 1 means always.
    out
        Folder for the images; one that holds images already is refused.
    output
        png, or npz: samples.npz with arr_0 (uint8 [N, H, W, C]) and arr_1 (labels).
    overwrite
        Replace the images that an earlier call wrote there; others stay, and are refused.
    batch_size
        Images that each rank samples together.
    device
        auto, cpu, cuda, cuda:N or mps.
    weights
        ema (averaged) or raw.
    engine
        torch, or onnxruntime or openvino: the graph that `udit export` put into the model's folder.
    progress
        Show the progress bar.
    """
    from udit.diffusion.config import SamplingConfig

    chosen = parse_seeds(seeds, n)
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; it counts images, at least 1")
    given = {
        "steps": steps,
        "guidance": guidance,
        "sampler": sampler,
        "eta": eta,
        "guidance_channels": guidance_channels,
        "cache": cache,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    if quality and changes:
        option = next(iter(changes)).replace("_", "-")
        raise UserError(f"--{option} is given and --quality {quality} sets it; leave one of them out")
    SamplingConfig().replace(**changes)

    from udit.generation import generate

    images = generate(
        model,
        chosen,
        labels,
        sampling=None if quality else changes,
        quality=quality,
        context=context,
        batch_size=batch_size,
        device=device,
        weights=weights,
        engine=engine,
    )
    if output == "npz":
        shape = images.save_npz(out / "samples.npz", progress)
        written = f"wrote {len(images)} images to {out / 'samples.npz'} (arr_0 uint8 {list(shape)})"
    else:
        images.save_pngs(out, progress, overwrite=overwrite)
        written = f"wrote {len(images)} images and grid.png to {out}"
    if images.world.is_main:
        say(written)
    images.world.close()
    return 0


def parse_seeds(text: str | None, count: int | None) -> list[int]:
    """Seeds of ``0-15`` or ``3,5,8`` or both mixed; ``count`` cuts the list or continues to count from the last.

    Raises:
        UserError: the text is no such list, or the count is below 1.
    """
    if count is not None and count < 1:
        raise UserError(f"--n is {count}; it counts images, at least 1")
    seeds: list[int] = []
    for part in text.split(",") if text is not None else []:
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UserError(f"--seeds has {part.strip()!r}; write whole numbers and ranges, e.g. 0-15 or 3,5,8")
        low, high = int(first), int(last or first)
        if high < low or high > MAX_SEED or high - low > 10_000_000:
            raise UserError(f"--seeds has {part.strip()!r}; a range runs upwards, to at most {MAX_SEED}")
        seeds += range(low, high + 1)
    if count is None:
        return seeds or list(range(16))
    following = seeds[-1] + 1 if seeds else 0
    return (seeds + list(range(following, following + max(0, count - len(seeds)))))[:count]
