"""Counts of training steps on a GPU that is not there, written to docs/performance/gpu-count.json, and their budget.

  run PYTHON count.py [MODEL ...]       counts these models, or all, and keeps the others' counts
  run PYTHON count.py --guard           U-DiT-S against gpu-budget.json; exit code 1 if anything is over it
  run PYTHON count.py --guard --write   the present counts become the budget

Interrupted, it goes on where it was: what is counted lies in gpu-count.partial until all is.

Everything is at batch 256 in bf16. A step is forward, squared error and backward; compiled, each block is one graph.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import compiled_bytes
import fake_cuda as fc
import step_bytes
import strides
import syncs
import torch

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "docs" / "performance" / "gpu-count.json"
BUDGET = Path(__file__).with_name("gpu-budget.json")
BATCH = 256
GUARDED = "U-DiT-S"
LITERAL = "benchmarks/literal.py:LiteralUDiT"
MODELS = ("U-DiT-S", "U-DiT-B", "U-DiT-L", "U-DiT-S literal", "U-DiT-B literal", "U-DiT-L literal", "DiT-XL/2")
SLACK = 1.002
"""Over a budget of bytes: versions of torch and Triton round what they keep differently."""


def config_of(name: str) -> Any:
    """The config of a catalogue row."""
    return fc.wanted("udit.models.catalog", "find")(name).config


def eager(name: str, kind: Any = None) -> dict[str, Any]:
    """An eager step: launches, GB moved, GB of activations kept."""
    told = step_bytes.step(config_of(name), BATCH, kind)
    total = told["total"]
    return {"launches": total["operators"], "GB": total["GB"], "kept_GB": told["activations_kept_GB"]}


def compiled(name: str, kind: Any = None, *, selective: bool = False, wide: bool = False) -> dict[str, Any]:
    """The step with compiled blocks, with selective recomputation in them too, or with a ``wide`` residual stream."""
    with fc.wanted("udit.nn.blocks", "residual_stream")(torch.float32 if wide else None):
        told = compiled_bytes.network(config_of(name), BATCH, kind, selective=selective)
    counts = told["network"]["compiled"]
    pairs = [
        {
            "blocks": row["count"],
            "map": row["input"]["shape"],
            "launches": [row["compiled"][way]["launches"] for way in ("forward", "backward")],
            "GB": [row["compiled"][way]["GB"] for way in ("forward", "backward")],
            "kept_GB": row["compiled"]["forward"]["outputs_GB"],
            "graph_breaks": row["compiled"]["graph_breaks"],
        }
        for row in told["blocks"]
    ]
    return {"launches": counts["launches"], "GB": counts["GB"], "kept_GB": counts["kept_GB"], "blocks": pairs}


def forms_of(name: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """A model, or the literal network of its config, eager and compiled, each with what counts it."""
    model = name.removesuffix(" literal")
    kind = None if model == name else fc.literal_class(LITERAL)
    forms = {"eager": lambda: eager(model, kind), "compiled": lambda: compiled(model, kind)}
    if kind is None and name.startswith("U-DiT"):
        forms["compiled, selective recomputation"] = lambda: compiled(name, selective=True)
        forms["compiled, residual stream in float32"] = lambda: compiled(name, wide=True)
    return forms


def fill(models: dict[str, dict[str, Any]], names: Sequence[str], keep: Callable[[], None]) -> None:
    """Counts what is missing of some models, and keeps each count before the next one begins."""
    for name in names:
        for form, count in forms_of(name).items():
            if form not in models.setdefault(name, {}):
                fc.say(f"{name}, {form}")
                models[name][form] = count()
                keep()


def guarded() -> dict[str, float]:
    """What U-DiT-S costs, in numbers that none may exceed."""
    config = config_of(GUARDED)
    whole = eager(GUARDED)
    pair = compiled_bytes.network(config, BATCH, only=[0])["blocks"][0]["compiled"]
    waits = syncs.step(config, 8)["waits"]
    found: dict[str, float] = {f"eager step, {key}": value for key, value in whole.items()}
    for way in ("forward", "backward"):
        found |= {f"compiled block at 32x32, {way}, {key}": pair[way][key] for key in ("launches", "GB")}
    found["compiled block at 32x32, kept_GB"] = pair["forward"]["outputs_GB"]
    found["compiled block at 32x32, graph breaks"] = len(pair["graph_breaks"])
    found |= {f"step of the learner, {key}": waits[key] for key in ("read back", "blocking copy", "synchronize")}
    found["blocks whose map has channels first"] = len(strides.layouts(config, 8)["not_contiguous"])
    return found


def guard(write: bool) -> int:
    """Compares with the budget."""
    found = guarded()
    if write:
        BUDGET.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    budget, over = json.loads(BUDGET.read_text(encoding="utf-8")), 0
    for name, count in found.items():
        most = budget[name] * (SLACK if "GB" in name else 1)
        over += count > most
        print(f"{name:45} {count:12,.6g} of {budget[name]:12,.6g}{'  OVER' if count > most else ''}")
    return int(over > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--guard", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.guard:
        return guard(args.write)
    if unknown := [name for name in args.models if name not in MODELS]:
        fc.fail(f"{unknown[0]!r} is none of {', '.join(MODELS)}")
    count_all(args.models or list(MODELS), fc.versions())
    return 0


def count_all(names: Sequence[str], versions: dict[str, str]) -> None:
    """Counts models into the file of results, which changes at the end, in one go."""
    about = {"batch": BATCH, "precision": "bfloat16", "versions": versions}
    partial = RESULT.with_suffix(".partial")
    before = json.loads(partial.read_text(encoding="utf-8")) if partial.is_file() else {}
    models = before.get("models", {}) if all(before.get(key) == value for key, value in about.items()) else {}

    def write(path: Path, counts: dict[str, Any]) -> None:
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(about | {"models": counts}, indent=1) + "\n", encoding="utf-8")
        beside.replace(path)

    fill(models, names, lambda: write(partial, models))
    kept = json.loads(RESULT.read_text(encoding="utf-8"))["models"] if RESULT.is_file() else {}
    write(RESULT, kept | models)
    partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
