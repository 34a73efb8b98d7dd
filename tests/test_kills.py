"""Real processes, killed at any moment and started again, end with the bits of an unbroken run."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from runs import finish, launch, state_hash

STEPS = "training.steps=56"


def unbroken(out: Path, ranks: int) -> tuple[str, float]:
    """State hash and seconds of a run that nobody kills."""
    began = time.monotonic()
    ended = finish(launch(out, STEPS, ranks=ranks))
    assert [code for code, _ in ended] == [0] * ranks, ended
    return state_hash(out), time.monotonic() - began


def kill_after(seconds: float, processes: list[subprocess.Popen[str]]) -> bool:
    """SIGKILLs the whole group after some seconds; False if it had finished before."""
    try:
        processes[0].wait(timeout=seconds)
        finished = True
    except subprocess.TimeoutExpired:
        finished = False
    if not finished:
        for process in processes:
            process.kill()
    for process in processes:
        process.communicate(timeout=100)
    return not finished


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("ranks", "kills"), [(1, 20), (2, 5), (3, 5)])
def test_killed_run_resumes_to_the_same_bits(tmp_path: Path, ranks: int, kills: int) -> None:
    wanted, seconds = unbroken(tmp_path / "unbroken", ranks)
    moments = random.Random(ranks)
    done, folder = 0, 0
    while done < kills:
        out = tmp_path / f"killed-{folder}"
        if kill_after(moments.uniform(0, seconds), launch(out, STEPS, ranks=ranks)):
            done += 1
        else:  # it finished first: what it has is checked, and the next one begins anew
            assert state_hash(out) == wanted
            folder += 1
    out = tmp_path / f"killed-{folder}"
    ended = finish(launch(out, STEPS, ranks=ranks))
    assert [code for code, _ in ended] == [0] * ranks, ended
    assert state_hash(out) == wanted
    steps = [line.split(",")[0] for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == [f'{{"step": {step}' for step in range(1, 57)]
