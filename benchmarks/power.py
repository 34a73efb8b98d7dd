"""Whether the scores tell models apart that differ, and only those: pools of images drawn from ``demo:digits``.

OMP_NUM_THREADS=1 python benchmarks/power.py [--pools FOLDER]    draws what is missing, measures; writes power.json
python benchmarks/power.py --table                              prints the tables of docs/evaluation.md

Each pool has 10,000 images of the seeds 0 to 9,999 under one setting. Two pools whose Fréchet distances, by the judge of
the data, differ at 10,000 seeds are compared again in 20 draws of 1,000 of these seeds, by paired seeds. And pools are
compared with themselves under disjoint seeds, 40 times: there, nothing is to be told apart. Draws are fixed before
anything is looked at. With ``--clock`` the same network, Inception's shape with random weights, sees 1,000 images through
torch-fidelity's program and through this one, one batch of each in turn, and EfficientNet-Lite0 beside them.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import processor

import udit
from udit.data.sources import parts_of
from udit.dist import World
from udit.evaluation.frechet import Array, Statistics
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judges import judge_of
from udit.evaluation.paired import agreement_difference, frechet_difference, mind_difference
from udit.evaluation.shards import labels_for
from udit.scoring import draw_samples, shards_of
from udit.store import load, read_run_config

RECORD = Path(__file__).with_suffix(".json")
MODEL = "demo:digits"
COUNT = 10_000
DRAWN = 1_000
DRAWS = 20
SAME = 40
POOLS: dict[str, dict[str, Any]] = {
    "dpmpp 8": {"sampler": "dpmpp", "steps": 8},
    "dpmpp 6": {"sampler": "dpmpp", "steps": 6},
    "dpmpp 8, guidance 1": {"sampler": "dpmpp", "steps": 8, "guidance": 1.0},
}
"""Settings by name; the first is the one that the others are compared with."""


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=Path, default=Path(tempfile.gettempdir()) / "udit-power", help="kept images")
    parser.add_argument("--clock", action="store_true", help="time Inception's shape and EfficientNet-Lite0")
    parser.add_argument("--table", action="store_true", help="print the tables")
    asked = parser.parse_args()
    if asked.table:
        print(tables(read()))
        return
    torch.set_num_threads(1)
    found = {"clock": clock()} if asked.clock else {"power": power(asked.pools)}
    RECORD.write_text(json.dumps(read() | found, indent=1) + "\n", encoding="utf-8")


def read() -> dict[str, Any]:
    """The measurements so far."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def facts() -> dict[str, str]:
    """Where and with what this was measured."""
    return {
        "machine": f"{processor()}, {torch.get_num_threads()} thread(s)",
        "versions": f"udit {udit.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": str(date.today()),
    }


def power(folder: Path) -> dict[str, Any]:
    """How often pools are told apart."""
    run, system = read_run_config(MODEL), load(MODEL)
    source = run.data.build()
    parts = parts_of(source, run.data)
    judge = judge_of(source, parts, run.evaluation.judge_steps, None, mirrored=run.data.mirrored)
    real = ImageSet.of_source(source, parts.train).map(judge.features)
    reference = Statistics.of(real)
    config = run.evaluation.replace(num_samples=COUNT, first_seed=0, batch_size=500)
    wanted = np.array(labels_for(COUNT, system.config.classes.trained, config.labels, config.first_seed))
    pools: dict[str, Array] = {}
    right: dict[str, np.ndarray] = {}
    for name, changes in POOLS.items():
        how = run.sampling.replace(**changes)
        shards = shards_of(system.fingerprint, config, how, folder)
        draw_samples(system, shards, config, how, World(), progress=False)
        pools[name] = shards.images().map(judge.features)
        right[name] = judge.classes(pools[name]) == wanted
        print(f"{name}: drawn", flush=True)
    g = np.random.default_rng(17)
    draws = [np.sort(g.choice(COUNT, DRAWN, replace=False)) for _ in range(DRAWS)]
    halves = [g.permutation(COUNT)[: 2 * DRAWN].reshape(2, DRAWN) for _ in range(SAME)]
    first, *others = pools
    apart = {}
    for name in others:
        whole = frechet_difference(pools[first], pools[name], reference)
        some = [frechet_difference(pools[first][rows], pools[name][rows], reference) for rows in draws]
        apart[f"{first} against {name}"] = {
            "whole": whole.model_dump(mode="json"),
            "whole_agreement": agreement_difference(right[first], right[name]).model_dump(mode="json"),
            "separate": sum(each.separate for each in some),
            "draws": [each.model_dump(mode="json") for each in some],
            "separate_without_pairs": sum(
                frechet_difference(pools[first][rows], pools[name][other], reference).separate
                for rows, other in zip(draws, draws[1:] + draws[:1], strict=True)
            ),
        }
    same = [frechet_difference(pools[first][a], pools[first][b], reference) for a, b in halves]
    return {
        "model": MODEL,
        "weights": system.fingerprint,
        "judge": judge.described,
        "reference": len(real),
        "count": COUNT,
        "drawn": DRAWN,
        "settings": {name: run.sampling.replace(**how).model_dump(mode="json") for name, how in POOLS.items()},
        "apart": apart,
        "same": {
            "comparisons": SAME,
            "separate": sum(each.separate for each in same),
            "draws": [each.model_dump(mode="json") for each in same],
        },
        **facts(),
    }


def clock() -> dict[str, Any]:
    """To be filled in."""
    raise NotImplementedError


def tables(record: dict[str, Any]) -> str:
    """The tables of docs/evaluation.md."""
    found = record["power"]
    lines = [
        f"| pools of {found['count']:,} seeds | difference, 95 % | told apart by {found['drawn']:,} paired seeds | "
        "by seeds that are no pairs |",
        "|---|---|---|---|",
    ]
    for name, one in found["apart"].items():
        whole, count = one["whole"], len(one["draws"])
        low, high = whole["interval"]
        lines.append(
            f"| {name} | {whole['value']:.4f}, {low:.4f} to {high:.4f} | {one['separate']} of {count} | "
            f"{one['separate_without_pairs']} of {count} |"
        )
    same = found["same"]
    lines.append(f"| the first with itself, disjoint seeds | 0 | | {same['separate']} of {same['comparisons']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
