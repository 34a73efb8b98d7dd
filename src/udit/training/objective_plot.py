"""An image of what a recipe's training emphasises: at which times it looks, and how it weighs errors there."""

from __future__ import annotations

from pathlib import Path

import torch

from udit import rng
from udit.diffusion.denoiser import Denoiser
from udit.files import whole_file
from udit.run.config import Run

DRAWS = 20_000
"""Training times that are drawn for the image."""


def save_objective(run: Run, path: Path) -> None:
    """Draws the distribution of training times, and the weight of the squared error over time.

    Both are found by asking: times are drawn as in training, and a network that predicts zero is scored, whose loss
    over its squared error is the weight.

    Args:
        run: with the noising process.
        path: of the PNG.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: a notebook's figures stay as they are

    fraction, weight = weights(run)
    figure = Figure(figsize=(9, 3.2), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(fraction.numpy(), bins=80, range=(0, 1), density=True, color="#4477aa")
    left.set(xlabel="time, 0 data to 1 noise", ylabel="density", title="training times", xlim=(0, 1), ylim=(0, None))
    right.plot(fraction.numpy(), weight.numpy(), color="#cc6677")
    target = getattr(run.diffusion, "predict", "x0")
    right.set(xlabel="time, 0 data to 1 noise", title=f"weight of the squared error of {target}", xlim=(0, 1))
    if float(weight.max()) > 50 * float(weight.median()):
        right.set_yscale("log")
    else:
        right.set_ylim(0, None)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{run.name}: {run.diffusion.title}")
    with whole_file(path, durable=False) as temporary:
        figure.savefig(temporary, format="png")


def weights(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Training times as fractions from data to noise, and the weight of the error there, [n] each.

    Sorted by time. The cosine term, which is no weight, is left out.
    """
    process = run.diffusion
    schedule = (process.replace(cosine=0.0) if "cosine" in type(process).model_fields else process).build()
    t = torch.stack([schedule.draw(rng.generator(run.seed, "objective", i)) for i in range(DRAWS)])
    t = t[schedule.fraction(t).argsort()]
    x0, noise = torch.randn(2, len(t), 1, 2, 2, generator=rng.generator(run.seed, "objective"))
    backbone, time = schedule.precondition(lambda x, t, y=None: torch.zeros_like(x), "unit")
    losses = schedule.loss(Denoiser(backbone, schedule, schedule.target, time=time), x0, t, noise)
    return schedule.fraction(t), losses.loss / losses.mse
