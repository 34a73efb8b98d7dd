"""Pages of docs/ that a script of benchmarks/ writes say what its records say."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The names that a script of benchmarks/ defines."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return lambda name: runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def measurements() -> dict[str, Any]:
    """All but the counts of a GPU's path."""
    files = sorted((ROOT / "docs" / "performance").glob("*.json"))
    counts = ("first-gpu", "gpu-count", "kernels", "residual")
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files if path.stem not in counts}


def test_performance_page_is_written_from_its_files_and_short(script: Any) -> None:
    written = script("report")["page"](measurements())
    assert written == page("performance")
    assert len(written.splitlines()) < 120


def test_report_prints_every_row_of_a_file(script: Any) -> None:
    tables = script("report")["tables"]
    for name, content in measurements().items():
        text = "\n".join(tables(name, content))
        assert content["command"] in text
        for row in content["results"]:
            assert f"| {row['subject']} | {row['median'] * 1e3:.1f} |" in text


def test_misses_are_named(script: Any) -> None:
    """A result on the wrong side of its target is no success, whatever else the row holds."""
    found = measurements()
    for row in found["forward-B-against-DiT-XL"]["results"]:
        row["median"] = 1.0
    [line] = [line for line in script("targets")["targets"](found) if "forward of U-DiT-B" in line]
    assert line.endswith("| batch 1 1.00x; batch 4 1.00x; batch 16 1.00x | missed |")


@pytest.mark.parametrize(("name", "writer"), [("digits", "table"), ("export", "page")])
def test_page_is_written_from_its_record(script: Any, name: str, writer: str) -> None:
    names = script(name)
    assert names[writer](names["read"]()).rstrip("\n") == page(name).rstrip("\n")


def test_guidance_page_has_the_scores_of_its_record(script: Any) -> None:
    names = script("guidance")
    record, text = names["read"](), page("guidance")
    assert names["page"](record, text) == text
    assert len(record["rows"]) == len(names["ROWS"])


def test_alarms_were_quiet_over_whole_runs_and_the_page_says_so(script: Any) -> None:
    names = script("alarms")
    record, text = json.loads(names["RECORD"].read_text(encoding="utf-8")), page("training")
    assert names["page"](record, text) == text
    assert {"digits, flow, U-DiT", "fashion-mnist, flow, U-DiT", "digits, mean-flow, U-DiT"} <= record.keys()
    assert not any(row["alarms"] for row in record.values())
