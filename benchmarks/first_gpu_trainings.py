"""Trainings on one GPU and on two, by the command line. A part of ``first_gpu.py``."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from first_gpu import Machine

WORDS = ("model.depths=[1]", "training.batch_size=16", "training.sample_every=1000")
Words = list[str]


def command(machine: Machine, out: Path, *words: str, ranks: int = 0) -> Words:
    """Of a training on the digits that ends soon."""
    start = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m", "udit"] if ranks else ["udit"]
    device = f"training.device={machine.device.type}"
    return [sys.executable, "-m", *start, "train", "digits", f"out={out}", device, *WORDS, *words]


def run(words: Words) -> None:
    """Runs a command to its end.

    Raises:
        RuntimeError: it failed; with the last lines that it wrote.
    """
    ended = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    if ended.returncode:
        raise RuntimeError(f"{' '.join(words[2:6])} ... ended with {ended.returncode}: {ended.stderr[-2000:]}")


def resume(machine: Machine) -> dict[str, Any]:
    """Steps; the same, killed on the way and started again: whether the weights have the same bits."""
    return {
        form: _resumed(machine, *words)
        for form, words in {
            "eager, float32": ["training.precision=float32", "training.compile=false"],
            "eager, bfloat16": ["training.precision=bfloat16", "training.compile=false"],
            "compiled, bfloat16": ["training.precision=bfloat16", "training.compile=true"],
        }.items()
        if not machine.rehearsal or form == "eager, bfloat16"
    }


def _resumed(machine: Machine, *words: str) -> dict[str, Any]:
    steps, kill_at = (4, 2) if machine.rehearsal else (20, 8)
    # no line of the log between checkpoints: steps are then read while the next ones run, as in a training
    words = (*words, "training.log_every=1000", f"training.save_every={kill_at // 2}", "training.deterministic=true")
    words = (*words, f"training.steps={steps}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(command(machine, folder / "whole", *words))
        killed = subprocess.Popen(
            command(machine, folder / "killed", *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        checkpoints = folder / "killed" / "checkpoints"
        while killed.poll() is None and not (checkpoints / f"step-{kill_at:08d}").exists():
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            killed.kill()
        broken = killed.wait() != 0
        last = max(checkpoints.glob("step-????????")).name
        run(command(machine, folder / "killed", *words))
        whole, again = ((folder / n / "model" / "model.safetensors").read_bytes() for n in ("whole", "killed"))
        return {"killed before its end": broken, "resumed from": last, "equal": whole == again}


def several(machine: Machine) -> dict[str, Any]:
    """DDP and FSDP2 on two GPUs: losses beside those of one, and the largest relative difference."""
    if not machine.rehearsal and torch.cuda.device_count() < 2:
        return {"left out": "one GPU"}
    losses: dict[str, list[float]] = {}
    steps = f"training.steps={2 if machine.rehearsal else 10}"
    with tempfile.TemporaryDirectory() as folder:
        for name, ranks, parallel in (("one", 0, "ddp"), ("ddp", 2, "ddp"), ("fsdp", 2, "fsdp")):
            out = Path(folder, name)
            run(command(machine, out, steps, "training.log_every=1", f"training.parallel={parallel}", ranks=ranks))
            lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            losses[name] = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    off = {
        name: max(abs(a - b) / abs(b) for a, b in zip(losses[name], losses["one"], strict=True))
        for name in ("ddp", "fsdp")
    }
    return {"losses": losses, "off": off}
