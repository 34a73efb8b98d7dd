"""Two machines, as network namespaces with one cable between them: nothing is lost or repeated, whatever breaks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nodes import Nodes, maker
from ranks import FOR_RANKS, Ranks
from runs import RECIPE, image_folder, metrics, state_hash, train
from udit.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for images that both machines read, and for the length of a run."""
    maker()
    return [*image_folder(tmp_path_factory.mktemp("data") / "images"), f"training.steps={STEPS}"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, data: list[str]) -> str:
    """The state hash of two ranks on one machine."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    ranks = Ranks(out, data, 2)
    assert ranks.wait() == [0, 0], ranks.told()
    return state_hash(out)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Two machines."""
    with Nodes() as made:
        yield made


class Job:
    """A training on both machines, one rank on each."""

    def __init__(self, nodes: Nodes, folder: Path, words: list[str]) -> None:
        self.nodes, self.out = nodes, folder / "out"
        self.words = ["train", RECIPE, "--no-progress", f"out={self.out}", *FOR_RANKS, *words]
        self.logs = [folder / f"{node}.log" for node in (0, 1)]
        self.launchers = [self.start(node) for node in (0, 1)]

    def start(self, node: int) -> subprocess.Popen[str]:
        """Starts a machine's launcher, as the machine's owner or SLURM does."""
        return self.nodes.torchrun(node, 1, self.words, self.logs[node])

    def steps(self) -> int:
        """Lines of the log."""
        log = self.out / "metrics.jsonl"
        return log.read_bytes().count(b"\n") if log.is_file() else 0

    def reach(self, steps: int) -> None:
        """Waits for some steps."""
        self.wait_for(lambda: self.steps() >= steps)

    def wait_for(self, condition: object, seconds: float = 240) -> None:
        """Waits until something is so."""
        deadline = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.01)

    def finish(self) -> None:
        """Waits until both launchers succeed; those that gave up, as the other machine was gone, are started again."""
        deadline = time.monotonic() + 400
        while any(launcher.poll() != 0 for launcher in self.launchers):
            assert time.monotonic() < deadline, self.told()
            for node, launcher in enumerate(self.launchers):
                if launcher.poll() not in (None, 0):
                    self.launchers[node] = self.start(node)
            time.sleep(0.1)

    def told(self) -> list[str]:
        """What each machine said."""
        return [log.read_text(encoding="utf-8") for log in self.logs]

    def check(self, wanted: str) -> None:
        """The bits are those of the unbroken run, and the log has each step once."""
        assert state_hash(self.out) == wanted
        assert [line["step"] for line in metrics(self.out)] == list(range(1, STEPS + 1))
        assert not list(self.out.glob("checkpoints/.tmp-*"))


def on_both(nodes: Nodes, folder: Path, words: list[str]) -> None:
    """Runs a command on both machines."""
    logs = [folder / f"{words[0]}-{node}.log" for node in (0, 1)]
    launchers = [nodes.torchrun(node, 1, words, log) for node, log in enumerate(logs)]
    assert [launcher.wait(timeout=400) for launcher in launchers] == [0, 0], [log.read_text() for log in logs]


def alone(words: list[str]) -> None:
    """Runs a command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code


def test_encoding_is_spread_over_machines(nodes: Nodes, tmp_path: Path, data: list[str]) -> None:
    words = ["encode", RECIPE, *data, "--no-progress", "--shard-size", "4", "--out"]
    on_both(nodes, tmp_path, [*words, str(tmp_path / "shared")])
    alone([*words, str(tmp_path / "alone")])
    found, wanted = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("shared", "alone")
    )
    assert found == wanted
    assert len([name for name in wanted if name.startswith("shard-")]) == 6


def test_sampling_for_scores_is_spread_over_machines(nodes: Nodes, tmp_path: Path, data: list[str]) -> None:
    out, words = tmp_path / "run", ["evaluation.batch_size=5", "evaluation.judge_steps=5", "evaluation.bootstrap=10"]
    train(out, *data, *words, "training.steps=3")

    def samples() -> bytes:
        with np.load(out / "evaluation" / "samples.npz") as file:
            found: bytes = file["arr_0"].tobytes()
        shutil.rmtree(out / "evaluation")
        return found

    on_both(nodes, tmp_path, ["eval", str(out), "--n", "40", "--steps", "2", "--no-progress"])
    shared = samples()
    alone(["eval", str(out), "--n", "40", "--steps", "2", "--no-progress"])
    assert shared == samples()


def test_short_cut_of_the_cable_is_waited_out(nodes: Nodes, tmp_path: Path, data: list[str], unbroken: str) -> None:
    job = Job(nodes, tmp_path, data)
    job.reach(5)
    nodes.cut()
    reached = job.steps()
    time.sleep(3)
    assert job.steps() <= reached + 1, "nothing goes through a cut cable"
    nodes.heal()
    job.finish()
    job.check(unbroken)
    assert not any("lost a peer" in told or "resuming" in told for told in job.told())


def test_slow_cable_and_a_process_that_stands_still_change_nothing(
    nodes: Nodes, tmp_path: Path, data: list[str], unbroken: str
) -> None:
    nodes.slow("3mbit")
    job = Job(nodes, tmp_path, data)
    job.reach(5)
    launcher = job.launchers[1].pid
    [rank] = map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split())
    os.kill(rank, signal.SIGSTOP)
    time.sleep(2)
    os.kill(rank, signal.SIGCONT)
    job.finish()
    job.check(unbroken)
    assert not any("lost a peer" in told for told in job.told())


def test_long_cut_ends_the_ranks_and_healing_brings_them_back(
    nodes: Nodes, tmp_path: Path, data: list[str], unbroken: str
) -> None:
    job = Job(nodes, tmp_path, [*data, "training.timeout=20"])
    job.reach(5)
    nodes.cut()
    job.wait_for(lambda: all("lost a peer" in told for told in job.told()))
    nodes.heal()
    job.finish()
    job.check(unbroken)
    assert any("resuming from step" in told for told in job.told())


def test_machine_that_dies_and_comes_back_takes_up_its_part(
    nodes: Nodes, tmp_path: Path, data: list[str], unbroken: str
) -> None:
    job = Job(nodes, tmp_path, [*data, "training.timeout=20"])
    job.reach(5)
    nodes.cut()  # nobody says goodbye
    nodes.kill(1)
    job.wait_for(lambda: "lost a peer" in job.told()[0])
    nodes.heal()
    job.launchers[1] = job.start(1)
    job.finish()
    job.check(unbroken)
    assert any("resuming from step" in told for told in job.told())
