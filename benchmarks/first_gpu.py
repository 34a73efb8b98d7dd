"""Everything that has to be measured on a GPU, in one command: python benchmarks/first_gpu.py

Each stage is a process of its own of at most ten minutes, and its result is in the JSON when it ends; a stage that is
there already is left out, so the same command goes on after an interruption. ``--stage NAME`` runs one of them alone,
again. ``--rehearse`` runs the same code with tiny networks on the CPU, to see that the script works; its times say
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udit import ops
from udit.benchmarking.subjects import Subject, baseline, inputs, ours
from udit.data.batches import Batch
from udit.dist import World
from udit.models.catalog import find
from udit.run.recipes import load_run
from udit.training.batches import drawing_of
from udit.training.learner import Learner

ROOT = Path(__file__).parents[1]
LIMIT = 600
"""Seconds of a stage."""
BATCH = 256
LITERAL = f"{ROOT / 'benchmarks' / 'literal.py'}:LiteralUDiT"
SPEED = {
    **{f"speed {name}": (name, None) for name in ("U-DiT-S", "U-DiT-B", "U-DiT-L", "DiT-XL/2")},
    **{f"speed {name} literal": (name, LITERAL) for name in ("U-DiT-S", "U-DiT-L")},
    **{f"speed {name} equal": (name, "diffusers:DiTTransformer2DModel") for name in ("U-DiT-S", "U-DiT-L")},
}
"""Stage: (model, what runs in its place)."""
Stage = Callable[["Machine"], dict[str, Any]]


class Machine:
    """Where a stage runs: a GPU, or in a rehearsal the CPU."""

    def __init__(self, rehearsal: bool) -> None:
        self.rehearsal = rehearsal
        self.device = torch.device("cpu" if rehearsal else "cuda:0")
        self.batch = 2 if rehearsal else BATCH

    def config(self, name: str) -> Any:
        """Of a catalogue row; in a rehearsal of the tiny one of its family."""
        if self.rehearsal:
            name = "U-DiT-tiny" if name.startswith("U-DiT") else "DiT-tiny"
        return find(name).config

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def times(self, call: Callable[[], object], rounds: int = 20) -> list[float]:
        """Milliseconds of each of several calls, by the GPU's own clock, after three that are not timed."""
        for _ in range(1 if self.rehearsal else 3):
            call()
        self.wait()
        if self.device.type != "cuda":
            return [1e3 * _seconds(call) for _ in range(2)]
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        self.wait()
        return [one.elapsed_time(other) for one, other in itertools.pairwise(marks)]


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def device(machine: Machine) -> dict[str, Any]:
    """The card, and its peaks: a square product in bf16, and a copy."""
    size = 256 if machine.rehearsal else 8192
    a = torch.randn(size, size, device=machine.device, dtype=torch.bfloat16)
    long = torch.empty(size * size * 8, dtype=torch.uint8, device=machine.device)
    product, copy = (statistics.median(machine.times(call)) for call in (lambda: a @ a, long.clone))
    told: dict[str, Any] = {
        "torch": torch.__version__,
        "bf16 TFLOP/s": 2 * size**3 / product / 1e9,
        "copy GB/s": 2 * long.numel() / copy / 1e6,
    }
    if machine.device.type == "cuda":
        facts = torch.cuda.get_device_properties(0)
        told |= {"card": facts.name, "bytes": facts.total_memory, "GPUs": torch.cuda.device_count()}
        told |= {"capability": [facts.major, facts.minor], "kernels": ops.describe("cuda")}
    return told


def _operators(batch: int, side: int, width: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Operators of a U-DiT's block with arguments of one shape, float64 on the CPU."""
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x, mods = some(batch, side, side, width), [some(batch, 1, 1, width) for _ in range(2)]
    heads = max(1, width // 24)
    yield "gated_sum", (x, mods[0], some(batch, side, side, width))
    yield "modulated_norm", (x, *mods)
    yield "depthwise", (x, some(width, 1, 5, 5), some(width), True)
    yield "grid_attention", (some(batch, side, side, 3 * width), some(heads).abs() + 1, None, heads, 2)


def operators(machine: Machine) -> dict[str, Any]:
    """Every operator forward and backward: error against float64, of the kernel and of the reference, and times."""
    told: dict[str, Any] = {}
    shapes = [(2, 8, 48)] if machine.rehearsal else [(64, 32, 96), (64, 16, 192), (64, 8, 384), (64, 32, 384)]
    for batch, side, width in shapes:
        for name, arguments in _operators(batch if machine.rehearsal else 4, side, width):
            exact = _gradients(ops.OPERATORS[name].reference, arguments)
            for dtype in (torch.float32, torch.bfloat16):
                given = [_placed(a, machine.device, dtype, name) for a in arguments]
                row: dict[str, Any] = {}
                for who, call in (("kernel", ops.OPERATORS[name]), ("reference", ops.OPERATORS[name].reference)):
                    found = _gradients(call, given)
                    row[who] = [_error(a, b) for a, b in zip(found, exact, strict=True)]
                    row[f"{who} ms"] = statistics.median(machine.times(lambda c=call, g=given: _gradients(c, g)))
                told[f"{name} {batch}x{side}x{side}x{width} {str(dtype).removeprefix('torch.')}"] = row
    return told


def _placed(value: Any, device: torch.device, dtype: torch.dtype, name: str) -> Any:
    """An argument in an element type; attention's scales of heads are float32 in all of them."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, torch.float32 if name == "grid_attention" and value.ndim == 1 else dtype)


def _gradients(call: Callable[..., Tensor], arguments: Any) -> list[Tensor]:
    """The output, and the gradients of all floating-point arguments."""
    own = [a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in arguments]
    leaves = [a for a in own if isinstance(a, Tensor)]
    out = call(*own)
    ones = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, ones)]


def _error(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of the exact values."""
    off = found.double().cpu() - exact
    return float(off.square().mean().sqrt() / exact.square().mean().sqrt())


def step(machine: Machine) -> dict[str, Any]:
    """Layouts and types of the maps between blocks, and where a step of the trainer waits, as torch itself warns."""
    run = load_run("digits", ["diffusion.kind=ddpm", "training.precision=bfloat16", "training.log_every=100"])
    training = run.training.model_copy(update={"batch_size": machine.batch})
    run = run.model_copy(update={"model": machine.config("U-DiT-S"), "training": training})
    learner = Learner(run, World(device=machine.device))
    learner.share(0)
    maps: list[list[Any]] = []

    def see(block: nn.Module, given: tuple[Any, ...]) -> None:
        maps.append([list(given[0].shape), given[0].is_contiguous(), str(given[0].dtype)])

    for module in learner.model.modules():
        for block in getattr(module, "blocks", ()):
            block.register_forward_pre_hook(see)
    ids = list(range(machine.batch))
    x = torch.zeros(machine.batch, run.model.in_channels, *run.model.size)
    batch = Batch(x, torch.zeros(machine.batch, dtype=torch.long), ids, ids, drawn=drawing_of(run)(ids, run.model.size))
    batch = batch.pin_memory() if machine.device.type == "cuda" else batch
    for number in range(3):
        learner.begin(number, [batch])
    maps.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if machine.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        learner.begin(3, [batch])
        if machine.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message)[:200] for w in caught if "synchroniz" in str(w.message)]
    return {"maps": maps, "waits": waits, "deferred": learner.defers}


def speed(machine: Machine, name: str, other: str | None) -> dict[str, Any]:
    """Forward and training step, eager and compiled, at batch 256 or the largest half of it that fits."""
    config = machine.config(name)
    told: dict[str, Any] = {}
    for compiled in (False, True):
        subject = ours(name, config, compiled) if other is None else baseline(other, config)
        if compiled and other is not None:
            break
        for kind in ("forward", "train"):
            told[f"{kind}{', compiled' * compiled}"] = _measured(machine, subject, kind)
    return told


def _measured(machine: Machine, subject: Subject, kind: str) -> dict[str, Any]:
    batch = machine.batch
    while batch:
        try:
            return {"batch": batch} | _timed(machine, subject, kind, batch)
        except torch.OutOfMemoryError:
            batch //= 2
            torch.cuda.empty_cache()
    return {"batch": 0}


def _timed(machine: Machine, subject: Subject, kind: str, batch: int) -> dict[str, Any]:
    with torch.device(machine.device):
        model = subject.training() if kind == "train" else subject.inference()
        given = inputs(subject.config, batch, subject.config.size)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6, fused=True)

    def call() -> None:
        with torch.autocast(machine.device.type, torch.bfloat16), torch.set_grad_enabled(kind == "train"):
            out = model(*given)
        if kind == "train":
            out.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    first = _seconds(lambda: (call(), machine.wait()))
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    told: dict[str, Any] = {"first call s": first, "ms": machine.times(call)}
    told["flops"] = subject.flops(1, subject.config.size, kind == "train") * batch
    if machine.device.type == "cuda":
        told["peak bytes"] = torch.cuda.max_memory_allocated()
    return told


def kernels(machine: Machine) -> dict[str, Any]:
    """Time by kernel of a compiled training step of U-DiT-L, and the share in which the GPU stood idle."""
    from torch.profiler import ProfilerActivity, profile

    subject = ours("U-DiT-L", machine.config("U-DiT-L"), compiled=not machine.rehearsal)
    with torch.device(machine.device):
        model = subject.training()
        given = inputs(subject.config, machine.batch // 4 or 1, subject.config.size)

    def call() -> None:
        with torch.autocast(machine.device.type, torch.bfloat16):
            loss = model(*given).float().square().mean()
        loss.backward()
        model.zero_grad()

    machine.times(call, 3)
    activity = ProfilerActivity.CUDA if machine.device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as trace:
        seconds = _seconds(lambda: (call(), machine.wait()))
    rows = trace.key_averages()
    busy = {
        row.key[:120]: getattr(row, f"self_{'device' if machine.device.type == 'cuda' else 'cpu'}_time_total")
        for row in rows
    }
    top = dict(sorted(busy.items(), key=lambda item: -item[1])[:40])
    return {"us": top, "launches": sum(row.count for row in rows), "idle": 1 - sum(busy.values()) / 1e6 / seconds}


def resume(machine: Machine) -> dict[str, Any]:
    """Twenty steps; the same, killed on the way and started again: whether the weights have the same bits."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["training.steps=20", "training.save_every=4", "training.deterministic=true", "training.batch_size=16"]
        words += ["training.precision=bfloat16", f"training.device={machine.device.type}", "evaluation.num_samples=20"]
        words += ["training.sample_every=1000", "model.depths=[1]"]

        def command(name: str) -> list[str]:
            return [sys.executable, "-m", "udit", "train", "digits", *words, f"out={folder}/{name}"]

        subprocess.run(command("whole"), check=True, capture_output=True)
        killed = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        saved = Path(folder, "killed", "checkpoints", "step-00000008")
        while killed.poll() is None and not saved.exists():
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            killed.send_signal(signal.SIGKILL)
        killed.wait()
        last = max(Path(folder, "killed", "checkpoints").glob("step-????????")).name
        subprocess.run(command("killed"), check=True, capture_output=True)
        whole, again = (Path(folder, n, "model", "model.safetensors").read_bytes() for n in ("whole", "killed"))
        return {"resumed from": last, "equal": whole == again}


def several(machine: Machine) -> dict[str, Any]:
    """DDP and FSDP2 on two GPUs: losses of ten steps beside those of one."""
    if machine.device.type == "cuda" and torch.cuda.device_count() < 2:
        return {"left out": "one GPU"}
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, ranks, parallel in (("one", 1, "ddp"), ("ddp", 2, "ddp"), ("fsdp", 2, "fsdp")):
            words = [f"out={folder}/{name}", f"training.parallel={parallel}", f"training.device={machine.device.type}"]
            words += ["training.steps=10", "training.batch_size=16", "training.sample_every=1000", "model.depths=[1]"]
            start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
            subprocess.run([*start, "udit", "train", "digits", *words], check=True, capture_output=True)
            lines = Path(folder, name, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            told[name] = [json.loads(line)["loss"] for line in lines]
    return told


STAGES: dict[str, Stage] = {
    "device": device,
    "operators": operators,
    "step": step,
    **{name: (lambda machine, row=row: speed(machine, *row)) for name, row in SPEED.items()},
    "kernels": kernels,
    "resume": resume,
    "several": several,
}


def main() -> int:
    """Runs what is missing; exit code 1 if a stage failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, help="this one alone, in this process")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "performance" / "first-gpu.json")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        print("there is no CUDA GPU here; --rehearse tries the script on the CPU", file=sys.stderr)
        return 2
    if args.stage:
        _keep(args.json, args.stage, STAGES[args.stage](Machine(args.rehearse)))
        return 0
    failed = 0
    for name in STAGES:
        if name in _read(args.json):
            continue
        print(name, flush=True)
        again = [sys.executable, __file__, "--stage", name, "--json", str(args.json)] + ["--rehearse"] * args.rehearse
        source = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            subprocess.run(again, check=True, timeout=LIMIT, env=os.environ | {"PYTHONPATH": source})
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed += 1
    return int(failed > 0)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _keep(path: Path, name: str, result: dict[str, Any]) -> None:
    """Adds a stage's result to the file, which is complete at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(_read(path) | {name: result}, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
