"""Loads and fuzzes `udit serve` on 127.0.0.1, and records what happened: docs/results/serve.json.

python benchmarks/serve.py [MODEL] [--parts load kills fuzz] [--requests 2000] [--clients 200] [--fuzz 10000] [--write]

Without MODEL: a U-DiT-tiny whose weights are noise, so that its images show every difference.
The server and the clients run on one core, the worker process on another. Every loop is bounded in count and time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from serve_clients import exchange, http, served
from serve_fuzz import fuzz
from serve_load import load, load_and_kill, reference

import udit
from udit.assemble import System
from udit.benchmarking.report import machine
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.run.system import SystemConfig

RECORD = Path(__file__).parents[1] / "docs" / "results" / "serve.json"


def noise_model(folder: Path) -> str:
    """A model folder of a network whose weights are noise."""
    network = udit.build("U-DiT-tiny", learn_sigma=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    sampling = SamplingConfig(sampler="flow-euler", steps=4, guidance=1.5)
    config = SystemConfig(model=network.config, diffusion=FlowConfig(), sampling=sampling)
    return str(udit.save(System(config, network), folder / "U-DiT-tiny-noise"))


def measure_load(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Requests of many clients at once."""
    wanted = reference(model)
    with served(model) as at:
        at.spread()
        asyncio.run(load(at.port, options.clients, options.requests // 10, wanted))  # allocates what is allocated once
        before, begun = at.memory(), time.perf_counter()
        found = asyncio.run(load(at.port, options.clients, options.requests, wanted))
        seconds, after = time.perf_counter() - begun, at.memory()
        images, batches = counted(at.port, "udit_batch_images_sum"), counted(at.port, "udit_batch_images_count")
    asked = {"clients": options.clients, "requests": options.requests, "seconds": round(seconds, 1)}
    return (
        asked
        | found.summary()
        | {
            "images_per_batch": round(images / batches, 2),
            "memory_mb_before": before,
            "memory_mb_after": after,
        }
    )


def measure_kills(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """The same, of which the worker process is killed three times."""
    wanted, count = reference(model), options.requests // 4
    with served(model) as at:
        at.spread()
        found = asyncio.run(load_and_kill(at, options.clients, count, wanted, kills=3))
        starts = counted(at.port, "udit_worker_starts_total")
    return {"clients": options.clients, "requests": count, "worker_starts": int(starts)} | found.summary()


def measure_fuzz(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Broken and odd requests, and whether the server is sound afterwards."""
    wanted = reference(model)
    with tempfile.TemporaryDirectory() as folder, served(model, "--max-steps", "8") as at:
        at.spread()
        asyncio.run(load(at.port, 4, 20, wanted))
        canary, before, begun = Path(folder) / "canary", at.memory(), time.perf_counter()
        found = asyncio.run(fuzz(at.port, options.fuzz, canary, seconds=options.fuzz_seconds))
        seconds, after = time.perf_counter() - begun, at.memory()
        again = asyncio.run(load(at.port, 4, 20, wanted))
        starts, ran = counted(at.port, "udit_worker_starts_total"), canary.exists()
    return {
        "requests": sum(found.statuses.values()) + found.hung,
        "seconds": round(seconds, 1),
        "statuses": {str(key): n for key, n in sorted(found.statuses.items())},
        "faults": len(found.faults),
        "first_faults": found.faults[:5],
        "hung": found.hung,
        "code_run": ran,
        "worker_starts": int(starts),
        "memory_mb_before": before,
        "memory_mb_after": after,
        "answered_afterwards": again.answered,
        "largest_difference_of_255_afterwards": again.largest_difference,
    }


def counted(port: int, name: str) -> float:
    """A number of the server's metrics."""
    text = asyncio.run(exchange(port, http("GET", "/metrics"))).body.decode()
    found = re.search(rf"{name}\S* ([\d.]+)", text)
    assert found is not None, text
    return float(found[1])


def where(model: str) -> dict[str, Any]:
    """When and on what a part was measured."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "load_average_of_two_cores": [round(value, 1) for value in os.getloadavg()],
        "threads": "one each: clients and server on one core, worker on another",
        "versions": {name: version(name) for name in ("torch", "fastapi", "uvicorn", "starlette", "pydantic")},
        "model": Path(model).name,
    }


PARTS = {"load": measure_load, "kills": measure_kills, "fuzz": measure_fuzz}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--fuzz", type=int, default=10_000)
    parser.add_argument("--fuzz-seconds", type=float, default=1800)
    parser.add_argument("--write", action="store_true", help=f"put the parts into {RECORD.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        model = options.model or noise_model(Path(made))
        for part in options.parts:
            measured = {part: PARTS[part](model, options) | where(model)}
            print(json.dumps(measured, indent=2), flush=True)
            if options.write:
                record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
                RECORD.write_text(json.dumps(record | measured, indent=2) + "\n", encoding="utf-8")
