"""What tests of whole runs share: a small run, processes that train it, and the hash of the result."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from forks import Forked
from udit import dist
from udit.checkpoint import CheckpointStore
from udit.run.config import Run
from udit.run.recipes import load_run
from udit.training import preview
from udit.training.records import CLOCK, Outcome
from udit.training.signals import StopFlag
from udit.training.trainer import Trainer

RECIPE = str(Path(__file__).parent / "data" / "tiny.yaml")
"""A small run that saves every seven steps; its batches split over 1, 2 and 3 ranks."""
SMALL = ["model.depths=[1]", "training.batch_size=6", "training.save_every=3"]
"""Overrides of it for tests that train in their own process: a network of one block, saved every three steps."""


def image_folder(root: Path, each: int = 12) -> list[str]:
    """Writes two classes of random 8x8 grey images; returns the overrides that train on them.

    They load without scikit-learn, which takes longer than all else that a small run does.
    """
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(root / name / f"{i}.png")
    return ["data.kind=folder", f"data.root={root}", "data.size=8", "data.channels=1"]


def small_run(out: Path, *overrides: str) -> Run:
    """The run of ``SMALL``."""
    return load_run(RECIPE, [*SMALL, f"out={out}", *overrides])


def train(out: Path, *overrides: str, curve: bool = False, stop: StopFlag | None = None) -> Outcome:
    """Trains the run of ``SMALL`` in this process; its loss is drawn on demand, for that takes as long as the rest."""
    with contextlib.nullcontext() if curve else mock.patch.object(preview, "save_curve"):
        return Trainer(small_run(out, *overrides), dist.World()).train(progress=False, stop=stop)


def finished_at(out: Path, step: int) -> Outcome:
    """The outcome of a finished run."""
    return Outcome(step, finished=True, out=out)


@contextlib.contextmanager
def steady_adam() -> Iterator[None]:
    """For runs that are compared to rounding, in other batches or on another processor.

    Adam's first steps are the gradient's sign, and that of a gradient which is zero but for rounding is chance. Its eps
    is raised far above what rounding leaves of zero, about 1e-8, so that such gradients move nothing.
    """
    with mock.patch.object(torch.optim, "AdamW", functools.partial(torch.optim.AdamW, eps=1e-4)):
        yield


def metrics(out: Path) -> list[dict[str, object]]:
    """The lines of ``metrics.jsonl``, without the clock's."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def environment(**extra: str) -> dict[str, str]:
    """A single-threaded environment without a launcher's variables."""
    ours = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    return ours | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | extra


def command(out: Path, *overrides: str) -> list[str]:
    """The training command of the small run."""
    return [sys.executable, "-m", "udit", "train", RECIPE, "--no-progress", f"out={out}", *overrides]


def launch(out: Path, *overrides: str, ranks: int = 1, **streams: Any) -> list[Forked]:
    """Starts the run on some ranks, as a launcher would; forked, for the command is the same and a start takes long."""
    words = command(out, *overrides)[3:]
    if ranks == 1:
        return [Forked(words, environment(), **streams)]
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        Forked(words, environment(RANK=str(rank), LOCAL_RANK=str(rank), **group), **streams) for rank in range(ranks)
    ]


def free_port() -> str:
    """A free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def finish(processes: Sequence[subprocess.Popen[str] | Forked], timeout: float = 300) -> list[tuple[int, str]]:
    """Waits for every rank; (exit code, standard error) of each."""
    ended = []
    for process in processes:
        _, errors = process.communicate(timeout=timeout)
        assert process.returncode is not None
        ended.append((process.returncode, errors or ""))
    return ended


def newest(out: Path) -> Path:
    """The newest checkpoint."""
    return max((out / "checkpoints").glob("step-????????"))


def state_hash(out: Path) -> str:
    """sha256 over weights, EMA and optimiser of the newest checkpoint, by name; the same however they are split."""
    path, digest = newest(out), hashlib.sha256()
    checkpoint = CheckpointStore(path.parent).opened(int(path.name.removeprefix("step-")))
    for name in ("model", "ema", "optim"):
        for key, tensor in sorted(checkpoint.tensors(name).items()):
            digest.update(f"{name}/{key}".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
