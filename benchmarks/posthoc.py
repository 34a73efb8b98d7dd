"""Errors of post-hoc EMA on weights that follow a random walk of 1,000 steps; prints a Markdown table.

`.venv/bin/python benchmarks/posthoc.py`, one process, seconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from udit.run.config import PosthocConfig
from udit.training.posthoc import PowerAverages, Snapshots

LENGTHS = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25)
STEPS, EVERY = 1000, 50


class Walk(nn.Module):
    """Weights on a random walk whose steps shrink, as in training."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(500))

    @torch.no_grad()
    def move(self, step: int) -> None:
        """Takes step number ``step``, the same in every run."""
        self.w += torch.randn(500, generator=torch.Generator().manual_seed(step)) / (10 + step) ** 0.5


def relative(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found - wanted).norm() / wanted.norm())


def main() -> None:
    """Prints the table of docs/evaluation.md."""
    model, folder = Walk(), Path(tempfile.mkdtemp())
    kept = PowerAverages(model, PosthocConfig(every=1, sigma_rels=LENGTHS))
    writers = {p: PowerAverages(model, PosthocConfig(every=1, precision=p)) for p in ("float32", "float16", "bfloat16")}
    for step in range(1, STEPS + 1):
        model.move(step)
        for averages in (kept, *writers.values()):
            averages.update(model, step)
        if step % EVERY == 0:
            for precision, averages in writers.items():
                averages.snapshot(folder / precision, step)
    print("| sigma_rel | profile error | rebuilt against kept | float16 | bfloat16 |\n|---|---|---|---|---|")
    for length in LENGTHS:
        found = {precision: Snapshots(folder / precision).rebuild(length) for precision in writers}
        exact = found["float32"].state["w"]
        errors = [relative(exact, kept.averages[length]["w"])]
        errors += [relative(found[precision].state["w"], exact) for precision in ("float16", "bfloat16")]
        print(f"| {length:g} | {found['float32'].error:.1%} | " + " | ".join(f"{e:.1e}" for e in errors) + " |")


if __name__ == "__main__":
    main()
