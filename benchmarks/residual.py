"""What a residual stream in bfloat16 costs in loss: digits trained with it and without, from the same seeds.

    PYTHONPATH=src python benchmarks/residual.py                 # writes docs/performance/residual.json; goes on there
    PYTHONPATH=src python benchmarks/residual.py --one           # one training that the file lacks

On a CPU, so that products stay in float32 and the stream alone differs: each sum that a block adds to, and its
gradient, is rounded to bfloat16, which is what a GPU stores with ``training.residual=bfloat16``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from udit import ops
from udit.dist import World
from udit.run.recipes import load_run
from udit.training.trainer import Trainer

RESULT = Path(__file__).parents[1] / "docs" / "performance" / "residual.json"
SEEDS, STEPS, LAST = (0, 1, 2), 300, 100
STREAMS = ("float32", "bfloat16")


class Rounded(torch.autograd.Function):
    """Rounds to bfloat16 and back, gradients too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.bfloat16().to(gradient.dtype)


@contextlib.contextmanager
def rounded_stream() -> Iterator[None]:
    """Context in which every gated sum of a block is rounded."""
    honest = ops.gated_sum

    def gated_sum(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        result: Tensor = Rounded.apply(honest(Rounded.apply(x), gate, y))
        return result

    with mock.patch.object(ops, "gated_sum", gated_sum):
        yield


def losses(seed: int, stream: str, steps: int = STEPS) -> list[float]:
    """Of every step."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"seed={seed}", f"training.steps={steps}", f"out={folder}/run", "training.device=cpu"]
        words += [f"training.{key}={steps}" for key in ("sample_every", "save_every")]
        trainer = Trainer(load_run("digits", words), World())
        with rounded_stream() if stream == "bfloat16" else contextlib.nullcontext():
            return [record.loss for record in trainer.steps()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", action="store_true", help="one training, then end")
    one = parser.parse_args().one
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    found |= {"steps": STEPS, "mean of the last": LAST, "loss": found.get("loss", {})}
    for name in (f"{stream} {seed}" for seed in SEEDS for stream in STREAMS):
        if name in found["loss"]:
            continue
        stream, seed = name.split()
        found["loss"][name] = statistics.fmean(losses(int(seed), stream)[-LAST:])
        RESULT.write_text(json.dumps(found | summed(found["loss"]), indent=1) + "\n", encoding="utf-8")
        print(name, found["loss"][name], flush=True)
        if one:
            return


def summed(loss: dict[str, float]) -> dict[str, Any]:
    """Relative differences, seed by seed, and their mean and standard deviation."""
    both = [seed for seed in SEEDS if all(f"{stream} {seed}" in loss for stream in STREAMS)]
    off = [loss[f"bfloat16 {seed}"] / loss[f"float32 {seed}"] - 1 for seed in both]
    told: dict[str, Any] = {"relative difference": off}
    return told | ({"mean": statistics.fmean(off), "deviation": statistics.stdev(off)} if len(off) > 1 else {})


if __name__ == "__main__":
    main()
