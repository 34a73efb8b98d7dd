"""Real processes, killed at any moment and started again, end with the bits of an unbroken run."""

from __future__ import annotations

import hashlib
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from forks import FORKS, Forked, start_server
from runs import RECIPE, finish, image_folder, launch, state_hash, train
from udit import progress
from udit.cli import main
from vaes import tiny_vae

COUNT = 35
STEPS = f"training.steps={COUNT}"


def unbroken(out: Path, ranks: int) -> tuple[str, float]:
    """State hash and seconds of a run that is not killed."""
    began = time.monotonic()
    ended = finish(launch(out, STEPS, ranks=ranks))
    assert [code for code, _ in ended] == [0] * ranks, ended
    return state_hash(out), time.monotonic() - began


def kill_after(seconds: float, processes: list[Forked]) -> bool:
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
@pytest.mark.parametrize(("ranks", "kills"), [(1, 10), (2, 3), (3, 3)])
def test_killed_run_resumes_to_the_same_bits(tmp_path: Path, ranks: int, kills: int) -> None:
    wanted, seconds = unbroken(tmp_path / "unbroken", ranks)
    moments = random.Random(ranks)
    done, folder = 0, 0
    while done < kills:
        out = tmp_path / f"killed-{folder}"
        if kill_after(moments.uniform(0, seconds), launch(out, STEPS, ranks=ranks)):
            done += 1
        else:  # it finished first: its result is checked, and the next one starts over
            assert state_hash(out) == wanted
            folder += 1
    out = tmp_path / f"killed-{folder}"
    ended = finish(launch(out, STEPS, ranks=ranks))
    assert [code for code, _ in ended] == [0] * ranks, ended
    assert state_hash(out) == wanted
    steps = [line.split(",")[0] for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == [f'{{"step": {step}' for step in range(1, COUNT + 1)]


# -- commands that show a bar --------------------------------------------------------------------------------------


def run(words: list[str], log: Path) -> None:
    """The command, in its own process; it treats its output file as a terminal, so that its bar is shown."""
    stream = log.open("w")
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr
    sys.stderr.isatty = lambda: True  # type: ignore[method-assign]
    progress._has_width = lambda: True
    main(words)


class Command:
    """A running command."""

    def __init__(self, words: list[str], bar: str, log: Path) -> None:
        """Starts it, and waits until it shows its bar."""
        log.write_text("")
        self.log = log
        start_server()
        self.process = FORKS.Process(target=run, args=(words, log))
        self.process.start()
        self.wait_for(bar)
        self.began = self.clock()

    def wait_for(self, text: str) -> None:
        """Waits for its next output."""
        while text not in self.log.read_text(encoding="utf-8"):
            assert self.process.is_alive(), self.log.read_text(encoding="utf-8")
            time.sleep(0.002)

    def clock(self) -> float:
        """Seconds that it has computed, of which other work on the machine makes no more; 0 when it is gone."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        except FileNotFoundError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ends(self, within: float = math.inf) -> bool:
        """Whether it ends by itself within some seconds of its bar; it must succeed then."""
        while self.process.exitcode is None:
            if self.clock() - self.began >= within:
                return False
            self.process.join(0.002)
        assert self.process.exitcode == 0, self.log.read_text(encoding="utf-8")
        return True

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()


def kill_ten_times(
    words: list[str], bar: str, log: Path, left: Callable[[], int], outcome: Callable[[], object]
) -> None:
    """Kills a command ten times while its bar moves, each time where the last one left off, then lets it end.

    The kills are a Poisson process, so that any moment of the bar is as likely as any other. What ends must have the
    outcome of the command that nobody killed.

    Args:
        words: the command.
        bar: how its bar begins.
        log: a file for its output.
        left: counts the files that a killed command left.
        outcome: what a finished command made; takes it away.
    """
    command = Command(words, bar, log)
    command.wait_for("100%")
    seconds = command.clock() - command.began
    assert command.ends()
    wanted = outcome()
    chance = random.Random(0)
    found: list[int] = []
    while len(found) < 10:
        command = Command(words, bar, log)
        if command.ends(within=chance.expovariate(10 / seconds)):
            assert outcome() == wanted
        else:
            command.kill()
            found.append(left())
    assert Command(words, bar, log).ends()
    assert outcome() == wanted
    assert len(set(found)) >= 5, f"files at the kills: {found} of a bar of {seconds:.1f} s"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_encoding_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    data, vae, cache = image_folder(tmp_path / "data", 200), tiny_vae(tmp_path / "vae"), tmp_path / "cache"

    def outcome() -> dict[str, bytes]:
        found = {path.name: path.read_bytes() for path in cache.iterdir()}
        shutil.rmtree(cache)
        return found

    kinds = ["codec.kind=vae", f"codec.source={vae}"]
    words = ["encode", RECIPE, *data, *kinds, "--out", str(cache), "--shard-size", "8", "--batch-size", "8"]
    kill_ten_times(words, "encode:", tmp_path / "log", lambda: len(list(cache.glob("shard-*"))), outcome)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_drawing_goes_on_to_the_same_samples_and_score(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, "training.steps=3", "evaluation.batch_size=5", "evaluation.judge_steps=5", "evaluation.bootstrap=10")

    def outcome() -> tuple[str, bytes]:
        with np.load(out / "evaluation" / "samples.npz") as file:
            samples = hashlib.sha256(file["arr_0"].tobytes()).hexdigest()
        scores = (out / "evaluation" / "metrics.json").read_bytes()
        for path in (out / "evaluation").iterdir():
            path.unlink()  # an error if shards are left: folders cannot be unlinked
        return samples, scores

    words = ["eval", str(out), "--n", "300", "--steps", "8"]
    kill_ten_times(words, "sample:", tmp_path / "log", lambda: len(list(out.glob("evaluation/samples-*/*"))), outcome)
