"""Times forward passes and training steps side by side in one run: ``make bench``.

Rounds are interleaved, so that whatever else the machine does falls on all alike; medians are reported, as ratios to
the first row of each table.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch

import udit
from udit.config.files import load_run
from udit.diffusion.objective import hybrid_loss
from udit.diffusion.schedule import DDPM

ROUNDS = 9


def main() -> None:
    """Prints the tables."""
    print(
        f"torch {torch.__version__}, udit {udit.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads, float32, {date.today()}\n"
    )
    model = udit.build("U-DiT-S").eval()
    report(
        "forward, 4x32x32, batch 1",
        {
            "U-DiT-S, training form": forward(model, 1),
            "U-DiT-S, fused": forward(udit.fuse(model), 1),
        },
    )
    digits = load_run("digits").model
    report(
        "training step (forward, loss, backward, AdamW), 1x8x8, batch 64",
        {
            "digits recipe": training_step(udit.build(digits), 64),
            "digits recipe, activation checkpointing": training_step(udit.build(digits), 64, checkpointing=True),
        },
    )


def forward(model: torch.nn.Module, batch: int) -> Callable[[], None]:
    """One forward pass."""
    config = model.config
    x, t = torch.randn(batch, config.in_channels, *config.size), torch.full((batch,), 500)
    y = torch.zeros(batch, dtype=torch.long)

    def run() -> None:
        with torch.no_grad():
            model(x, t, y)

    return run


def training_step(model: torch.nn.Module, batch: int, checkpointing: bool = False) -> Callable[[], None]:
    """One step of the hybrid loss."""
    from udit.models.build import checkpoint_activations

    checkpoint_activations(model.train(), checkpointing)
    config = model.config
    denoiser = udit.Denoiser(model, DDPM.linear(), learn_sigma=config.learn_sigma, num_classes=config.num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x0, t = torch.rand(batch, config.in_channels, *config.size) * 2 - 1, torch.randint(1000, (batch,))
    noise, y = torch.randn_like(x0), torch.zeros(batch, dtype=torch.long)

    def run() -> None:
        hybrid_loss(denoiser, x0, t, noise, y).loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def report(title: str, cases: dict[str, Callable[[], None]]) -> None:
    """Times the cases in interleaved rounds and prints medians and ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(ROUNDS + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if round_:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    first = statistics.median(next(iter(seconds.values())))
    print(f"{title}\n  {'':42} median ms   spread   speed")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"  {name:42} {median * 1e3:9.1f} {(max(times) - min(times)) / median:7.0%} {first / median:6.2f}x")
    print()


if __name__ == "__main__":
    main()
