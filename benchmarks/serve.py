"""Loads and fuzzes `udit serve` on 127.0.0.1, and records what happened: docs/performance/serve.json.

python benchmarks/serve.py [MODEL] [--requests 2000] [--clients 200] [--fuzz 10000] [--write]

Without MODEL: a U-DiT-tiny whose weights are noise, so that its images show every difference.
The server and the clients run on one core, the worker process on another. Every loop is bounded in count and time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
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

RECORD = Path(__file__).parents[1] / "docs" / "performance" / "serve.json"


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


def measure(model: str, clients: int, requests: int, fuzzed: int) -> dict[str, Any]:
    """Everything, one after another."""
    wanted = reference(model)
    with served(model) as at:
        at.spread()
        asyncio.run(load(at.port, clients, requests // 5, wanted))  # what is allocated once is allocated now
        before, begun = at.memory(), time.perf_counter()
        plain = asyncio.run(load(at.port, clients, requests, wanted))
        seconds, after = time.perf_counter() - begun, at.memory()
        metrics = asyncio.run(exchange(at.port, http("GET", "/metrics"))).body.decode()
    with served(model) as at:
        at.spread()
        killed = asyncio.run(load_and_kill(at, clients, requests // 2, wanted, kills=3))
    with tempfile.TemporaryDirectory() as folder, served(model, "--max-steps", "8") as at:
        at.spread()
        canary = Path(folder) / "canary"
        begun, starting = time.perf_counter(), at.memory()
        fuzz_result = asyncio.run(fuzz(at.port, fuzzed, canary))
        fuzz_seconds, ending = time.perf_counter() - begun, at.memory()
        again = asyncio.run(load(at.port, 4, 20, wanted))
        starts = re.search(
            r"udit_worker_starts_total\S* (\d+)", asyncio.run(exchange(at.port, http("GET", "/metrics"))).body.decode()
        )
        ran = canary.exists()
    images = re.search(r"udit_batch_images_sum\S* ([\d.]+)", metrics)
    batches = re.search(r"udit_batch_images_count\S* (\d+)", metrics)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "threads": "one each: clients and server on one core, worker on another",
        "versions": {name: version(name) for name in ("torch", "fastapi", "uvicorn", "starlette", "pydantic")},
        "model": Path(model).name,
        "load": {"clients": clients, "requests": requests, "seconds": round(seconds, 1)}
        | plain.summary()
        | {"images_per_batch": round(float(images[1]) / int(batches[1]), 2) if images and batches else None}
        | {"memory_mb_before": before, "memory_mb_after": after},
        "load_with_three_kills": {"clients": clients, "requests": requests // 2} | killed.summary(),
        "fuzz": {
            "requests": sum(fuzz_result.statuses.values()) + fuzz_result.hung,
            "seconds": round(fuzz_seconds, 1),
            "statuses": {str(key): n for key, n in sorted(fuzz_result.statuses.items())},
            "faults": len(fuzz_result.faults),
            "hung": fuzz_result.hung,
            "code_run": ran,
            "worker_starts": int(starts[1]) if starts else None,
            "memory_mb_before": starting,
            "memory_mb_after": ending,
            "answered_afterwards": again.answered,
            "largest_difference_of_255_afterwards": again.largest_difference,
            "first_faults": fuzz_result.faults[:5],
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--fuzz", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help=f"write {RECORD.name}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        model = options.model or noise_model(Path(made))
        found = measure(model, options.clients, options.requests, options.fuzz)
    print(json.dumps(found, indent=2))
    if options.write:
        RECORD.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
