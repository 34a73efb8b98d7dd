"""``udit sample``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from udit.cli.engines import Choice, find_graph, load_graph
from udit.cli.output import say
from udit.errors import RunError, UserError
from udit.tuning.quality import Level

if TYPE_CHECKING:
    from torch import Tensor

    from udit.assemble import System
    from udit.diffusion.config import SamplingConfig
    from udit.dist import World
    from udit.tuning.quality import Scored

logger = logging.getLogger(__name__)
MAX_SEED = 2**63 - 1
GRID_PICTURES = 100


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
    sampler: str | None = None,
    guidance_channels: int | None = None,
    eta: float | None = None,
    cache: int | None = None,
    out: Path = Path("samples"),
    output: Literal["png", "npz"] = "png",
    batch_size: int = 64,
    device: str = "auto",
    weights: Literal["ema", "raw"] = "ema",
    engine: Choice | None = None,
    progress: bool = True,
) -> int:
    """Draw pictures from a run or a model: PNGs that carry their settings and a labelled grid, or one .npz batch.

    Picture i has the i-th seed and the i-th label (labels repeat); the same seed and label give the same picture at any
    batch size and on any number of ranks. Several processes: torchrun --nproc_per_node=N -m udit sample ...

    Parameters
    ----------
    model
        A run folder, a model folder, a hub id, or a folder that `udit export` wrote.
    labels
        Class numbers or names, e.g. 3,7 or cat,dog; all classes in turn if not given.
    context
        For a model that takes vectors, e.g. a text encoder's: a .safetensors or .npz file with context (floats [N,
        tokens, width]; rows repeat as labels do) and, for guidance, null ([tokens, width], e.g. the empty text's).
    seeds
        E.g. 0-15 or 3,5,8. With a larger --n they go on counting from the last.
    n
        Number of pictures; as many as seeds, or 16.
    quality
        draft, good or best, in place of the six below: what `udit tune` found for this run, or a table's setting.
    steps
        Network evaluations per picture; the model's own setting if not given, as for the next five.
    guidance
        Guidance scale w of u + w (c - u); 1 is none.
    sampler
        ddpm, ddim, dpmpp, unipc, flow-euler, flow-heun, edm-heun or edm-euler.
    guidance_channels
        Guide only the first so many channels; 3 is the published DiT protocol.
    eta
        DDIM's share of fresh noise, 0 to 1.
    cache
        Run the deep part of the network at every so many evaluations only; 1 is always.
    out
        Folder for the pictures.
    output
        png, or npz: samples.npz with arr_0 (uint8 [N, H, W, C]) and arr_1 (labels).
    batch_size
        Pictures at a time on each rank.
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
        raise UserError(f"--batch-size is {batch_size}; it counts pictures, at least 1")
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
    SamplingConfig().replace(**{"sampler": "ddim", **changes} if "eta" in changes else changes)

    graph = find_graph(model, engine)
    if graph and device not in ("auto", "cpu"):
        raise UserError(f"--device is {device} and exported graphs run on the CPU; leave it out")

    from udit import dist
    from udit.store import load

    world = dist.start("cpu" if graph else device)
    vectors = read_context(context) if context else None
    system = load_graph(graph, model, weights) if graph else load(model, weights=weights).fused().to(world.device)
    how = _of_quality(quality, model, system) if quality else system.config.sampling.replace(**changes)
    if graph and (how.cache != 1 or how.refresh):
        told = f"--quality {quality}" if quality else f"cache {how.cache}" if how.cache != 1 else "sampling.refresh"
        raise UserError(f"{told} caches steps and an exported graph always runs whole; draw from the model instead")
    wanted = system.labels(labels.split(",")) if labels else list(range(system.config.model.num_classes))
    each = [wanted[i % len(wanted)] for i in range(len(chosen))] if wanted else None
    _prepare(out)
    batches = _draw(system, chosen, each, vectors, how, batch_size, world, progress)
    if output == "npz":
        _write_npz(out / "samples.npz", batches, each, len(chosen), world)
    else:
        _write_pngs(out, batches, system, chosen, each, vectors, how, world)
    world.close()
    return 0


def parse_seeds(text: str | None, count: int | None) -> list[int]:
    """Seeds of ``0-15`` or ``3,5,8`` or both mixed; ``count`` cuts them or counts on from the last.

    Raises:
        UserError: not such a list, or a count below 1.
    """
    if count is not None and count < 1:
        raise UserError(f"--n is {count}; it counts pictures, at least 1")
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


def _of_quality(level: Level, model: str, system: System) -> SamplingConfig:
    """What is written beside the model, or the table's."""
    from udit.store import fingerprint
    from udit.tuning.quality import Quality, default

    tuned = Quality.read(Path(model))
    if tuned is None:
        how = default(level, system.config.sampling, system.config.diffusion)
        logger.info("no quality.json beside %s: %s, %d steps (`udit tune` finds better)", model, how.sampler, how.steps)
        return how
    if tuned.weights != fingerprint(system.backbone):
        logger.warning("quality.json was tuned for other weights, of step %s; `udit tune` anew", tuned.step)
    found: Scored = getattr(tuned, level)
    return found.sampling


@dataclass(frozen=True)
class Context:
    """Conditions of a file."""

    file: str
    rows: Tensor
    """float [N, ...]; picture i has row i modulo N."""
    null: Tensor | None

    def of(self, places: Sequence[int]) -> Tensor:
        """Those of some pictures."""
        return self.rows[[i % len(self.rows) for i in places]]


def read_context(path: Path) -> Context:
    """What ``--context`` names.

    Raises:
        UserError: no such file, or one that does not hold finite floats under the two names.
    """
    import zipfile
    import zlib

    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    torn = (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        else:
            found = load_file(path)
    except torn as error:
        detail = "it is not there" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200]
        raise UserError(f"cannot read --context {path}: {detail}; name a .safetensors or .npz file") from None
    rows, null = found.get("context"), found.get("null")
    if rows is None or rows.ndim < 2 or not len(rows):
        held = "nothing" if rows is None else f"{list(rows.shape)}"
        raise UserError(f"{path} holds {held} under 'context'; write floats [N, tokens, width], and 'null' beside them")
    for key, part in (("context", rows), ("null", null)):
        if part is not None and not (part.is_floating_point() and bool(part.isfinite().all())):
            raise UserError(f"{path} holds {key!r} as {part.dtype}, or not finite; write finite floats")
    return Context(path.name, rows.float(), None if null is None else null.float())


def _prepare(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.write_bytes(b"udit")
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; give a writable folder with --out") from None


def _draw(
    system: System,
    seeds: list[int],
    labels: list[int] | None,
    context: Context | None,
    how: SamplingConfig,
    batch_size: int,
    world: World,
    progress: bool,
) -> Iterator[tuple[list[int], Tensor]]:
    """This rank's pictures, batch after batch, with their places among all."""
    from tqdm.auto import tqdm

    mine = list(range(len(seeds)))[world.rank :: world.size]
    own_labels = [labels[i] for i in mine] if labels is not None else None
    vectors = {} if context is None else {"context": context.of(mine), "null": context.null}
    show = progress and world.is_main
    with tqdm(total=len(mine) * how.steps, desc="sample", unit="step", disable=None if show else True) as bar:
        done = 0
        for images in system.generate(
            [seeds[i] for i in mine], own_labels, sampling=how, batch_size=batch_size, on_step=bar.update, **vectors
        ):
            yield mine[done : done + len(images)], images
            done += len(images)


def _write_pngs(
    out: Path,
    batches: Iterator[tuple[list[int], Tensor]],
    system: System,
    seeds: list[int],
    labels: list[int] | None,
    context: Context | None,
    how: SamplingConfig,
    world: World,
) -> None:
    import torch

    from udit import __version__
    from udit.exporting.engines import Graph
    from udit.images import grid, read_pixels, save_png, to_image
    from udit.store import fingerprint

    names = system.config.id2label
    common = {"udit": __version__, "model": fingerprint(system.backbone), "sampling": how.model_dump(mode="json")}
    if isinstance(system.backbone, Graph):
        common |= {"engine": system.backbone.manifest.engine, "precision": system.backbone.manifest.precision}
    for places, images in batches:
        for i, pixels in zip(places, images, strict=True):
            own: dict[str, Any] = {"seed": seeds[i]}
            if labels is not None:
                own |= {"label": labels[i], "class": names[labels[i]] if names else str(labels[i])}
            if context is not None:
                own |= {"context": context.file, "row": i % len(context.rows)}
            save_png(to_image(pixels), out / f"{i:06d}.png", common | own)
    world.barrier()
    if world.is_main:
        shown = range(min(len(seeds), GRID_PICTURES))
        images = torch.stack([read_pixels(out / f"{i:06d}.png") for i in shown])
        titles = [names[labels[i]] if names else str(labels[i]) for i in shown] if labels is not None else []
        save_png(grid(images, titles), out / "grid.png", common)
        say(f"wrote {len(seeds)} pictures and grid.png to {out}")


def _write_npz(
    path: Path, batches: Iterator[tuple[list[int], Tensor]], labels: list[int] | None, count: int, world: World
) -> None:
    import numpy as np
    import torch

    from udit.files import whole_file

    parts = list(batches)
    per_rank = -(-count // world.size)
    shape = next((images.shape[1:] for _, images in parts), None)
    mine = torch.cat([images for _, images in parts]) if parts else None
    sizes = world.gather(torch.tensor(shape if shape is not None else (0, 0, 0)))
    full = tuple(int(v) for v in sizes.max(dim=0).values)
    padded = torch.zeros(per_rank, *full, dtype=torch.uint8)
    if mine is not None:
        padded[: len(mine)] = mine
    every = world.gather(padded).transpose(0, 1).reshape(-1, *full)[:count]
    if not world.is_main:
        return
    arrays = {"arr_0": every.permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays["arr_1"] = np.array(labels, dtype=np.int64)
    try:
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; make room or take another --out") from None
    say(f"wrote {count} pictures to {path} (arr_0 uint8 {list(arrays['arr_0'].shape)})")
