"""Compares operators, copies and allocated bytes of a forward and a training step with ``budget.json``.

The counts do not depend on the machine's load. ``python benchmarks/budget.py --write`` stores the present counts as the
budget.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from udit.benchmarking.measure import Work, prepare
from udit.benchmarking.subjects import ours
from udit.models.udit.config import UDiTConfig

BUDGET = Path(__file__).with_name("budget.json")
CONFIG = UDiTConfig(width=32, heads=2, depths=(1, 1, 1, 1, 1), num_classes=10, input_size=16)


def counted(kind: str) -> dict[str, int]:
    """Of the second call: operators (and how many of them copy), allocations, and kilobytes allocated."""
    call = prepare(ours("tiny", CONFIG), Work(kind, 2, (16, 16))).call
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    events = [event for event in trace.events() if event.name.startswith(("aten::", "udit::"))]
    allocating = [event for event in events if event.self_cpu_memory_usage > 0]
    return {
        "allocations": len(allocating),
        "copies": sum(event.name in ("aten::copy_", "aten::cat") for event in events),
        "operators": len(events),
        "kilobytes": sum(event.self_cpu_memory_usage for event in allocating) // 1000,
    }


def main() -> int:
    """Prints the counts and marks those over the budget; exit code 1 if there are any."""
    torch.set_num_threads(1)
    found = {kind: counted(kind) for kind in ("forward", "train")}
    if "--write" in sys.argv:
        BUDGET.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    budget = json.loads(BUDGET.read_text(encoding="utf-8"))
    over = 0
    for kind, counts in found.items():
        for name, count in counts.items():
            allowed = budget[kind][name]
            over += count > allowed
            print(f"{kind:8} {name:12} {count:8,} of {allowed:8,}{'  OVER' if count > allowed else ''}")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
