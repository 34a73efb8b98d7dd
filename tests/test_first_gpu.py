"""The script for a first GPU: every kind of stage with tiny networks on a CPU, and how stages follow one another."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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


STAGES = {
    "device": lambda found: None,
    "step": step_of,
    "operators U-DiT-S": operators_of,
    "operators DiT-XL/2": operators_of,
    "speed U-DiT-S": row_of,
    "speed U-DiT-L literal": row_of,
    "speed DiT-XL/2": row_of,
    "kernels": kernels_of,
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
