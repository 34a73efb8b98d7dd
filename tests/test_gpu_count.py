"""What is counted of training steps on a GPU: its limits, its table, and how counting goes on after an interruption."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks" / "gpu"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of ``benchmarks/gpu``, without what needs the stub of CUDA's libraries."""
    for other in ("compiled_bytes", "step_bytes", "strides", "syncs", "fake_cuda"):
        stand_in: Any = SimpleNamespace(say=lambda line: None)
        monkeypatch.setitem(sys.modules, other, stand_in)
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", GPU / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_of_the_largest_network_keeps_to_its_limits_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = load("table", monkeypatch).counts()
    assert (found["batch"], found["precision"]) == (256, "bfloat16")
    step = found["models"]["U-DiT-L"]["compiled, selective recomputation"]
    assert step["launches"] <= 3700
    assert step["GB"] <= 680
    assert step["kept_GB"] <= 80
    assert not any(block["graph_breaks"] for block in step["blocks"])
    pair = found["models"]["U-DiT-S"]["compiled"]["blocks"][0]
    assert all(count <= most for count, most in zip(pair["launches"], (25, 41), strict=True))
    assert all(round(count, 1) <= most for count, most in zip(pair["GB"], (1.6, 3.6), strict=True))


def test_the_page_says_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    table = load("table", monkeypatch)
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert "\n".join([*table.HEAD, *table.rows(table.counts())]) in page, "run benchmarks/gpu/table.py"


def test_counting_goes_on_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    count = load("count", monkeypatch)
    asked: list[tuple[str, str]] = []

    def counted(name: str, form: str) -> dict[str, Any]:
        asked.append((name, form))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"launches": len(asked)}

    def forms_of(name: str) -> dict[str, Callable[[], dict[str, Any]]]:
        return {form: functools.partial(counted, name, form) for form in ("eager", "compiled")}

    monkeypatch.setattr(count, "forms_of", forms_of)
    monkeypatch.setattr(count, "RESULT", tmp_path / "counts.json")
    before = '{"models": {"B": {}, "S": {"eager": {"launches": 0}}}}'
    (tmp_path / "counts.json").write_text(before)
    with pytest.raises(KeyboardInterrupt):
        count.count_all(["S", "L"], {})
    assert (tmp_path / "counts.json").read_text() == before
    count.count_all(["S", "L"], {})
    assert asked == [("S", "eager"), ("S", "compiled"), ("L", "eager"), ("L", "eager"), ("L", "compiled")]
    models = json.loads((tmp_path / "counts.json").read_text())["models"]
    assert models.keys() == {"B", "S", "L"}
    assert models["S"]["eager"] == {"launches": 1}, "what was there before is counted again"
    assert [path.name for path in tmp_path.iterdir()] == ["counts.json"]


def test_the_page_says_what_the_type_of_the_residual_stream_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    page = " ".join((ROOT / "docs" / "gpu.md").read_text().split())
    found = json.loads((ROOT / "docs" / "performance" / "residual.json").read_text())
    lower = [-100 * off for off in found["relative difference"]]
    assert len(lower) == 3
    assert f"was {min(lower):.2f} to {max(lower):.2f}% lower" in page
    assert f"({-100 * found['mean']:.2f}% on average, {100 * found['deviation']:.2f}% its standard deviation)" in page
    forms = load("table", monkeypatch).counts()["models"]["U-DiT-L"]
    wide, plain = forms["compiled, residual stream in float32"], forms["compiled"]
    more = [100 * (wide[key] / plain[key] - 1) for key in ("GB", "kept_GB")]
    assert f"{more[0]:.0f}% more bytes and {more[1]:.0f}% more activations" in page
