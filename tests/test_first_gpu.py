"""The script for a first GPU: every kind of stage with tiny networks on a CPU, and how stages follow one another."""

from __future__ import annotations

import gc
import importlib
import json
import sys
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from udit.run.recipes import load_run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("first_gpu")


def row_of(found: dict[str, Any]) -> None:
    for kind in ("forward", "train"):
        row = found[kind]
        assert row["batch"] == 2
        assert len(row["ms"]) == 2
        assert row["flops"] > 0


def operators_of(found: dict[str, Any]) -> None:
    """Of the output and the gradient of the map; those of weights are sums that cancel, in the reference as well."""
    errors = [row for row in found.values() if "quotient" in row]
    times = [row for name, row in found.items() if name.endswith("ms")]
    assert len(errors) == 2 * len(times) > 0
    for name, row in found.items():
        if name.endswith("float32"):
            assert max(row["kernel"][:2] + row["reference"][:2]) < 1e-4, (name, row)
        elif name.endswith("bfloat16"):
            assert max(row["kernel"][:2] + row["reference"][:2]) < 0.05, (name, row)


def step_of(found: dict[str, Any]) -> None:
    assert found["maps"]
    assert all(contiguous for _, contiguous, _ in found["maps"])
    assert {dtype for _, _, dtype in found["maps"]} == {"torch.bfloat16"}


def kernels_of(found: dict[str, Any]) -> None:
    assert found["seconds"] > 0
    assert found["us"]


def resumed(found: dict[str, Any]) -> None:
    [row] = found.values()
    assert row["equal"]
    assert row["resumed from"] >= "step-00000002"


def several_of(found: dict[str, Any]) -> None:
    assert all(len(losses) == 2 for losses in found["losses"].values())
    assert max(found["off"].values()) < 1e-4


def graphs_of(found: dict[str, Any]) -> None:
    assert found["same bits"]
    assert len(found["kernels, ms"]) == len(found["graph, ms"])


STAGES = {
    "device": lambda found: None,
    "step": step_of,
    "operators U-DiT-S": operators_of,
    "operators DiT-XL/2": operators_of,
    "speed U-DiT-S": row_of,
    "speed U-DiT-L literal": row_of,
    "speed DiT-XL/2": row_of,
    "kernels": kernels_of,
    "graphs": graphs_of,
    "resume": resumed,
    "several": several_of,
}
"""One of each kind; the others differ in names of networks, and in being compiled, which takes half a minute."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", STAGES)
def test_every_kind_of_stage_runs_as_far_as_a_cpu_can(script: ModuleType, name: str, tmp_path: Path) -> None:
    file = tmp_path / "first.json"
    script.keep(file, "before", {"kept": True})
    script.keep(file, name, script.STAGES[name](script.Machine(rehearsal=True)))
    found = json.loads(file.read_text())
    assert found["before"] == {"kept": True}
    STAGES[name](found[name])


def test_stages_that_are_there_are_left_out_and_one_that_fails_does_not_end_the_others(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, child = tmp_path / "first.json", tmp_path / "child.py"
    child.write_text(
        "import json, pathlib, sys\n"
        "name, path = sys.argv[-1], pathlib.Path(sys.argv[1])\n"
        "path.with_name(name).touch()\n"
        "assert name != 'two'\n"
        "path.write_text(json.dumps(json.loads(path.read_text()) | {name: {}}))\n"
    )
    monkeypatch.setattr(script, "STAGES", dict.fromkeys(("one", "two", "three")))
    script.keep(file, "one", {"kept": True})
    assert script.missing(file, [sys.executable, str(child), str(file)]) == 1
    assert not (tmp_path / "one").exists()
    assert {"one", "three", "shows"} == json.loads(file.read_text()).keys()
    assert "two: exit code 1" in capfd.readouterr().err
    child.write_text(child.read_text().replace("assert", "#"))
    assert script.missing(file, [sys.executable, str(child), str(file)]) == 0


def test_a_stage_ends_with_all_that_it_started(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "LIMIT", 0.2)
    words = ["sh", "-c", "sleep 60 & wait"]
    assert script.ended(words, {"PATH": "/usr/bin:/bin"}) == "longer than 0.2 seconds"


def test_what_is_shown_is_of_images_a_second(script: ModuleType) -> None:
    found = {
        "speed U-DiT-L": {"train": {"batch": 256, "ms": [100.0, 90.0, 200.0]}},
        "speed U-DiT-L, compiled": {"train": {"batch": 256, "ms": [50.0]}},
        "speed U-DiT-L literal": {"train": {"batch": 64, "ms": [50.0]}},
        "speed DiT-XL/2": {"train": {"batch": 0}},
    }
    told = script.shows(found)
    assert told["U-DiT-L's step over the literal one's"] == pytest.approx(4.0)
    assert told["U-DiT-L's step over DiT-XL/2's"] is None


def test_without_a_gpu_it_says_so(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["first_gpu.py"])
    assert script.main() == 2
    assert "there is no CUDA GPU here; --device cpu rehearses" in capsys.readouterr().err


def test_a_foreign_network_is_compiled_by_the_members_of_its_outermost_lists(script: ModuleType) -> None:
    subject = script.baseline(script.LITERAL, script.Machine(rehearsal=True).config("U-DiT-S"))
    with torch.device("meta"):
        network = subject.training()
    script.compile_lists(network)
    compiled = [name for name, module in network.named_modules() if module._compiled_call_impl is not None]
    assert compiled == [name for name, module in network.named_modules() if type(module).__name__ == "Block"] != []
    with pytest.raises(RuntimeError, match="Linear has no nn"):
        script.compile_lists(torch.nn.Linear(1, 1))


@pytest.mark.slow
def test_an_attempt_that_ran_out_of_memory_leaves_none_of_its_own(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[torch.nn.Module]] = []

    def timed(machine: Any, subject: Any, kind: str, batch: int, lists: bool) -> dict[str, Any] | None:
        assert not any(network() for network in alive)
        network = torch.nn.Linear(1, 1)
        network.own = [network]  # as an optimiser has it
        alive.append(weakref.ref(network))
        return None if batch > 1 else {}

    monkeypatch.setattr(script, "_timed", timed)
    gc.disable()
    try:
        for kind in ("forward", "train"):
            assert script._measured(script.Machine(rehearsal=True), None, kind, False) == {"batch": 1}
    finally:
        gc.enable()
    assert len(alive) == 4


def test_a_resumed_run_reads_its_steps_late_as_trainings_do(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a line of the log after each step nothing would be read late, and that is what a GPU does otherwise."""
    trainings = importlib.import_module("first_gpu_trainings")
    asked: list[list[str]] = []

    def begun(words: list[str]) -> None:
        asked.append(words)
        raise InterruptedError

    monkeypatch.setattr(trainings, "run", begun)
    with pytest.raises(InterruptedError):
        trainings.resume(script.Machine(rehearsal=False))
    run = load_run("digits", [word for word in asked[0][5:] if not word.startswith(("out=", "training.device"))])
    late = [n for n in range(1, 8) if n % run.training.log_every and n % run.training.save_every]
    assert late == [1, 2, 3, 5, 6, 7]
