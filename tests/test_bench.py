"""The literal U-DiT equals ours, and the benchmark reports what it measured."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import udit
import udit.analysis
import udit.models.catalog
from conftest import ErrorOf, batch, perturb, succeeds
from runs import environment
from udit import ops
from udit.benchmarking import measure
from udit.benchmarking.foreign import MAKERS
from udit.benchmarking.meters import CPU, kind_of
from udit.benchmarking.subjects import Subject, baseline, ours
from udit.cli import main
from udit.data.sources import InMemory
from udit.models.udit.config import UDiTConfig

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
LITERAL = f"{BENCHMARKS / 'literal.py'}:LiteralUDiT"
CONFIG = UDiTConfig(width=16, heads=2, depths=(1, 1, 1, 1, 1), num_classes=10, input_size=16)
WORDS = ("width=16", "heads=2", "depths=[1,1,1,1,1]", "num_classes=10", "input_size=16")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_literal_network_computes_what_ours_does() -> None:
    model = perturb(udit.build(CONFIG))
    literal = load("literal").LiteralUDiT(CONFIG)
    literal.load_state_dict(udit.export_published(model))
    x, t, y = batch(model)
    weights = torch.randn(3, 8, 16, 16)
    outs = [network.train()(x, t, y) for network in (model, literal)]
    torch.testing.assert_close(*outs, atol=2e-5, rtol=1e-5)
    for out in outs:
        (out * weights).mean().backward()
    ours_by_key = udit.export_published(model)
    assert ours_by_key.keys() == literal.state_dict().keys()
    torch.testing.assert_close(literal.x_embedder.proj.weight.grad, model.stem.weight.grad, atol=1e-5, rtol=1e-4)
    five = literal.latent[0].mlp1.dwconv[0].weight.grad
    torch.testing.assert_close(five, model.encoder[2].blocks[0].ffn.depthwise[0].weight.grad, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(literal.fold()(x, t, y), udit.fuse(model)(x, t, y), atol=2e-5, rtol=1e-5)


@pytest.mark.slow
def test_arithmetic_is_counted_the_same_way_and_unfused_training_costs_the_literal_more() -> None:
    mine, literal = ours("mine", CONFIG), baseline(LITERAL, CONFIG)
    assert mine.flops(2, (16, 16), training=False) == literal.flops(2, (16, 16), training=False)
    assert mine.flops(2, (16, 16), training=False) == 4 * udit.analysis.cost(CONFIG).macs
    assert literal.flops(1, (16, 16), training=True) > 3.1 * literal.flops(1, (16, 16), training=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_networks_of_diffusers_come_at_about_the_same_arithmetic(name: str) -> None:
    config = udit.models.catalog.find("U-DiT-S").config
    subject = MAKERS[name](config)
    macs = subject.flops(1, (32, 32), training=False) / 2
    assert abs(macs / udit.analysis.cost(config).macs - 1) < 0.15
    model = subject.make()
    assert model(*batch(model)).shape == (3, 8, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("side", [16, *(pytest.param(side, marks=pytest.mark.slow) for side in (32, 64, 128))])
def test_a_dit_of_equal_macs_is_within_two_hundredths_at_every_size(side: int) -> None:
    config = udit.models.catalog.find("U-DiT-S").config.replace(input_size=side)
    subject = baseline("equal:DiT", config)
    assert abs(subject.flops(1, (side, side), training=False) / (2 * udit.analysis.cost(config).macs) - 1) < 0.02
    assert subject.config.input_size == side


@pytest.mark.slow
def test_rounds_kinds_levels_and_memory_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "bench.json", tmp_path / "bench.md"
    works = [word for kind in ("forward", "train", "image") for word in ("--work", kind)]
    out = succeeds(
        capsys,
        *("bench", "U-DiT-S", *WORDS, *works, "--baseline", LITERAL, "--rounds", "2", "--steps", "2"),
        *("--json", str(file), "--markdown", str(page)),
    )
    assert page.read_text() in out
    found = json.loads(file.read_text())
    assert found["machine"]["threads"] == 1
    assert found["machine"]["kernels"] == ops.describe()
    assert [(row["work"].split(",")[0], row["subject"]) for row in found["results"]] == [
        (kind, name) for kind in ("forward", "training step", "images") for name in ("LiteralUDiT", "U-DiT-S")
    ]
    for row in found["results"]:
        assert len(row["seconds"]) == 2
        assert 0 < row["median"] <= max(row["seconds"])
        assert sum(row["kinds"].values()) == pytest.approx(1)
        assert row["peak_bytes"] > 0
        if row["flops"]:
            assert row["share_of_peak"] == pytest.approx(row["flops"] / row["median"] / row["peak"])
    forwards = found["results"][:2]
    assert all(0.5 < sum(row["levels"].values()) <= 1.01 for row in forwards)
    assert "encoder.2" in forwards[1]["levels"]
    literal, mine = found["results"][2:4]
    assert mine["peak_bytes"] < literal["peak_bytes"]
    assert mine["kinds"]["depthwise convolution"] > 0


@pytest.mark.slow
def test_networks_too_large_together_are_in_memory_one_at_a_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    prepare = measure.prepare

    def counted(*given: Any, **more: Any) -> measure.Prepared:
        gc.collect()  # what the profiler of the last row holds
        assert not alive
        case = prepare(*given, **more)
        alive.add(case.model)
        return case

    monkeypatch.setattr(measure, "prepare", counted)
    file = tmp_path / "bench.json"
    succeeds(
        capsys,
        *("bench", "U-DiT-tiny", "--work", "train", "--apart", "--baseline", "DiT-tiny", "--rounds", "2"),
        *("--json", str(file)),
    )
    rows = json.loads(file.read_text())["results"]
    assert [(row["subject"], len(row["seconds"])) for row in rows] == [("DiT-tiny", 2), ("U-DiT-tiny", 2)]


@pytest.mark.slow
def test_rows_before_an_interruption_are_in_the_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result_of = measure.result_of

    def interrupted(subject: Subject, *rest: Any) -> measure.Result:
        if subject.name == "U-DiT-tiny":
            raise KeyboardInterrupt
        return result_of(subject, *rest)

    monkeypatch.setattr(measure, "result_of", interrupted)
    file, page = tmp_path / "bench.json", tmp_path / "bench.md"
    where = ("--json", str(file), "--markdown", str(page))
    with pytest.raises(SystemExit, match="130"):
        main(["bench", "U-DiT-tiny", "--baseline", "DiT-tiny", "--rounds", "1", *where])
    [row] = json.loads(file.read_text())["results"]
    assert row["subject"] == "DiT-tiny"
    assert "DiT-tiny" in page.read_text()
    assert "forward, 8x8, batch 1: DiT-tiny" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_but_the_table_is_printed() -> None:
    words = [sys.executable, "-m", "udit", "bench", "U-DiT-tiny", "--rounds", "1"]
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    assert ended.stderr == "", "torch's profiler announces itself by default"


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_steps_on_a_recipes_images_report_how_long_they_waited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """The loader is slower than the step: no pause may let it catch up."""
    image = InMemory.image

    def slow(self: InMemory, i: int) -> NDArray[np.uint8]:
        time.sleep(0.15)
        return image(self, i)

    monkeypatch.setattr(InMemory, "image", slow)
    monkeypatch.setattr("udit.training.batches.READ", 2**13)  # two batches at a time
    file = tmp_path / "bench.json"
    small = ("width=8", "heads=1", "depths=[1,1,1]")
    feed = ("--data", "digits", "--work", "train", "--batch", "4", "--workers", workers, "--rounds", "1")
    out = succeeds(capsys, "bench", "U-DiT-S", *small, *feed, "--json", str(file))
    [row] = json.loads(file.read_text())["results"]
    assert row["work"].startswith(f"training step, 8x8, batch 4, images of digits, {workers} reading process")
    assert 0.3 < row["waited"] < 1
    assert row["median"] > 0.15
    assert f"{row['waited']:.2%}" in out


@pytest.mark.slow
def test_compiling_is_timed_with_nothing_kept_from_before_and_breaks_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kept))
    out = succeeds(capsys, "bench", "DiT-tiny", "--compiled", "--rounds", "1", "--json", str(tmp_path / "bench.json"))
    eager, compiled = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert (eager["graphs"], eager["graph_breaks"]) == (None, None)
    assert (compiled["graphs"], compiled["graph_breaks"]) == (1, 0)
    assert compiled["first_call"] > 5 * eager["first_call"]
    assert "graph breaks" in out
    assert not list(kept.rglob("*.cpp"))


def test_depthwise_convolutions_are_distinguished_from_dense_ones() -> None:
    assert kind_of("aten::mkldnn_convolution", [[1, 8, 4, 4], [8, 1, 5, 5]]) == "depthwise convolution"
    assert kind_of("aten::mkldnn_convolution", [[1, 8, 4, 4], [8, 8, 3, 3]]) == "matrix product"
    assert kind_of("aten::mkldnn_convolution", [[1, 1, 4, 4], [8, 1, 3, 3]]) == "matrix product"
    assert kind_of("aten::view", []) == "other"


def test_a_forward_and_a_step_keep_to_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    if "depthwise" not in (ops.describe() or ""):
        pytest.skip("the budget is that of the compiled kernel")
    assert load("budget").main() == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no model is named; name some"),
        (("U-DiT-Z",), "no model 'U-DiT-Z'"),
        (("U-DiT-S", "--rounds", "0"), "--rounds is 0; at least 1"),
        (("U-DiT-S", "--batch", "1,x"), "--batch is '1,x'; write whole numbers"),
        (("U-DiT-S", "--batch", "0"), "--batch is '0'; write whole numbers from 1"),
        (("U-DiT-S", "--threads", "0"), "--threads is 0; at least 1"),
        (("U-DiT-S", "--steps", "0", "--work", "image"), "steps is 0; it must be greater than 0"),
        (("U-DiT-S", "--size", "32,30"), "--size 30: an input of 30x30 cannot pass 3 levels"),
        (("U-ViT-tiny", "--size", "16"), "--size 16: an input is 16x16 and the learned positions are those of 8x8"),
        (("U-DiT-S", "num_classes=0", "--guidance", "2", "--work", "image"), "U-DiT-S has no null label"),
        (("U-DiT-S", "--json", "no/such/bench.json"), "no/such/bench.json cannot be written; name a file in a folder"),
        (("U-DiT-S", "--data", "digit", "--work", "train"), "no recipe 'digit'; did you mean 'digits'"),
        (("U-DiT-S", "--data", "digits"), "--data is for training steps, at its images' size; add --work train"),
        (("U-DiT-S", "--data", "digits", "--work", "train", "--apart"), "--apart is for random inputs"),
        (("U-DiT-S", "data.root=x"), "data.root=x is about data, and there is none"),
        (("U-DiT-S", "--workers", "2"), "--workers is about data, and there is none"),
        (("U-DiT-S", "--baseline", "nothing.py:Class"), "no Python file nothing.py"),
        (("U-DiT-S", "--baseline", "diffusers:UNet3DModel"), "did you mean 'UNet2DModel'"),
    ],
)
def test_mistakes_are_refused(error_of: ErrorOf, words: tuple[str, ...], message: str) -> None:
    assert message in error_of("bench", *words)


def test_profiler_is_told_to_keep_its_reports_to_itself_from_python_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    shares = CPU.dissect(lambda: torch.ones(3) + 1).kinds
    assert os.environ["KINETO_LOG_LEVEL"] == "6"
    assert shares
