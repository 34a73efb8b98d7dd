"""How a training is watched: a grid of samples at fixed seeds, a validation loss, and the loss curve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from udit import rng
from udit.assemble import System, denoiser_of
from udit.clips import film
from udit.data.batches import states_before
from udit.data.buckets import grouped, of_first_shape
from udit.data.captions import captions_of
from udit.data.sources import Labels, Parts, RawSource, Source
from udit.diffusion.beside import Beside
from udit.diffusion.objective import draw
from udit.files import whole_file
from udit.images import PROMPT_SIDE, grid, save_png, shown
from udit.training.alarms import grid_excess

GRID_ROWS = 4
GRID_CLIPS = 8
REAL = 64
"""Most training images that samples are compared with."""
VALIDATION_SIZE = 256
"""Most held-out images that a validation loss uses."""


def save_grid(
    system: System, path: Path, seed: int, condition: Tensor | None = None, prompts: Sequence[str] = ()
) -> Tensor:
    """Samples a grid: one column per class, ten at most (eight for an unconditional model), four seeds per column.

    Of clips, eight rows of frames: of the first eight classes.

    Args:
        system: with the averaged weights.
        path: of the PNG.
        seed: of the run; image i of the grid has the same seed and label at every step.
        condition: of ``some_condition``, where the network sees one.
        prompts: for a model that takes texts, one a column; the empty one if there are none.

    Returns:
        The images, uint8 [N, C, H, W]; of fields, as they are shown; of clips their frames.
    """
    if system.config.text is not None:
        prompts = prompts or [""]
        columns = len(prompts)
        each = [prompts[i % columns] for i in range(columns * GRID_ROWS)]
        seeds = [seed + i for i in range(columns * GRID_ROWS)]
        images = torch.cat(list(system.generate(seeds, prompts=each)))
        settings = {"seeds": seeds, "prompts": each, "sampling": system.config.sampling.model_dump(mode="json")}
        save_png(grid(images, each, columns, side=PROMPT_SIDE), path, settings)
        return images
    columns = columns_of(system)
    labels = [i % columns for i in range(columns * GRID_ROWS)] if system.config.classes.trained else None
    seeds = [seed + i for i in range(columns * GRID_ROWS)]
    if (frames := system.config.model.clip_frames) is not None:
        seeds = seeds[:GRID_CLIPS]
        clips = film(torch.cat(list(system.generate(seeds, None if labels is None else labels[:GRID_CLIPS]))))
        about = {"seeds": seeds, "sampling": system.config.sampling.model_dump(mode="json")}
        save_png(grid(clips, columns=frames), path, about)
        return clips
    images = shown(torch.cat(list(system.generate(seeds, labels, condition=condition))))
    named = system.config.classes
    titles = [named.title(label) for label in labels or ()]
    settings = {"seeds": seeds, "labels": labels, "sampling": system.config.sampling.model_dump(mode="json")}
    save_png(grid(images, titles, columns, numbers=labels or ()), path, settings)
    return images


def patch_grid(images: Tensor, system: System, source: Source, part: Labels, seed: int) -> float | None:
    """``grid_excess`` of samples at the side of the network's patches, or of its sub-grids, less that of real images.

    Args:
        images: samples, uint8 [N, C, H, W].
        system: that drew them.
        source: training images; of latents, and without images of the samples' shape, nothing is subtracted.
        part: indices of them.
        seed: decides which ones are taken.

    Returns:
        The larger of the two; None where the images are too small for either.
    """
    pixels = images.shape[-1] // system.config.model.size[-1]
    side = pixels * int(getattr(system.config.model, "patch", 1))
    real = None
    part = of_first_shape(source, part)
    if not isinstance(source, RawSource) and len(part):
        real = shown(torch.stack([torch.from_numpy(source.image(int(i)).copy()) for i in spread(part, REAL, seed)]))
        real = film(real) if real.ndim == 5 else real
    found = []
    for period in (side, 2 * side):
        drawn, usual = grid_excess(images, period), 0.0 if real is None else grid_excess(real, period)
        if drawn is not None and usual is not None:
            found.append(drawn - usual)
    return max(found, default=None)


def some_prompts(source: Source, parts: Parts, seed: int, count: int = 8) -> list[str]:
    """Captions for a sample grid: those of some held-out images, or of training images where none are held out."""
    captions = captions_of(source)
    if captions is None:
        return []
    part = parts.test if len(parts.test) else parts.train
    found = [captions.chosen(int(i), rng.key(seed, "preview", int(i))) for i in spread(part, 4 * count, seed)]
    return list(dict.fromkeys(found))[:count]


def columns_of(system: System) -> int:
    """Of a sample grid."""
    return min(system.config.classes.trained, 10) or 8


def some_condition(system: System, source: Source, parts: Parts, seed: int) -> Tensor | None:
    """What the network sees beside the images of a sample grid: made of held-out images, or of training images.

    None of a network that sees nothing.
    """
    if system.config.condition is None:
        return None
    part, count = parts.test if len(parts.test) else parts.train, columns_of(system) * GRID_ROWS
    ids = [int(i) for i in np.resize(spread(part, count, seed), count)]
    return condition_of(system, source, ids, range(count))


def condition_of(system: System, source: Source, ids: Sequence[int], keys: Sequence[int]) -> Tensor:
    """What the network sees beside some images of a source, [B, Cc, H, W]; rectangles are drawn by the keys."""
    before = states_before(source, ids)
    images = torch.stack([torch.from_numpy(np.array(source.image(i))) for i in ids])
    return system.condition_of(images, before=before, keys=keys)


def spread(part: Labels, count: int, seed: int) -> Labels:
    """``count`` evenly spaced indices of a part, starting at a place that the seed decides; all if there are fewer.

    A folder lists class by class, so every class is represented in proportion.
    """
    if len(part) <= count:
        return part
    start = float(torch.rand((), generator=rng.generator(seed, "spread"), dtype=torch.float64))
    return part[((np.arange(count) + start) * len(part) / count).astype(np.int64)]


@torch.no_grad()
def validation_loss(system: System, source: Source, part: Labels, seed: int, batch_size: int = 64) -> float | None:
    """Mean loss of held-out images, None without any; times and noise are fixed, so that the weights alone decide it.

    Args:
        system: with the averaged weights.
        source: the images.
        part: indices of those that are held out.
        seed: of the run; decides which of many are taken.
        batch_size: images at a time.
    """
    part = spread(part, VALIDATION_SIZE, seed)
    if not len(part):
        return None
    device = next(system.backbone.parameters()).device
    denoiser = denoiser_of(system.config, system.backbone)
    total = 0.0
    alike = (places[k : k + batch_size] for places in grouped(source, part) for k in range(0, len(places), batch_size))
    for places in alike:
        ids = part[places].tolist()
        x = torch.stack([torch.from_numpy(source.image(i).copy()) for i in ids]).to(device)
        x0 = system.codec.normalise(x if isinstance(source, RawSource) else system.codec.raw(x))
        draws = draw(denoiser.schedule, x0.shape[1:], 0, "validation", [(int(k),) for k in places])
        y = _conditions(system, source, ids, seed)
        y = None if y is None else y.to(device)
        asked = denoiser
        if system.config.condition is not None:
            beside = condition_of(system, source, ids, places.tolist()).to(device)
            asked = denoiser.with_network(partial(Beside, condition=beside))
        losses = denoiser.schedule.loss(asked, x0, draws.t.to(device), draws.noise.to(device), y)
        total += float(losses.loss.double().sum())
    return total / len(part)


def _conditions(system: System, source: Source, ids: Sequence[int], seed: int) -> Tensor | None:
    """What the model takes of images, on the CPU: labels, or the conditions of one caption each."""
    captions = captions_of(source)
    if system.config.text is not None and captions is not None:
        return system.conditions_of([captions.chosen(i, rng.key(seed, "preview", i)) for i in ids])
    return torch.tensor([int(source.labels[i]) for i in ids]) if system.config.model.num_classes else None


def save_curve(metrics: Path, path: Path) -> None:
    """Draws training and validation loss over steps from ``metrics.jsonl``."""
    from matplotlib.figure import Figure  # not pyplot: a notebook's figures stay as they are

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    losses = [line["loss"] for line in lines if "loss" in line]
    if not steps:
        return
    figure = Figure(figsize=(6, 3.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.8", linewidth=0.8)
    window = max(1, len(losses) // 50)
    smooth = [sum(losses[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(losses))]
    axes.plot(steps, smooth, label=f"training (mean of {window})")
    held_out = [(line["step"], line["val_loss"]) for line in lines if line.get("val_loss") is not None]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", label="held out, EMA weights, fixed t and noise")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    with whole_file(path, durable=False) as temporary:
        figure.savefig(temporary)
