"""How time and memory of networks of clips grow with the number of frames: ``benchmarks/frames.py``.

Two blocks of Latte-S/2 (one within frames, one along time), and two of Wan's of the same width, on latents of 16x16 at
batch 1: a forward pass, and a training step (forward and backward). Seconds are those of the processor that this
process used, on one thread, the least of three calls. Writes frames.json and prints it as Markdown.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

import udit
from udit.benchmarking.meters import CPU

RECORD = Path(__file__).with_suffix(".json")
FRAMES = (8, 16, 32, 64)
ROUNDS = 3
SMALL: dict[str, Any] = {"width": 384, "heads": 6, "depth": 2, "in_channels": 4, "input_size": 16, "num_classes": 10}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Latte": ("Latte-S/2", {**SMALL, "learn_sigma": False}),
    "Wan": ("Wan2.1-1.3B", {**SMALL, "patch": 2, "context": None, "ffn": {"ratio": 4}}),
}


def main() -> None:
    """Measures, writes and prints."""
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "torch": torch.__version__,
        "udit": udit.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "date": str(date.today()),
        "frames": FRAMES,
        "networks": {name: measured(*parts) for name, parts in NETWORKS.items()},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record))


def measured(name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Seconds and bytes for each number of frames, and their exponents."""
    found: dict[str, Any] = {"forward": {"seconds": [], "bytes": []}, "training": {"seconds": [], "bytes": []}}
    model = udit.build(name, **overrides)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    for frames in FRAMES:
        x, t, y = torch.randn(1, 4, frames, 16, 16), torch.tensor([500.0]), torch.tensor([3])

        def forward(x: torch.Tensor = x, t: torch.Tensor = t, y: torch.Tensor = y) -> None:
            with torch.no_grad():
                model(x, t, y)

        def training(x: torch.Tensor = x, t: torch.Tensor = t, y: torch.Tensor = y) -> None:
            model(x, t, y).square().mean().backward()

        for kind, call in (("forward", forward), ("training", training)):
            model.zero_grad()
            call()  # gradients are there from now on, as between the steps of a training
            found[kind]["seconds"].append(min(seconds(call) for _ in range(ROUNDS)))
            found[kind]["bytes"].append(CPU.dissect(call).extra)
    for each in found.values():
        each["exponents"] = {unit: exponent(each[unit]) for unit in ("seconds", "bytes")}
    return {"weights": weights, **found}


def seconds(call: Callable[[], object]) -> float:
    """Of the processor."""
    start = time.process_time()
    call()
    return time.process_time() - start


def exponent(values: list[float]) -> float:
    """Of the power of the number of frames that fits best (least squares of logarithms)."""
    x, y = [math.log(f) for f in FRAMES], [math.log(v) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def table(record: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    heads = " | ".join(f"{frames} frames" for frames in record["frames"])
    lines = [f"| network | | {heads} | exponent |", "| --- | --- |" + " ---: |" * (len(record["frames"]) + 1)]
    for name, each in record["networks"].items():
        for kind in ("forward", "training"):
            found = each[kind]
            times = " | ".join(f"{value:.2f} s" for value in found["seconds"])
            sizes = " | ".join(f"{value / 2**20:.0f} MiB" for value in found["bytes"])
            lines.append(f"| {name} | {kind}, time | {times} | {found['exponents']['seconds']:.2f} |")
            lines.append(
                f"| {name} | {kind}, memory beside the weights | {sizes} | {found['exponents']['bytes']:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
