"""Exported graphs agree with their networks, sample as they do, and every mistake is reported in one line.

The fast tests run a stand-in for an engine, made of the network itself; the slow ones run the engines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import udit
from conftest import TINY, ErrorOf, perturb, succeeds
from udit import assemble
from udit.assemble import System, fingerprint
from udit.cli.export import parse_size
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.errors import UserError
from udit.exporting import folder, program
from udit.exporting.engines import Graph, Session
from udit.exporting.manifest import ENGINES, EXPORTED, Check, Manifest, read_manifest
from udit.files import seal
from udit.images import read_settings
from udit.models.build import fuse
from udit.models.catalog import CATALOG
from udit.run.system import SystemConfig

FLOW = SamplingConfig(sampler="flow-euler", steps=2)
FAMILIES = [name for name in CATALOG if name.endswith("-tiny")]
OneLine = Callable[[BaseException], str]


def session_of(network: nn.Module, error: float = 0.0) -> Session:
    """A stand-in for an engine, off by a share of its output."""

    @torch.no_grad()
    def run(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return network(*map(torch.from_numpy, parts)).numpy() * (1 + error)

    return run


@pytest.fixture
def system(tiny: nn.Module) -> System:
    config = SystemConfig(model=tiny.config, sampling=SamplingConfig(sampler="ddim", steps=3, guidance=2.0))
    return System(config, tiny)


@pytest.fixture
def engine(system: System, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Replaces exporter and engine by the network itself; called with a share, its output is off by that."""
    network = fuse(system.backbone)

    def stand_in(error: float = 0.0) -> None:
        monkeypatch.setattr(folder, "open_graph", lambda kind, where: session_of(network, error))

    monkeypatch.setattr(folder, "trace", lambda network, size: None)
    monkeypatch.setattr(folder, "require", lambda names: dict.fromkeys(names, "0"))
    monkeypatch.setattr(
        folder, "write_graph", lambda kind, program, where, given: (where / "model.onnx").write_text("graph")
    )
    stand_in()
    return stand_in


@pytest.fixture
def exported(system: System, engine: Callable[[float], None], tmp_path: Path) -> Path:
    folder.export(system, "onnx", tmp_path / "graph")
    return tmp_path / "graph"


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_says_what_it_holds_and_how_near_it_is(exported: Path, system: System) -> None:
    manifest = read_manifest(exported)
    assert manifest.error < 1e-5
    assert {(check.batch, check.size) for check in manifest.checks} == {
        (batch, size) for batch in (1, 4) for size in ((8, 8), (12, 16))
    }
    assert set(manifest.files) == {"model.onnx", "config.json"}
    assert manifest.size is None
    assert folder.load(exported).config == system.fused().config


def test_a_graph_that_disagrees_is_refused_and_the_older_one_stays(
    exported: Path, system: System, engine: Callable[[float], None], one_line: OneLine
) -> None:
    before = (exported / EXPORTED).read_bytes()
    engine(2e-4)
    with pytest.raises(
        UserError, match=r"differs from the network by 2\.0e-04 of its output, more than 1e-04"
    ) as error:
        folder.export(system, "onnx", exported)
    one_line(error.value)
    assert (exported / EXPORTED).read_bytes() == before
    assert read_manifest(exported)
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_a_folder_of_something_else_is_never_replaced(system: System, engine: object, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mother.txt").write_text("dear")
    with pytest.raises(UserError, match="exists and is no exported folder"):
        folder.export(system, "onnx", tmp_path / "letters")
    assert (tmp_path / "letters" / "mother.txt").read_text() == "dear"


def test_altered_missing_and_older_folders_are_one_line_errors(exported: Path, one_line: OneLine) -> None:
    def error_of(pattern: str) -> None:
        with pytest.raises(UserError, match=pattern) as error:
            read_manifest(exported)
        assert "export it again" in one_line(error.value)

    graph, manifest = exported / "model.onnx", exported / EXPORTED
    graph.write_text("grapf")
    error_of("model.onnx is altered")
    graph.unlink()
    error_of("model.onnx is missing")
    graph.write_text("graph")
    whole = manifest.read_text()
    manifest.write_text(whole.replace("float32", "int8"))
    error_of("is altered: it does not match its own digest")
    manifest.write_text(whole[:-20])
    error_of("cannot be read")
    manifest.write_text(seal(json.loads(whole) | {"format": 0}))
    error_of("was exported in format 0 and this udit reads 1")


@pytest.mark.parametrize("size", [(9, 8), (6, 6)], ids=str)
def test_sizes_that_the_model_cannot_take_are_refused(
    system: System, engine: object, tmp_path: Path, size: tuple[int, int], one_line: OneLine
) -> None:
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]}.*multiples of 4") as error:
        folder.export(system, "onnx", tmp_path / "graph", size=size)
    one_line(error.value)


def test_a_size_of_its_own_is_what_the_folder_samples_and_all_that_it_takes(
    system: System, engine: object, tmp_path: Path
) -> None:
    folder.export(system, "onnx", tmp_path / "graph", size=(8, 16))
    graph = folder.load(tmp_path / "graph")
    assert next(graph.generate([0], [1])).shape == (1, 2, 8, 16)
    with pytest.raises(UserError, match="8x8 and the graph takes 8x16 only"):
        graph.backbone(torch.zeros(1, 2, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))


def test_half_precision_weights_are_refused(system: System, engine: object, tmp_path: Path, one_line: OneLine) -> None:
    system.backbone.bfloat16()
    with pytest.raises(UserError, match="weights are bfloat16 and exports are made of float32") as error:
        folder.export(system, "onnx", tmp_path / "graph")
    one_line(error.value)


def test_a_package_that_is_missing_is_named_with_its_extra(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: OneLine
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        UserError, match=r"openvino, which is not installed; run: pip install 'udit\[export\]'"
    ) as error:
        folder.export(system, "openvino", tmp_path / "graph")
    one_line(error.value)


# -- graphs as networks ------------------------------------------------------------------------------------------------


def graph_of(network: nn.Module, size: tuple[int, int] | None = None) -> Graph:
    check = Check(batch=1, size=(8, 8), error=0.0)
    manifest = Manifest(kind="onnx", size=size, weights="0", checks=(check,), versions={}, files={})
    return Graph(network.config, manifest, session_of(network))


@torch.no_grad()
def test_a_graph_without_labels_draws_the_null_class(tiny: nn.Module) -> None:
    x, t = torch.randn(2, 2, 8, 8), torch.tensor([3, 500])
    assert torch.equal(graph_of(tiny)(x, t), tiny(x, t.float(), torch.tensor([5, 5])))


def test_conditions_and_dtypes_that_no_graph_takes_are_refused(tiny: nn.Module, one_line: OneLine) -> None:
    without = perturb(udit.build("U-DiT-S", **TINY | {"num_classes": 0}))
    x, t, y = torch.randn(2, 2, 8, 8), torch.tensor([3, 500]), torch.tensor([0, 1])
    cases: list[tuple[nn.Module, tuple[Any, ...], str]] = [
        (without, (x, t, y), "unconditional"),
        (tiny, (x, t, y[:, None]), r"y is \[2, 1\]"),
        (tiny, (x.double(), t, y), "takes? float32"),
        (tiny, (x[..., :7], t, y), "8x7"),
    ]
    for network, given, pattern in cases:
        with pytest.raises(ValueError, match=pattern) as error:
            graph_of(network)(*given)
        one_line(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_size_step_is_the_smallest_side_of_which_every_multiple_will_do(name: str) -> None:
    config = CATALOG[name].config
    step = config.size_step
    if step is None:
        with pytest.raises(UserError, match="bound to the size it was made for"):
            program.trace(udit.build(name), None)
        return
    for size in ((step, step), (2 * step, 5 * step)):
        config.check_size(*size)
    if step > 1:
        with pytest.raises(ValueError, match=r"multiples of"):
            config.check_size(step + 1, step)


def test_a_family_without_a_graph_is_refused(tmp_path: Path) -> None:
    model = udit.build("DiMSUM-tiny")
    system = System(SystemConfig(model=model.config, diffusion=FlowConfig(), sampling=FLOW), model)
    with pytest.raises(UserError, match=r"^DiMSUM has no onnx form.*; sample with"):
        folder.export(system, "onnx", tmp_path / "onnx")


# -- the command line --------------------------------------------------------------------------------------------------


def test_sizes_are_read_or_refused(one_line: OneLine) -> None:
    assert parse_size("32") == (32, 32)
    assert parse_size("32x64") == (32, 64)
    for text in ("", "0", "8x", "x8", "8x8x8", "-8", "wide"):
        with pytest.raises(UserError, match="--size is") as error:
            parse_size(text)
        one_line(error.value)


def test_an_exported_folder_samples_the_model_s_images(
    exported: Path, system: System, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    udit.save(system, tmp_path / "model")
    images = []
    for source in (tmp_path / "model", exported):
        out = tmp_path / f"of-{source.name}"
        succeeds(capsys, "sample", str(source), "--n=4", "--no-progress", f"--out={out}", "--output=npz")
        images.append(np.load(out / "samples.npz")["arr_0"].astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1


def test_mistakes_with_engines_are_one_line_errors(
    exported: Path, system: System, error_of: ErrorOf, tmp_path: Path
) -> None:
    graph, model = str(exported), str(udit.save(system, tmp_path / "model"))
    assert "holds a graph and no weights for torch" in error_of("sample", graph, "--engine", "torch")
    assert "which onnxruntime runs" in error_of("sample", graph, "--engine", "openvino")
    assert "leave out --weights raw" in error_of("sample", graph, "--weights", "raw")
    assert "exported graphs run on the CPU" in error_of("sample", graph, "--device", "cuda")
    assert "cache 2 caches steps and an exported graph always runs whole" in error_of("sample", graph, "--cache", "2")
    assert f"make one: udit export openvino {model}" in error_of("sample", model, "--engine", "openvino")
    assert "onnx" in error_of("sample", model, "--engine", "onx")
    assert "openvino" in error_of("export", "openvine", model)
    assert "--size is 'big'" in error_of("export", "onnx", model, "--size", "big")
    assert "udit export openvino" in error_of("export", "onnx", model, "--int8")
    assert "is no run folder" in error_of("export", "openvino", model, "--int8")
    assert "name one with --out" in error_of("export", "onnx", "owner/name")
    assert "holds an exported graph and no weights" in error_of("export", "onnx", graph)


def test_a_graph_of_other_weights_is_not_drawn_with(
    exported: Path, system: System, error_of: ErrorOf, tmp_path: Path
) -> None:
    with torch.no_grad():
        next(system.backbone.parameters()).add_(1)
    udit.save(system, tmp_path / "model")
    exported.rename(tmp_path / "model" / "onnx")
    words = error_of("sample", str(tmp_path / "model"), "--engine", "onnxruntime")
    assert "was made of other weights" in words


def test_another_processor_knows_the_weights_of_a_graph(
    exported: Path, system: System, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Folding rounds there in another way; what a graph, a setting or an image is of does not follow that."""
    assert read_manifest(exported).weights == system.fingerprint != fingerprint(system.fused().backbone)
    graph = folder.load(exported)
    assert graph.has_weights(system.fingerprint)
    assert not graph.has_weights("of other weights")
    udit.save(system, tmp_path / "model")
    exported.rename(tmp_path / "model" / "onnx")
    sample = ("sample", str(tmp_path / "model"), "--n=1", "--no-progress")

    def rounds_otherwise(model: nn.Module) -> nn.Module:
        fused = fuse(model)
        with torch.no_grad():
            for parameter in fused.parameters():
                parameter.copy_(parameter.nextafter(torch.tensor(torch.inf)))
        return fused

    monkeypatch.setattr(assemble, "fuse", rounds_otherwise)
    succeeds(capsys, *sample, "--engine=onnxruntime", f"--out={tmp_path / 'graph'}")
    succeeds(capsys, *sample, f"--out={tmp_path / 'torch'}")
    for out in ("graph", "torch"):
        settings = read_settings(tmp_path / out / "000000.png")
        assert settings is not None and settings["model"] == system.fingerprint


# -- the engines -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if CATALOG[name].config.has_graph])
def test_every_family_exports_and_samples_the_same_images(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = perturb(udit.build(name))
    config = SystemConfig(model=model.config, sampling=SamplingConfig(steps=2))
    if model.config.reversed_flow:
        config = SystemConfig(model=model.config, diffusion=FlowConfig(), sampling=FLOW)
    system = System(config, model)
    size = None if model.config.size_step else model.config.size
    traced = program.trace(system.fused().backbone, size)  # once for both kinds: it takes longest
    assert not [node for node in traced.graph.nodes if "udit" in str(node.target)]
    monkeypatch.setattr(folder, "trace", lambda network, size: traced)
    labels = [1, 2] if model.config.num_classes else None
    wanted = next(system.fused().generate([3, 4], labels))
    for kind in ENGINES:
        manifest = folder.export(system, kind, tmp_path / kind, size=size)
        assert manifest.error < 1e-4
        drawn = next(folder.load(tmp_path / kind).generate([3, 4], labels))
        assert (drawn.int() - wanted.int()).abs().max() <= 1
