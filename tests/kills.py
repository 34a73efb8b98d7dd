"""SIGKILL to ranks of a run whose weights are split (FSDP): one rank, all of them, and at each write of a save.

    python tests/kills.py [--ranks 2 4] [--kills 10] [--json docs/results/kills.json]

Each kind is one run folder, killed again and again and started each time with the same command; its last state must
have the bits of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ranks import Ranks
from runs import image_folder, metrics, state_hash

KINDS = ("one rank", "all ranks", "a write of rank 0", "a write of the last rank")


STEPS = 9
"""Of the small run, which saves at 3, 6 and 9."""


@dataclass
class Killed:
    """What became of runs that were killed and started again."""

    ranks: int
    kind: str
    kills: int = 0
    torn: int = 0
    """Kills that left an incomplete checkpoint behind."""
    lost_peers: int = 0
    """Ranks that were not killed and ended by themselves, with one line of error."""
    points: list[str] = field(default_factory=list)
    """The writes at which they were killed."""
    equal: int = 0
    """Runs whose weights, EMA and optimiser ended with the bits of the unbroken run, each step once in the log."""
    seconds: float = 0.0


@dataclass
class Unbroken:
    """A run that nobody killed."""

    hash: str
    seconds: float
    points: list[list[str]]
    """Each rank's writes of all saves, in order."""


def unbroken(out: Path, data: list[str], size: int) -> Unbroken:
    """Trains the small run on some ranks."""
    began = time.monotonic()
    ranks = Ranks(out, data, size)
    assert ranks.wait() == [0] * size, ranks.told()
    points = [log.with_suffix(".points").read_text().splitlines() for log in ranks.logs]
    return Unbroken(state_hash(out), time.monotonic() - began, points)


def killed(folder: Path, data: list[str], size: int, kind: str, kills: int, wanted: Unbroken, seed: int = 0) -> Killed:
    """Kills small runs, one after another, starts each again, and compares its end with the unbroken run's.

    Args:
        folder: for their folders.
        data: overrides of the data.
        size: number of ranks.
        kind: of ``KINDS``.
        kills: how many.
        wanted: the run that nobody killed.
        seed: of moments and ranks.
    """
    began, chance, found = time.monotonic(), random.Random(f"{kind} {size} {seed}"), Killed(size, kind)
    victim = size - 1 if kind.endswith("last rank") else 0
    points = iter(_spread(writes_of_a_save(wanted.points[victim]), kills) if kind.startswith("a write") else ())
    tried = 0
    while found.kills < kills:
        out = folder / f"{kind.replace(' ', '-')}-{tried}"
        tried += 1
        if kind.startswith("a write"):
            point = next(points)
            ranks = Ranks(out, data, size, kill=(victim, point))
            found.points.append(re.sub(r"\.tmp-[0-9a-f]{12}-", ".tmp-", wanted.points[victim][point]))
        else:
            ranks = Ranks(out, data, size)
            _wait(out, chance.randrange(STEPS), chance.uniform(0, 0.5 * wanted.seconds / STEPS), ranks)
            victim = chance.randrange(size)
            ranks.kill(None if kind == "all ranks" else victim)
        codes = ranks.wait()
        if all(code == 0 for code in codes):  # it was faster
            assert not kind.startswith("a write"), ranks.told()
            continue
        found.kills += 1
        found.torn += any(out.glob("checkpoints/.tmp-*"))
        found.lost_peers += _ended_by_themselves(ranks, codes, None if kind == "all ranks" else victim)
        again = Ranks(out, data, size)
        assert again.wait() == [0] * size, again.told()
        once = [line["step"] for line in metrics(out)] == list(range(1, STEPS + 1))
        found.equal += once and state_hash(out) == wanted.hash
        assert not list(out.glob("checkpoints/.tmp-*")), "what a killed rank left is removed"
    found.seconds = round(time.monotonic() - began, 1)
    return found


def writes_of_a_save(points: list[str]) -> list[int]:
    """Numbers of the points of a rank's second save; rank 0 also removes the oldest checkpoint in it."""
    [*inside] = [number for number, point in enumerate(points) if "step-00000006" in point]
    return list(range(inside[0], inside[-1] + 1))


def _spread(points: list[int], count: int) -> list[int]:
    """So many of them, evenly; some twice if there are fewer."""
    return [points[(2 * i + 1) * len(points) // (2 * count)] for i in range(count)]


def _wait(out: Path, steps: int, seconds: float, ranks: Ranks) -> None:
    """Waits until a run has taken some steps, and some seconds more; on a busy machine seconds alone say little."""
    log = out / "metrics.jsonl"
    while not ranks.done() and not (log.is_file() and log.read_bytes().count(b"\n") >= steps):
        time.sleep(0.01)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not ranks.done():
        time.sleep(0.01)


def _ended_by_themselves(ranks: Ranks, codes: list[int], victim: int | None) -> int:
    """How many ranks that were not killed ended with one line of error, which every one of them must."""
    count = 0
    for rank, (code, told) in enumerate(zip(codes, ranks.told(), strict=True)):
        if rank == victim or victim is None:
            assert code in (-9, 0), (rank, code, told)
        elif code:
            lines = [line for line in told.splitlines() if line.startswith("udit: error: ")]
            # 1: it lost its peer; 2: it had not met it yet
            assert code in (1, 2) and len(lines) <= 1 and "Traceback" not in told, (rank, code, told)
            count += 1
    return count


def main() -> None:
    """Writes a JSON file with what became of all runs, after each kind; it is an error if one of them differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--kills", type=int, default=10, help="of each kind")
    parser.add_argument("--json", type=Path, help="written after each kind; those that it holds are not done again")
    words = parser.parse_args()
    machine = {"torch": torch.__version__, "python": platform.python_version(), "processor": platform.machine()}
    rows: list[dict[str, Any]] = (
        json.loads(words.json.read_text())["runs"] if words.json and words.json.exists() else []
    )
    with tempfile.TemporaryDirectory() as name:
        data = image_folder(Path(name) / "images")
        for size in words.ranks:
            missing = [kind for kind in KINDS if not any((r["ranks"], r["kind"]) == (size, kind) for r in rows)]
            folder = Path(name) / str(size)
            folder.mkdir()
            wanted = unbroken(folder / "unbroken", data, size) if missing else None
            for kind in missing:
                assert wanted is not None
                rows.append(asdict(killed(folder, data, size, kind, words.kills, wanted)))
                sys.stdout.write(f"{json.dumps(rows[-1])}\n")
                sys.stdout.flush()
                if words.json:
                    text = json.dumps({"machine": machine, "steps": STEPS, "runs": rows}, indent=1)
                    words.json.write_text(text + "\n", encoding="utf-8")
    if any(row["equal"] != row["kills"] for row in rows):
        sys.exit("a run that was killed ended with other bits than the one that was not")


if __name__ == "__main__":
    main()
