"""Everything that has to be measured on a GPU, in one command: python benchmarks/first_gpu.py

Each stage is a process of its own of at most ten minutes, and its result is in the JSON when it ends; a stage that is
there already is left out, so the same command goes on after an interruption. ``--stage NAME`` runs one of them alone,
again. ``--device cpu`` rehearses: the same code with tiny networks, to see that the script works; its times say
nothing, and its JSON is another one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from first_gpu_operators import operators
from first_gpu_trainings import resume, several
from torch import nn

from udit import ops
from udit.benchmarking.meters import kernels_of
from udit.benchmarking.subjects import Subject, baseline, inputs, ours
from udit.data.batches import Batch
from udit.dist import World
from udit.models.catalog import find
from udit.run.recipes import load_run
from udit.training.batches import drawing_of
from udit.training.learner import Learner
from udit.training.precision import set_up

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "docs" / "performance" / "first-gpu.json"
LIMIT = 600
"""Seconds of a stage."""
BATCH = 256
LITERAL = f"{ROOT / 'benchmarks' / 'literal.py'}:LiteralUDiT"
DIFFUSERS = "diffusers:DiTTransformer2DModel"
NETWORKS: dict[str, tuple[str, str | None]] = {
    **{name: (name, None) for name in ("U-DiT-S", "U-DiT-B", "U-DiT-L", "DiT-XL/2")},
    **{f"{name} literal": (name, LITERAL) for name in ("U-DiT-S", "U-DiT-B", "U-DiT-L")},
    **{f"{name} diffusers": (name, DIFFUSERS) for name in ("U-DiT-S", "U-DiT-L")},
}
"""What is timed: (model, what runs in its place)."""
Stage = Callable[["Machine"], dict[str, Any]]


class Machine:
    """Where a stage runs: a GPU, or in a rehearsal the CPU."""

    def __init__(self, rehearsal: bool) -> None:
        self.rehearsal = rehearsal
        self.device = torch.device("cpu" if rehearsal else "cuda:0")
        self.batch = 2 if rehearsal else BATCH

    def config(self, name: str) -> Any:
        """Of a catalogue row; in a rehearsal a tiny one of its family, with one block a level."""
        if not self.rehearsal:
            return find(name).config
        if name.startswith("DiT"):
            return find("DiT-tiny").config.replace(depth=1)
        return find("U-DiT-S").config.replace(width=16, heads=2, depths=(1, 1, 1, 1, 1), num_classes=10, input_size=16)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def times(self, call: Callable[[], object], rounds: int = 20) -> list[float]:
        """Milliseconds of each of several calls, by the GPU's own clock, after three that are not timed."""
        for _ in range(1 if self.rehearsal else 3):
            call()
        self.wait()
        if self.device.type != "cuda":
            return [1e3 * seconds_of(call) for _ in range(2)]
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        self.wait()
        return [one.elapsed_time(other) for one, other in itertools.pairwise(marks)]


def seconds_of(call: Callable[[], object]) -> float:
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


def step(machine: Machine) -> dict[str, Any]:
    """Layouts and types of the maps between blocks, and where a step of the trainer waits, as torch itself warns."""
    learner = learner_of(machine, machine.batch)
    with set_up(learner.run.training, machine.device):
        return _steps(machine, learner)


def learner_of(machine: Machine, size: int, **changed: Any) -> Learner:
    """U-DiT-S in training, with a batch of a size; ``changed`` are keys of ``training``."""
    run = load_run("digits", ["diffusion.kind=ddpm", "training.precision=bfloat16", "training.log_every=100"])
    training = run.training.model_copy(update={"batch_size": size, **changed})
    run = run.model_copy(update={"model": machine.config("U-DiT-S"), "training": training})
    learner = Learner(run, World(device=machine.device))
    learner.share(0)
    return learner


def batch_of(machine: Machine, learner: Learner) -> Batch:
    """The first batch of a run, of black images."""
    run, ids = learner.run, list(range(learner.run.training.batch_size))
    x = torch.zeros(len(ids), run.model.in_channels, *run.model.size)
    drawn = drawing_of(run)(ids, run.model.size)
    batch = Batch(x, torch.zeros(len(ids), dtype=torch.long), ids, ids, drawn=drawn)
    return batch.pin_memory() if machine.device.type == "cuda" else batch


def _steps(machine: Machine, learner: Learner) -> dict[str, Any]:
    """Three steps, and a fourth one that is looked at."""
    maps: list[list[Any]] = []

    def see(block: nn.Module, given: tuple[Any, ...]) -> None:
        maps.append([list(given[0].shape), given[0].is_contiguous(), str(given[0].dtype)])

    for module in learner.model.modules():
        for block in getattr(module, "blocks", ()):
            block.register_forward_pre_hook(see)
    batch = batch_of(machine, learner)
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


def speed(machine: Machine, name: str, other: str | None, compiled: bool) -> dict[str, Any]:
    """Forward and training step, at batch 256 or the largest half of it that fits."""
    config = machine.config(name)
    subject = ours(name, config, compiled) if other is None else baseline(other, config)
    kinds = ("forward", "train")
    with set_up(load_run("digits", ["training.precision=bfloat16"]).training, machine.device):
        return {kind: _measured(machine, subject, kind, compiled and other is not None) for kind in kinds}


def _measured(machine: Machine, subject: Subject, kind: str, lists: bool) -> dict[str, Any]:
    batch = machine.batch
    while batch:
        gc.collect()  # an optimiser holds a reference to itself: the weights of the last attempt would stay
        torch.cuda.empty_cache()
        told = _timed(machine, subject, kind, batch, lists)
        if told is not None:
            return {"batch": batch} | told
        batch //= 2
    return {"batch": 0}


def compile_lists(network: nn.Module) -> None:
    """Compiles each member of a foreign network's outermost lists, as our blocks are: in minutes less than the whole.

    Raises:
        RuntimeError: it has no lists.
    """
    from torch._dynamo import config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, 128)  # each shape of a block and each batch is one more
    found: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
            for block in module:
                block.compile(dynamic=False)
    if not found:
        raise RuntimeError(f"{type(network).__name__} has no nn.ModuleList to compile the members of")


def _timed(machine: Machine, subject: Subject, kind: str, batch: int, lists: bool) -> dict[str, Any] | None:
    """Times of a kind of work, None where memory runs out; ``lists`` compiles a network that is not of this library."""
    with torch.device(machine.device):
        model = subject.training() if kind == "train" else subject.inference()
        given = inputs(subject.config, batch, subject.config.size)
    if lists:
        compile_lists(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6, fused=True)

    def call() -> None:
        with torch.autocast(machine.device.type, torch.bfloat16), torch.set_grad_enabled(kind == "train"):
            out = model(*given)
        if kind == "train":
            out.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    try:
        first = seconds_of(lambda: (call(), machine.wait()))
        if machine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        told: dict[str, Any] = {"first call s": first, "ms": machine.times(call)}
    except torch.OutOfMemoryError:
        return None
    told["flops"] = subject.flops(1, subject.config.size, kind == "train") * batch
    if machine.device.type == "cuda":
        told["peak bytes"] = torch.cuda.max_memory_allocated()
    return told


def kernels(machine: Machine, compiled: bool) -> dict[str, Any]:
    """Time by kernel of a training step of U-DiT-L, its kinds of work, and the share in which the GPU stood idle."""
    from torch.profiler import ProfilerActivity, profile

    cuda = machine.device.type == "cuda"
    subject = ours("U-DiT-L", machine.config("U-DiT-L"), compiled)
    with torch.device(machine.device):
        model = subject.training()
        given = inputs(subject.config, machine.batch // 4 or 1, subject.config.size)

    def call() -> None:
        with torch.autocast(machine.device.type, torch.bfloat16):
            loss = model(*given).float().square().mean()
        loss.backward()
        model.zero_grad()

    seconds = statistics.median(machine.times(call, 5)) / 1e3
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + cuda], record_shapes=True) as trace:
        call()
        machine.wait()
    events: Any = trace.events()
    spent: collections.Counter[str] = collections.Counter()
    for event in events:
        if not cuda:
            spent[event.name] += event.self_cpu_time_total
        elif event.device_type.name == "CUDA" and not event.is_user_annotation:
            spent[event.name[:160]] += event.time_range.elapsed_us()
    kinds, launches, busy = kernels_of(events)
    told: dict[str, Any] = {"us": dict(spent.most_common(60)), "seconds": seconds, "kinds": kinds}
    return told | {"launches": launches, "idle": max(0.0, 1 - busy / seconds)}


def graphs(machine: Machine) -> dict[str, Any]:
    """A small batch launched kernel by kernel, and as a CUDA graph: times of steps, and whether bits are the same."""
    slow, plain = _small_steps(machine, graph=False)
    fast, graphed = _small_steps(machine, graph=not machine.rehearsal)
    same = all(torch.equal(plain[name], graphed[name]) for name in plain)
    return {"kernels, ms": slow, "graph, ms": fast, "same bits": same}


def _small_steps(machine: Machine, graph: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Times of steps of at most 32 images, and the weights after them."""
    keys = {"deterministic": True, "cuda_graphs": graph, "compile": not machine.rehearsal}
    learner = learner_of(machine, min(machine.batch, 32), **keys)
    batch, numbers = batch_of(machine, learner), itertools.count()
    with set_up(learner.run.training, machine.device):
        times = machine.times(lambda: learner.begin(next(numbers), [batch]))
        learner.settle()
    return times, {name: x.cpu() for name, x in learner.model.state_dict().items()}


def shows(found: dict[str, Any]) -> dict[str, Any]:
    """Quotients of images a second, from the stages that are there."""

    def rate(name: str, kind: str) -> float | None:
        rows = [found.get(f"speed {name}{form}", {}).get(kind, {}) for form in ("", ", compiled")]
        rates = [row["batch"] / statistics.median(row["ms"]) for row in rows if row.get("batch")]
        return max(rates, default=None)  # type: ignore[type-var]

    def quotient(one: str, other: str, kind: str = "train") -> float | None:
        rates = rate(one, kind), rate(other, kind)
        return None if None in rates else rates[0] / rates[1]  # type: ignore[operator]

    return {
        "U-DiT-L's step over the literal one's": quotient("U-DiT-L", "U-DiT-L literal"),
        "U-DiT-S's step over the literal one's": quotient("U-DiT-S", "U-DiT-S literal"),
        "U-DiT-L's forward over the literal one's": quotient("U-DiT-L", "U-DiT-L literal", "forward"),
        "U-DiT-L's step over DiT-XL/2's": quotient("U-DiT-L", "DiT-XL/2"),
        "U-DiT-S's step over diffusers' DiT's": quotient("U-DiT-S", "U-DiT-S diffusers"),
        "U-DiT-L's step over diffusers' DiT's": quotient("U-DiT-L", "U-DiT-L diffusers"),
    }


SIZES = ("U-DiT-S", "U-DiT-B", "U-DiT-L", "DiT-XL/2")
STAGES: dict[str, Stage] = {
    "device": device,
    "step": step,
    **{f"operators {name}": (lambda machine, name=name: operators(machine, name)) for name in SIZES},
    **{
        f"speed {name}{', compiled' * compiled}": (lambda machine, row=(*row, compiled): speed(machine, *row))
        for name, row in NETWORKS.items()
        for compiled in (False, True)
    },
    "kernels": lambda machine: kernels(machine, compiled=False),
    "kernels, compiled": lambda machine: kernels(machine, compiled=True),
    "graphs": graphs,
    "resume": resume,
    "several": several,
}


def main() -> int:
    """Runs what is missing; exit code 1 if a stage failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, help="this one alone, in this process")
    parser.add_argument("--json", type=Path, help="the results; docs/performance/first-gpu.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses")
    args = parser.parse_args()
    rehearsal = args.device == "cpu"
    if not rehearsal and not torch.cuda.is_available():
        print("there is no CUDA GPU here; --device cpu rehearses the script", file=sys.stderr)
        return 2
    path = args.json or (Path(tempfile.gettempdir(), "udit-rehearsal.json") if rehearsal else RESULT)
    if args.stage:
        keep(path, args.stage, STAGES[args.stage](Machine(rehearsal)))
        return 0
    return missing(path, [sys.executable, __file__, "--json", str(path), "--device", args.device])


def missing(path: Path, command: list[str]) -> int:
    """Runs the stages that a file lacks, each by a command with its name; 1 if one failed."""
    failed = 0
    source = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    for name in STAGES:
        if name in read(path):
            continue
        print(name, flush=True)
        if problem := ended([*command, "--stage", name], os.environ | {"PYTHONPATH": source}):
            print(f"{name}: {problem}", file=sys.stderr)
            failed += 1
    told = shows(read(path))
    keep(path, "shows", told)
    for line, value in told.items():
        print(f"{line}: {'not there' if value is None else f'{value:.2f}'}")
    return int(failed > 0)


def ended(command: list[str], environment: dict[str, str]) -> str:
    """Runs a stage with all processes that it starts; what went wrong, if anything did."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait(LIMIT)
        return f"exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        return f"longer than {LIMIT} seconds"
    finally:
        with contextlib.suppress(ProcessLookupError):  # what is left of the stage, also after Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read(path: Path) -> dict[str, Any]:
    """What a file of results holds."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def keep(path: Path, name: str, result: dict[str, Any]) -> None:
    """Adds a stage's result to the file, which is complete at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(read(path) | {name: result}, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
