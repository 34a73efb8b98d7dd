"""Whether the scores tell models apart that differ, and only those: pools of images drawn from ``demo:digits``.

OMP_NUM_THREADS=1 python benchmarks/power.py [--pools FOLDER]    draws what is missing, measures; writes power.json
python benchmarks/power.py --table                              prints the tables of docs/evaluation.md

Each pool has 10,000 images of the seeds 0 to 9,999 under one setting. Two pools whose Fréchet distances, by the judge
of the data, differ at 10,000 seeds are compared again in 20 draws of 1,000 of these seeds, by paired seeds. And pools
are compared with themselves under disjoint seeds, 40 times: there, nothing is to be told apart. Draws are fixed before
anything is looked at.

``--clock`` (twice: features, then numbers) times the scoring of 1,000 images: the same network, Inception's shape with
random weights, by torch-fidelity's own functions and by this program, some images through each in turn, and
EfficientNet-Lite0 beside them, which is another network with other input. Both are
given the same reference features. ``--memory`` takes the peak of a score of 10,000 and of 40,000 images of 32x32.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from digits import processor

import udit
from udit.data.sources import parts_of
from udit.dist import World
from udit.evaluation.extractors import load_extractor
from udit.evaluation.fidelity import Features, Fidelity
from udit.evaluation.frechet import Array, Statistics
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judges import judge_of
from udit.evaluation.paired import agreement_difference, frechet_difference
from udit.evaluation.sets import Reference
from udit.evaluation.shards import labels_for, shards_of
from udit.evaluation.standard import score
from udit.scoring import draw_samples
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
    parser.add_argument("--memory", action="store_true", help="measure the memory of a score")
    parser.add_argument("--table", action="store_true", help="print the tables")
    asked = parser.parse_args()
    if asked.table:
        print(tables(read()))
        return
    torch.set_num_threads(1)
    if asked.memory:
        found = {"memory": memory()}
    else:
        found = {"clock": clock(asked.pools)} if asked.clock else {"power": power(asked.pools)}
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
            "separate_by_agreement": sum(
                agreement_difference(right[first][rows], right[name][rows]).separate for rows in draws
            ),
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


SIDE = 64
"""Of the images that are timed."""
TURN = 50
"""Images that each program sees in its turn."""


def noise(count: int, seed: int, side: int = SIDE) -> np.ndarray:
    """Images that are smooth, so that features differ."""
    g = np.random.default_rng(seed)
    coarse = g.integers(0, 256, (count, 3, 4, 4)).repeat(side // 4, 2).repeat(side // 4, 3)
    return (coarse // 2 + g.integers(0, 128, coarse.shape)).astype(np.uint8)


def clock(folder: Path) -> dict[str, Any]:
    """Processor seconds of scoring 1,000 images; the first call takes features, the second numbers of them."""
    kept = folder / "clock.npz"
    if not kept.is_file():
        return clock_features(kept)
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = np.load(kept)
    pool, logits, spatial, real = (found[name] for name in ("pool", "logits", "spatial", "real"))

    def theirs() -> dict[str, float]:
        a, b = torch.from_numpy(pool), torch.from_numpy(real)
        fid = fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in (a, b)), False)
        kid = kid_features_to_metric(a, b, kid_subsets=100, kid_subset_size=1000, verbose=False)
        prc = prc_features_to_metric(a, b, prc_neighborhood=3, prc_batch_size=10000, verbose=False)
        return {**fid, **kid, **prc, **isc_features_to_metric(torch.from_numpy(logits).float())}

    class Given:
        name, sha256, inception, done = "inception-v3-compat, random weights", "0" * 64, True, 0

        def __call__(self, images: np.ndarray) -> Features:
            rows = slice(self.done, self.done + len(images))
            self.done += len(images)
            return Features(pool[rows], spatial[rows], logits[rows])

    whole = Statistics.of(real)
    against = Reference("0" * 64, len(real), whole, Statistics.of(spatial + 0.01), real)
    seconds, values = {}, {}
    for name, do in (
        ("torch-fidelity", theirs),
        ("udit", lambda: score(noise(DRAWN, 0), Given(), against, subject={}, protocol={})),
    ):
        start = time.process_time()
        values[name] = do()
        seconds[name] = time.process_time() - start
        print(f"numbers by {name}: {seconds[name]:.1f} s", flush=True)
    ours = {name: one.value for name, one in values["udit"].scores.items()}
    before = read()["clock"]
    total = {name: before["features"][name] + seconds[name] for name in seconds}
    return before | {
        "numbers": seconds,
        "total": total,
        "ratio": total["udit"] / total["torch-fidelity"],
        "values": {"torch-fidelity": values["torch-fidelity"], "udit": ours},
    }


def clock_features(kept: Path) -> dict[str, Any]:
    """Processor seconds of the features of 1,000 images by each program, in turns; resumes where it was interrupted."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from test_fidelity import random_inception

    weights = random_inception()
    with mock.patch("torch.load", return_value=weights):
        theirs = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path="given"
        )
    ours, other = Fidelity("inception", weights), load_extractor("efficientnet-lite0")
    images = noise(DRAWN, 0)

    def by_torch_fidelity(some: np.ndarray) -> object:
        with torch.no_grad():
            return [theirs(torch.from_numpy(some[i : i + 64])) for i in range(0, len(some), 64)]  # its batch size

    programs = {"torch-fidelity": by_torch_fidelity, "udit": ours, "efficientnet-lite0": other}
    for do in programs.values():
        do(images[:8])
    kept.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, DRAWN, TURN):
        turn = kept.with_name(f"turn-{start}.npz")
        if turn.is_file():
            continue
        found: dict[str, Any] = {}
        for name, do in programs.items():
            begin = time.process_time()
            result = do(images[start : start + TURN])
            found[name] = time.process_time() - begin
            if isinstance(result, Features) and name == "udit":
                found |= {"pool": result.pool, "logits": result.logits, "spatial": result.spatial}
        np.savez(turn, **found)
        print(start, {name: round(found[name], 1) for name in programs}, flush=True)
    turns = [np.load(kept.with_name(f"turn-{start}.npz")) for start in range(0, DRAWN, TURN)]
    pool, logits, spatial = (np.concatenate([turn[key] for turn in turns]) for key in ("pool", "logits", "spatial"))
    scale = 1 + 0.1 * np.random.default_rng(2).standard_normal(pool.shape[1])
    np.savez(kept, pool=pool, logits=logits, spatial=spatial, real=pool[::-1] * scale)
    return {
        "images": DRAWN,
        "side": SIDE,
        "input": {"inception": 299, "efficientnet-lite0": 224},
        "features": {name: float(sum(turn[name] for turn in turns)) for name in programs},
        **facts(),
    }


def memory() -> dict[str, Any]:
    """Peak memory of a score beyond that of its beginning, in MiB, of 10,000 and of 40,000 images."""
    found = {}
    for count in (10_000, 40_000):
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(count)], capture_output=True, text=True, check=True, cwd=RECORD.parent
        )
        found[str(count)] = float(done.stdout)
    return {"mib": found, "features": 512, **facts()}


MEASURED = """
import resource, sys
import numpy as np
from udit.evaluation.fidelity import Features
from udit.evaluation.image_set import ImageSet
from udit.evaluation.sets import reference_of
from udit.evaluation.gathered import gather

class Wide:
    name, sha256, inception = "wide", "0", False
    def __call__(self, images):
        g = np.random.default_rng(int(images[0, 0, 0, 0]))
        return Features(g.standard_normal((len(images), 512)))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

shape = (3, 32, 32)
read = lambda ids: np.broadcast_to((ids % 251).astype(np.uint8)[:, None, None, None], (len(ids), *shape))
before = peak()
gather(ImageSet(int(sys.argv[1]), shape, read), [Wide()])
print(peak() - before)
"""


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
