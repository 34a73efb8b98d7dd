"""``udit sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from udit.cli.options import SamplerOption
from udit.cli.output import say
from udit.errors import UserError
from udit.interpolation import Between, Through, between
from udit.spec.base import MAX_SEED
from udit.tuning.quality import Level

STRIP = 9
"""Images of an interpolation where no number is given."""
OF_KINDS = ("guidance_kind", "guidance_eta", "guidance_norm", "guidance_momentum", "guidance_zero_init")
"""Settings that depend on one another and on the sampler: they are checked with the model's own, when that is read."""


def sample(
    model: str,
    /,
    *,
    labels: str | None = None,
    prompt: str | None = None,
    prompts: Path | None = None,
    negative: str | None = None,
    text_model: str | None = None,
    context: Path | None = None,
    seeds: str | None = None,
    n: int | None = None,
    from_image: Path | None = None,
    strength: float | None = None,
    condition: Path | None = None,
    interpolate_seeds: str | None = None,
    interpolate_labels: str | None = None,
    quality: Level | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: SamplerOption = None,
    guidance_channels: int | None = None,
    guidance_interval: str | None = None,
    guidance_levels: str | None = None,
    guidance_kind: Literal["cfg", "apg", "cfg-zero"] | None = None,
    guidance_rescale: float | None = None,
    guidance_eta: float | None = None,
    guidance_norm: float | None = None,
    guidance_momentum: float | None = None,
    guidance_zero_init: int | None = None,
    eta: float | None = None,
    cache: int | None = None,
    autoguide: str | None = None,
    autoguide_ema: float | None = None,
    adapter: Path | None = None,
    out: Path = Path("samples"),
    output: Literal["png", "npz", "gif", "mp4"] | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    batch_size: int = 64,
    device: str = "auto",
    weights: Literal["ema", "raw"] = "ema",
    checkpoint: int | None = None,
    engine: Literal["torch", "onnxruntime", "openvino"] | None = None,  # EngineName loads all configs
    precision: Literal["float32", "bfloat16"] = "float32",
    compiled: Annotated[bool, Parameter(negative="")] = False,
    progress: bool = True,
) -> int:
    """Generate images with a run or a model: PNGs that carry their settings and a labelled grid, or one .npz file.

    Of a model of clips: GIF or MP4 files, or one .npz file.

    Image i has the i-th seed and the i-th label (labels repeat); the same seed and label give the same image at any
    batch size and on any number of ranks. Several processes: torchrun --nproc_per_node=N -m udit sample ...

    Parameters
    ----------
    model
        A run folder, one of its checkpoints (RUN/checkpoints/step-00001000), a model folder, a hub id, a folder that
        `udit export` wrote, or a model that comes with udit: demo:digits, demo:fashion-mnist.
    labels
        Class names or numbers, e.g. cat,dog or 3,7; all classes in turn if not given. A text is a name first, commas
        included, and a number if no class has that name.
    prompt
        For a model that takes texts: what the images show, e.g. "a three above a seven"; "" for no text.
    prompts
        A text file with one prompt a line; they are taken in turn, and --n is their number if it is not given.
    negative
        A prompt that guidance compares with in place of the empty one.
    text_model
        The language model that the model was trained with, where it is not at the place that the model records: a
        folder, a .gguf file or a hub id.
    context
        For a model that takes vectors, e.g. a text encoder's: a .safetensors or .npz file with context (floats [N,
        tokens, width]; rows repeat as labels do) and, for guidance, null ([tokens, width], e.g. the empty text's).
    seeds
        E.g. 0-15 or 3,5,8. With a larger --n they continue to count from the last.
    n
        Number of images; as many as seeds, or 16. Of a folder of images to start from, as many as those; of an
        interpolation, 9.
    from_image
        Image to image: start from this image file, or from the images of this folder in turn, instead of from noise.
        They are cropped to squares and scaled as for training.
    strength
        Of --from-image: how much of the image is lost to noise, above 0 (nothing) to 1 (all); 0.6 if not given.
    condition
        For a model that sees something beside the noisy image (data.condition): what it is made of, as in training: an
        image file or folder to enlarge, fill in or colour, or an .npz of fields, the states to go on from.
    interpolate_seeds
        Show the way from one seed to another, e.g. 3,8, or through several: of one class, as one strip.
    interpolate_labels
        Show the way from one class to another, e.g. 3,8 or cat,dog, or through several: of one seed (--seeds, or 0), or
        of --interpolate-seeds.
    quality
        draft, good or best, in place of the sampling settings below: what `udit tune` found for this run, or a default.
    steps
        Network evaluations per image; the model's own setting if not given, as for all that follow up to --cache.
    guidance
        Guidance scale w of u + w (c - u); 1 means no guidance.
    guidance_channels
        Guide only the first so many channels; 3 is the published DiT protocol.
    guidance_interval
        Two times between which guidance acts, 0 (image) to 1 (noise), e.g. 0.2,0.8.
    guidance_levels
        Two noise levels sigma / alpha between which guidance acts, e.g. 0.2,3, in place of --guidance-interval.
    guidance_kind
        cfg (plain); apg, which leaves out what saturates colours; or cfg-zero, CFG-Zero* of flow matching.
    guidance_rescale
        Share, 0 to 1, by which the guided prediction's contrast is brought back to the unguided one's; often 0.7.
    guidance_eta
        apg: share of what saturates colours that is kept; 0 is none.
    guidance_norm
        apg: largest norm of guidance of an image, e.g. 5; no limit if not given.
    guidance_momentum
        apg: what one evaluation's guidance adds to the next one's; -0.5 if not given, 0 is nothing.
    guidance_zero_init
        cfg-zero: evaluations at the start whose velocity is 0; 1 if not given.
    eta
        DDIM's share of fresh noise, 0 to 1.
    cache
        Run the deep part of the network at every N-th evaluation only; 1 means always.
    autoguide
        A weaker model of the same data, smaller or trained for less long, with which guidance compares in place of no
        class: a folder, a checkpoint of this run or a hub id.
    autoguide_ema
        The same with an EMA of this run of another length, e.g. 0.05; the run needs training.posthoc_ema.
    adapter
        A low-rank adapter of the model, which was trained with training.adapter: its folder, e.g. RUN/adapter.
    out
        Folder for the images; one that holds images already is refused.
    output
        Of images png, the default, or npz: samples.npz with arr_0 (uint8 [N, H, W, C]) and arr_1 (labels). Of clips
        gif, the default, mp4, or npz ([N, F, H, W, C]).
    overwrite
        Replace the images that an earlier call wrote there; others stay, and are refused.
    batch_size
        Images that each rank samples together.
    device
        auto, cpu, cuda, cuda:N or mps.
    weights
        ema (averaged) or raw.
    checkpoint
        Of a run: the step of a checkpoint, e.g. 500; the newest if not given.
    engine
        torch, or onnxruntime or openvino: the graph that `udit export` put into the model's folder.
    precision
        Of the network's products: bfloat16 is for GPUs, and images differ by its rounding.
    compiled
        Compile the network's blocks: the first step takes a minute, the others less.
    progress
        Show the progress bar.
    """
    from udit.diffusion.config import SamplingConfig

    chosen, wanted = _seeds_and_labels(seeds, labels, n, interpolate_seeds, interpolate_labels)
    if autoguide is not None and autoguide_ema is not None:
        raise UserError("--autoguide and --autoguide-ema both name a weaker model; give one of them")
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; it counts images, at least 1")
    given = {
        "steps": steps,
        "guidance": guidance,
        "sampler": sampler,
        "eta": eta,
        "guidance_channels": guidance_channels,
        "guidance_interval": _ends("--guidance-interval", guidance_interval),
        "guidance_levels": _ends("--guidance-levels", guidance_levels),
        "guidance_kind": guidance_kind,
        "guidance_rescale": guidance_rescale,
        "guidance_eta": guidance_eta,
        "guidance_norm": guidance_norm,
        "guidance_momentum": guidance_momentum,
        "guidance_zero_init": guidance_zero_init,
        "cache": cache,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    if quality and changes:
        option = next(iter(changes)).replace("_", "-")
        raise UserError(f"--{option} is given and --quality {quality} sets it; leave one of them out")
    try:
        SamplingConfig().replace(**{key: value for key, value in changes.items() if key not in OF_KINDS})
    except UserError as error:  # begins with the key
        key, *words = str(error).split(" ")
        option = f"--{key.replace('_', '-')}" if key in changes else key
        raise UserError(" ".join([option, *words])) from None

    if checkpoint is not None:
        from udit.store import checkpoint_of

        model = str(checkpoint_of(model, checkpoint))

    if prompt is not None and prompts is not None:
        raise UserError("--prompt and --prompts both give prompts; give one of them")
    texts: str | list[str] | None = prompt
    if prompts is not None:
        from udit.inputs import read_prompts

        texts = read_prompts(prompts)
        if chosen is None:
            chosen = [*range(len(texts))]

    from udit.generation import generate

    images = generate(
        model,
        chosen,
        wanted,
        prompts=texts,
        negative=negative or "",
        text_model=text_model,
        sampling=None if quality else changes,
        quality=quality,
        context=context,
        from_image=from_image,
        strength=strength,
        condition=condition,
        autoguide=autoguide if autoguide_ema is None else autoguide_ema,
        batch_size=batch_size,
        device=device,
        weights=weights,
        engine=engine,
        precision=precision,
        compiled=compiled,
        adapter=adapter,
    )
    if output == "npz":
        shape = images.save_npz(out / "samples.npz", progress)
        array = "fields float32" if images.system.config.codec.kind == "field" else "arr_0 uint8"
        written = f"wrote {len(images)} images to {out / 'samples.npz'} ({array} {list(shape)})"
    elif output in ("gif", "mp4") or (output is None and images.frames is not None):
        kind: Literal["gif", "mp4"] = "mp4" if output == "mp4" else "gif"
        from udit.clip_files import save_clips

        save_clips(images, out, kind, progress, overwrite=overwrite)
        written = f"wrote {len(images)} clips and grid.png to {out}"
    else:
        images.save_pngs(out, progress, overwrite=overwrite)
        written = f"wrote {len(images)} images and grid.png to {out}"
    if images.world.is_main:
        say(written)
    images.world.close()
    return 0


def _seeds_and_labels(
    seeds: str | None, labels: str | None, n: int | None, seed_ends: str | None, label_ends: str | None
) -> tuple[list[int | Between[int]] | None, str | Through | None]:
    """What ``generate`` takes; ends are those of interpolations.

    Raises:
        UserError: an interpolation beside the option that it replaces, or of several seeds.
    """
    if seed_ends is None and label_ends is None:
        return None if seeds is None and n is None else [*parse_seeds(seeds, n)], labels
    if n is not None and n < 1:
        raise UserError(f"--n is {n}; it counts images, at least 1")
    count = STRIP if n is None else n
    if label_ends is not None and labels is not None:
        raise UserError("--labels and --interpolate-labels both name classes; give one of them")
    wanted = labels if label_ends is None else Through(label_ends)
    if seed_ends is not None:
        if seeds is not None:
            raise UserError("--seeds and --interpolate-seeds both name seeds; give one of them")
        return between(parse_seeds(seed_ends, None, "--interpolate-seeds"), count), wanted
    (first, *more) = parse_seeds(seeds or "0", None)
    if more:
        raise UserError(f"--seeds is {seeds} and --interpolate-labels shows one seed; give one")
    return [first] * count, wanted


def _ends(option: str, text: str | None) -> tuple[float, float] | None:
    """Two numbers of ``0.2,0.8``.

    Raises:
        UserError: the text is something else.
    """
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise UserError(f"{option} is {text!r}; write two numbers, e.g. 0.2,0.8") from None
    return low, high


def parse_seeds(text: str | None, count: int | None, option: str = "--seeds") -> list[int]:
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
            raise UserError(f"{option} has {part.strip()!r}; write whole numbers and ranges, e.g. 0-15 or 3,5,8")
        low, high = int(first), int(last or first)
        if high < low or high > MAX_SEED or high - low > 10_000_000:
            raise UserError(f"{option} has {part.strip()!r}; a range runs upwards, to at most {MAX_SEED}")
        seeds += range(low, high + 1)
    if count is None:
        return seeds or list(range(16))
    following = seeds[-1] + 1 if seeds else 0
    return (seeds + list(range(following, following + max(0, count - len(seeds)))))[:count]
