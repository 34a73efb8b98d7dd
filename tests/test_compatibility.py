"""Files that the udit of commit 3b2bc46 wrote are still read, with the same results.

They are in data/from-3b2bc46, whose README describes how they were made. Numbers are compared bit by bit on the torch,
processor and kernels that recorded them, and to rounding elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import udit
from conftest import DATA, succeeds
from processor import same_bits_or_close, this_processor
from runs import metrics, newest, state_hash
from udit import dist
from udit.assemble import fingerprint
from udit.cli import main
from udit.data.latents import LatentCache
from udit.evaluation.report import Report
from udit.evaluation.standard import Scores
from udit.exporting.folder import load as load_graph
from udit.exporting.manifest import read_manifest
from udit.images import read_pixels, read_settings
from udit.nn import ffn
from udit.nn.ffn import composed_depthwise
from udit.ops import build
from udit.run.config import Run
from udit.run.recipes import load_run, read_yaml
from udit.store import read_config
from udit.training import preview
from udit.training.posthoc import Snapshots
from udit.training.trainer import Trainer
from udit.tuning.quality import Quality

FIXTURES = DATA / "from-3b2bc46"
LABELS, SEEDS = [0, 1, 0, 1], range(4)
ROUNDING = 1e-5
"""Of losses and weights after four more steps of Adam, elsewhere: some 80 roundings of float32 (found: 2e-7)."""


@cache
def recorded() -> dict[str, Any]:
    """Results of 3b2bc46 for each."""
    return json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))


def same_numbers(found: Any, expected: Any, rtol: float = ROUNDING, atol: float = 0.0) -> None:
    same_bits_or_close(found, expected, recorded()["machine"], rtol=rtol, atol=atol)


def same_images(found: torch.Tensor, expected: Any) -> None:
    """Equal where they were recorded; elsewhere a value that lay between two of 255 may be rounded to the other."""
    here = this_processor() == recorded()["machine"]
    wanted = torch.as_tensor(expected)
    assert found.shape == wanted.shape and found.dtype == torch.uint8
    assert int((found.int() - wanted.int()).abs().max()) <= (0 if here else 1)


def copy(name: str, to: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / name, to / name))


def trained(out: Path, *overrides: str) -> Run:
    """Trains one step by the finished run's recipe."""
    run = load_run(str(FIXTURES / "finished.yaml"), [*overrides, f"out={out}", "training.steps=1"])
    with mock.patch.object(preview, "save_curve"):
        Trainer(run, dist.World()).train(progress=False)
    return run


def keeps(now: Any, before: Any, where: str = "") -> None:
    """Asserts that every key of ``before`` still has its value; there may be new ones."""
    if isinstance(before, dict):
        assert isinstance(now, dict), where
        for key, value in before.items():
            assert key in now, f"{where}{key} is gone"
            keeps(now[key], value, f"{where}{key}.")
    else:
        assert now == before, where


def test_records_name_what_bits_depend_on() -> None:
    assert recorded()["machine"].keys() == this_processor().keys()


# ---- a run -----------------------------------------------------------------------------------------------------------


def composed_as_then(branches: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """As the older program made them: the gradients of the biases had one memory, and were clipped three times."""
    return composed_depthwise(branches)[0], torch.stack([branch.bias for branch in branches]).sum(0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[logging.LogRecord]]:
    """The interrupted run, copied and trained to its end, and the warnings that were given."""
    run = copy("interrupted", tmp_path_factory.mktemp("resumed"))
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("udit").addHandler(handler)
    try:
        with (
            pytest.raises(SystemExit) as ended,
            mock.patch.object(preview, "save_curve"),
            mock.patch.object(ffn, "composed_depthwise", composed_as_then),
        ):
            main(["train", str(FIXTURES / "interrupted.yaml"), "--no-progress", f"out={run}"])
    finally:
        logging.getLogger("udit").removeHandler(handler)
    assert ended.value.code == 0
    return run, records


def test_interrupted_run_goes_on_from_its_checkpoint_with_no_changed_key(
    resumed: tuple[Path, list[logging.LogRecord]],
) -> None:
    run, _ = resumed
    before, now = read_yaml(FIXTURES / "interrupted" / "run.yaml"), read_yaml(run / "run.yaml")
    before["out"], before["training"]["steps"] = str(run), 8
    keeps(now, before)
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[:4] == metrics(FIXTURES / "interrupted")  # kept, not trained again
    manifest = json.loads((newest(run) / "manifest.json").read_text(encoding="utf-8"))
    written = json.loads((newest(FIXTURES / "interrupted") / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["step"] == 8
    assert manifest["data"] == written["data"]
    assert written.keys() <= manifest.keys()
    assert set(manifest["files"]) == set(written["files"])


def test_resuming_an_older_run_warns_of_nothing_but_another_torch(
    resumed: tuple[Path, list[logging.LogRecord]],
) -> None:
    """Without compiled kernels here, the description of kernels differs, and the warning is right."""
    told = [record.getMessage() for record in resumed[1]]
    if build.find_compiler() is not None:
        assert not [line for line in told if line.startswith("kernels")]
    if recorded()["machine"]["torch"] == torch.__version__ and build.find_compiler() is not None:
        assert told == []


def test_resumed_run_ends_as_the_unbroken_one_of_the_older_program(
    resumed: tuple[Path, list[logging.LogRecord]],
) -> None:
    run, _ = resumed
    expected = recorded()["unbroken"]
    for line, wanted in zip(metrics(run)[4:], expected["metrics"][4:], strict=True):
        keeps(dict.fromkeys(line), dict.fromkeys(wanted))
        same_numbers({key: line[key] for key in wanted}, wanted)
    state = udit.load(run).backbone.state_dict()
    assert list(state) == list(expected["sums"])
    for name, value in state.items():  # to rounding of the weights, not of a sum in which they cancel
        same_numbers(float(value.double().sum()), expected["sums"][name], atol=ROUNDING * math.sqrt(value.numel()))
    if this_processor() == recorded()["machine"]:
        assert state_hash(run) == expected["state"]
        found = {name: newest(run) / f"{name}.safetensors" for name in expected["sha256"]}
        assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()} == expected[
            "sha256"
        ]


def test_run_folder_loads_as_a_model() -> None:
    system = udit.load(FIXTURES / "interrupted")
    says_what_was_recorded(system, recorded()["interrupted"])


def says_what_was_recorded(system: Any, expected: dict[str, Any]) -> None:
    assert list(system.config.id2label) == expected["classes"]
    assert fingerprint(system.backbone) == expected["weights"]
    fused = system.fused()
    if this_processor() == recorded()["machine"]:  # folding sums kernels
        assert fingerprint(fused.backbone) == expected["fused"]
    same_images(torch.cat(list(fused.generate(SEEDS, LABELS))), expected["images"])


# ---- other files of a run --------------------------------------------------------------------------------------------


def test_tuned_quality_is_read_and_drawn_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The images of ``udit sample --quality good`` are drawn again from their own settings."""
    run = FIXTURES / "interrupted"
    quality = Quality.read(run)
    assert quality is not None
    written = json.loads((run / "quality.json").read_text(encoding="utf-8"))
    keeps(quality.model_dump(mode="json"), written)
    words = ("--quality", "good", "--labels", "3,7", "--seeds", "5-6", "--no-progress")
    succeeds(capsys, "sample", str(run), *words, "--out", str(tmp_path))
    same_rounding = fingerprint(udit.load(run).fused().backbone) == written["weights"]
    assert ("quality.json" not in caplog.text) == same_rounding  # 3b2bc46 knew weights by what folding makes of them
    for name in ("000000.png", "000001.png"):
        settings, now = read_settings(FIXTURES / "samples" / name), read_settings(tmp_path / name)
        assert settings is not None and now is not None
        assert (settings["seed"], settings["class"]) in ((5, "3"), (6, "7"))
        assert settings["sampling"] == written["good"]["sampling"]
        assert settings["model"] == recorded()["interrupted"]["fused"]
        settings["model"] = recorded()["interrupted"]["weights"]  # which no processor rounds
        keeps(now, settings | {"udit": udit.__version__})
        same_images(read_pixels(tmp_path / name), read_pixels(FIXTURES / "samples" / name))


def test_written_scores_are_found_and_not_recomputed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy("interrupted", tmp_path)
    written = (run / "evaluation" / "metrics.json").read_text(encoding="utf-8")
    values = json.loads(written)
    report = Report.read(run / "evaluation" / "metrics.json", values["protocol"])
    assert report is not None
    keeps(report.model_dump(mode="json"), values)
    said = succeeds(capsys, "eval", str(run), "--no-progress")
    assert f"{values['distance']:.4f}" in said
    assert values["judge_sha256"][:12] in said
    assert (run / "evaluation" / "metrics.json").read_text(encoding="utf-8") == written  # else a judge were trained
    assert not (run / "evaluation" / "judge.safetensors").exists()


def test_scores_against_a_reference_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    path = FIXTURES / "interrupted" / "evaluation" / "metrics-judge.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    keeps(Scores.read(path).model_dump(mode="json"), values)
    said = succeeds(capsys, "scores", str(path))
    assert f"{values['scores']['fid']['value']:.6g}" in said


def test_average_of_another_length_is_rebuilt_from_snapshots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = recorded()["posthoc"]
    rebuilt = Snapshots(FIXTURES / "finished" / "posthoc").rebuild(0.07)
    assert rebuilt.step == expected["step"]
    assert rebuilt.error == pytest.approx(expected["error"], rel=1e-6)
    assert list(rebuilt.state) == list(expected["sums"])
    for name, value in rebuilt.state.items():
        same_numbers(float(value.double().sum()), expected["sums"][name], rtol=1e-6, atol=1e-6)
    succeeds(capsys, "ema", "make", str(FIXTURES / "finished"), str(tmp_path / "model"), "--sigma-rel", "0.07")
    made = udit.load(tmp_path / "model").backbone.state_dict()
    assert all(torch.equal(made[name], value) for name, value in rebuilt.state.items())


# ---- models and graphs -----------------------------------------------------------------------------------------------


def test_model_folder_loads() -> None:
    model = FIXTURES / "finished" / "model"
    says_what_was_recorded(udit.load(model), recorded()["model"])
    assert fingerprint(udit.load(model, weights="raw").backbone) == recorded()["model"]["raw"]


def test_model_folder_is_written_again_with_the_same_content(tmp_path: Path) -> None:
    model = FIXTURES / "finished" / "model"
    raw = udit.load(model, weights="raw").backbone
    udit.save(udit.load(model), tmp_path / "model", raw=raw)
    keeps(*(json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "model", model)))
    for name in ("model.safetensors", "model.raw.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (model / name).read_bytes()


def test_run_begins_with_the_weights_of_an_older_model(tmp_path: Path) -> None:
    model = FIXTURES / "finished" / "model"
    trained(tmp_path / "run", f"init_from={model}", f"data.root={FIXTURES / 'images'}")
    begun = load_file(model / "model.safetensors")
    ended = load_file(newest(tmp_path / "run") / "model.safetensors")
    assert ended.keys() == begun.keys()
    # one step of Adam moves a weight by the learning rate, 5e-3, and by its decay
    assert all(torch.allclose(ended[name], begun[name], rtol=0, atol=6e-3) for name in begun)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    with zipfile.ZipFile(FIXTURES / "onnx.zip") as archive:
        archive.extractall(folder)
    return folder


def test_exported_folder_verifies_and_belongs_to_its_model(exported: Path) -> None:
    expected, manifest = recorded()["onnx"], read_manifest(exported)
    assert (manifest.kind, manifest.engine, manifest.precision) == ("onnx", expected["engine"], "float32")
    assert manifest.error == expected["error"]
    assert manifest.weights == expected["weights"] == recorded()["model"]["fused"]
    assert read_config(exported / "config.json").id2label == ("cat", "dog")


def test_exported_graph_draws_the_same_images(exported: Path) -> None:
    pytest.importorskip("onnxruntime")
    images = torch.cat(list(load_graph(exported).generate(SEEDS, LABELS)))
    same_images(images, recorded()["onnx"]["images"])


# ---- latent caches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["latents", "latents-of-vae"])
def test_latent_cache_verifies_and_keeps_its_digests(name: str) -> None:
    """A run that was trained on a cache knows it by its fingerprint, which is made of names of keys."""
    latents, expected = LatentCache(FIXTURES / name), recorded()[name]
    latents.verify()
    assert latents.fingerprint == expected["fingerprint"]
    assert latents.plan.digest == expected["digest"]
    assert list(latents.names) == expected["names"]
    assert latents.labels.tolist() == expected["labels"]
    keeps(latents.manifest.codec.model_dump(mode="json"), expected["codec"])
    raw = b"".join(latents.read(i, mirrored).tobytes() for i in range(len(latents)) for mirrored in (False, True))
    assert hashlib.sha256(raw).hexdigest() == expected["raw"]


def test_images_are_encoded_to_the_same_bytes_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that an interrupted encoding resumes."""
    words = ("codec=space-to-depth", "data.flip=true", f"data.root={FIXTURES / 'images'}")
    recipe = str(FIXTURES / "finished.yaml")
    succeeds(capsys, "encode", recipe, *words, "--shard-size", "16", "--out", str(tmp_path), "--no-progress")
    assert LatentCache(tmp_path).fingerprint == recorded()["latents"]["fingerprint"]
    for path in (FIXTURES / "latents").glob("*.safetensors"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_run_trains_on_an_older_latent_cache(tmp_path: Path) -> None:
    latents = LatentCache(FIXTURES / "latents")
    run = trained(tmp_path / "run", f"latents={latents.root}", f"data.root={latents.plan.data.root}")
    assert (run.codec.kind, run.model.in_channels, run.id2label) == ("space-to-depth", 4, ("cat", "dog"))
    manifest = json.loads((newest(run.out) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["data"] == recorded()["latents"]["fingerprint"]
