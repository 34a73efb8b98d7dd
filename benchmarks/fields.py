"""Next states of a 2-D Burgers flow: PDE-Transformer, U-DiT and a plain U-Net (ADM's), rolled out over 20 steps.

python benchmarks/fields.py [MODEL ...]   makes the data, trains and rolls out what fields.json lacks; resumes
python benchmarks/fields.py --page        writes docs/fields.md's table from fields.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import udit
from udit import dist
from udit.rollout import roll_out
from udit.run.resolve import resolve
from udit.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGE = ROOT / "benchmarks" / "fields.json", ROOT / "docs" / "fields.md"
BEGIN, END = "<!-- table: benchmarks/fields.py --page -->", "<!-- end of table -->"
SIDE, STATES, TRAIN, TEST = 32, 21, 60, 12
"""Points along each axis; states of a trajectory; trajectories."""
VISCOSITY, BETWEEN, INNER = 0.05, 0.15, 30
"""Of the flow; time between two states, and steps of the solver in it."""
STEPS, BATCH = 100, 16
MODELS: dict[str, dict[str, Any]] = {
    "PDE-Transformer": {
        "family": "PDE-Transformer",
        "width": 32,
        "heads": 4,
        "depths": [1, 2, 2, 2, 1],
        "patch": 2,
        "window": 4,
    },
    "U-DiT": {"family": "U-DiT", "width": 24, "heads": 2, "depths": [1, 1, 1]},
    "U-Net (ADM)": {"family": "ADM", "width": 32, "channel_mult": [1, 2], "res_blocks": 1, "attention_factors": []},
}


def burgers(count: int, seed: int) -> NDArray[np.float32]:
    """Trajectories of u_t + (u . grad) u = viscosity * laplace u, periodic on [0, 2 pi)^2.

    Pseudo-spectral in space with the upper third of frequencies cut, classical Runge-Kutta in time, float64. They start
    from random waves of at most three periods, at a root mean square of 1.

    Returns:
        float32 [count, STATES, 2, SIDE, SIDE].
    """
    random = np.random.default_rng(seed)
    k = np.fft.fftfreq(SIDE, 1 / SIDE)
    kx, ky = np.meshgrid(k, k, indexing="ij")
    kept = (np.abs(kx) < SIDE / 3) & (np.abs(ky) < SIDE / 3)
    square = kx**2 + ky**2

    def rate(hat: NDArray[np.complex128]) -> NDArray[np.complex128]:
        u = np.fft.ifft2(hat).real
        along = [np.fft.ifft2(1j * each * hat).real for each in (kx, ky)]
        moved = u[:, :1] * along[0] + u[:, 1:] * along[1]
        return np.where(kept, -np.fft.fft2(moved), 0) - VISCOSITY * square * hat

    noise = np.fft.fft2(random.normal(size=(count, 2, SIDE, SIDE)))
    hat = np.where((np.abs(kx) <= 3) & (np.abs(ky) <= 3) & (square > 0), noise, 0)
    hat /= np.sqrt((np.fft.ifft2(hat).real ** 2).mean(axis=(1, 2, 3), keepdims=True))
    states, dt = [np.fft.ifft2(hat).real], BETWEEN / INNER
    for _ in range(STATES - 1):
        for _ in range(INNER):
            a = rate(hat)
            b = rate(hat + dt / 2 * a)
            c = rate(hat + dt / 2 * b)
            hat = hat + dt / 6 * (a + 2 * b + 2 * c + rate(hat + dt * c))
        states.append(np.fft.ifft2(hat).real)
    return np.stack(states, axis=1).astype(np.float32)


def data(path: Path) -> Path:
    """The file of trajectories, written once."""
    if not path.is_file():
        train, test = burgers(TRAIN, 0), burgers(TEST, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            fields=train.reshape(-1, 2, SIDE, SIDE),
            trajectory=np.repeat(np.arange(TRAIN), STATES),
            test_fields=test.reshape(-1, 2, SIDE, SIDE),
            test_trajectory=np.repeat(np.arange(TEST), STATES),
        )
    return path


def errors(made: NDArray[Any], truth: NDArray[Any]) -> list[float]:
    """Of each step, root mean square of the error over that of the true states; [N, steps, C, H, W] each."""
    axes = (0, 2, 3, 4)
    return [float(each) for each in np.sqrt(((made - truth) ** 2).mean(axes) / (truth**2).mean(axes))]


def measure(model: dict[str, Any], path: Path, out: Path) -> dict[str, Any]:
    """Trains one model and rolls it out from the first states of the test trajectories."""
    run = resolve(
        {
            "out": str(out),
            "data": {"kind": "fields", "path": str(path), "test_share": None, "condition": "previous"},
            "model": {**model, "num_classes": 0},
            "diffusion": {"kind": "flow", "predict": "x0", "density": "logit-normal", "density_mean": 1.0},
            "training": {
                "steps": STEPS,
                "batch_size": BATCH,
                "lr": 2e-3,
                "lr_warmup": 20,
                "ema_decay": 0.99,
                "clip_norm": 1.0,
                "lr_schedule": "cosine",
                "save_every": 25,
                "sample_every": STEPS,
            },
            "sampling": {"sampler": "flow-euler", "steps": 2},
        }
    )
    began, taken = time.process_time(), 0
    for _ in Trainer(run, dist.World()).steps():
        taken += 1
    seconds = (time.process_time() - began) / max(1, taken)
    system = udit.load(out)
    test = np.load(path)["test_fields"].reshape(TEST, STATES, 2, SIDE, SIDE)
    made = torch.stack(list(roll_out(system, torch.from_numpy(test[:, 0]), STATES - 1)), dim=1).numpy()
    return {
        "errors": errors(made, test[:, 1:]),
        "parameters": system.num_parameters,
        "processor_seconds_per_step": seconds,
        "steps": STEPS,
        "batch": BATCH,
        "versions": f"udit {udit.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": str(date.today()),
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"any of {', '.join(MODELS)}; all if none is given")
    parser.add_argument("--page", action="store_true", help="write the table of docs/fields.md")
    parser.add_argument("--runs", type=Path, default=Path("runs/fields"), help="where data and run folders are")
    asked = parser.parse_args()
    if unknown := [name for name in asked.models if name not in MODELS]:
        parser.error(f"no model {unknown[0]!r}; there are {', '.join(MODELS)}")
    if asked.page:
        text = PAGE.read_text(encoding="utf-8")
        head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
        PAGE.write_text(f"{head}{BEGIN}\n\n{table(read())}\n\n{END}{tail}", encoding="utf-8")
        return
    path = data(asked.runs / "burgers.npz")
    test = np.load(path)["test_fields"].reshape(TEST, STATES, 2, SIDE, SIDE)
    still = {"errors": errors(np.repeat(test[:, :1], STATES - 1, axis=1), test[:, 1:])}
    write(read() | {"nothing moves": still})
    for name in asked.models or MODELS:
        if name not in read():
            measured = measure(MODELS[name], path, asked.runs / name.split(" ")[0])
            write(read() | {name: measured})
            print(name, [round(each, 3) for each in measured["errors"]], flush=True)


def read() -> dict[str, Any]:
    """The measurements so far."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def write(record: dict[str, Any]) -> None:
    """Keeps the measurements."""
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def table(record: dict[str, Any]) -> str:
    """A row for each step."""
    names = [name for name in ("nothing moves", *MODELS) if name in record]
    lines = ["| step | " + " | ".join(names) + " |", "| ---: |" + " ---: |" * len(names)]
    lines += [
        f"| {step + 1} | " + " | ".join(f"{record[name]['errors'][step]:.3f}" for name in names) + " |"
        for step in range(STATES - 1)
    ]
    facts = [
        f"{name}: {record[name]['parameters']:,} weights, {record[name]['steps']} steps of {record[name]['batch']} "
        f"states, {1000 * record[name]['processor_seconds_per_step']:.0f} ms of processor time each"
        for name in names[1:]
    ]
    return "\n".join([*lines, "", *(f"- {fact}." for fact in facts)])


if __name__ == "__main__":
    main()
