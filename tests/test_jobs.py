"""Jobs are library functions: what the commands do, from Python, with typed results."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import udit
from conftest import TINY, perturb
from runs import train
from udit.assemble import System
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.errors import UserError
from udit.evaluation import image_set
from udit.evaluation.archive import path_of
from udit.evaluation.fidelity import Features
from udit.evaluation.gathered import gather
from udit.evaluation.image_set import CHUNK, ImageSet
from udit.evaluation.judge import train_judge
from udit.evaluation.report import Report
from udit.evaluation.sets import reference_of
from udit.generation import Context
from udit.images import grid, read_pixels, read_settings
from udit.run.system import SystemConfig

OneLine = Callable[[BaseException], str]
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def system() -> System:
    network = perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1, "learn_sigma": False}), 0.05)
    sampling = SamplingConfig(sampler="flow-euler", steps=2, guidance=1.5)
    names = ("ant", "bee", "cow", "dog", "elk")
    return System(
        SystemConfig(model=network.config, diffusion=FlowConfig(), sampling=sampling, id2label=names), network
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    small = ("evaluation.num_samples=20", "evaluation.judge_steps=5", "evaluation.bootstrap=10", "sampling.steps=2")
    train(out, "training.steps=3", *small)
    return out


# -- generate ----------------------------------------------------------------------------------------------------------


def test_images_come_with_their_seeds_and_labels(system: System) -> None:
    images = udit.generate(system, range(3, 8), ["cow", 4], batch_size=2)
    batches = list(images)
    assert [batch.seeds for batch in batches] == [[3, 4], [5, 6], [7]]
    assert [batch.labels for batch in batches] == [[2, 4], [2, 4], [2]]
    assert [batch.indices for batch in batches] == [[0, 1], [2, 3], [4]]
    wanted = next(system.fused().generate([3, 4, 5, 6, 7], [2, 4, 2, 4, 2]))
    assert (torch.cat([batch.images for batch in batches]).int() - wanted.int()).abs().max() <= 1
    assert len(images) == 5


def test_files_hold_what_is_iterated_over(system: System, tmp_path: Path) -> None:
    images = udit.generate(system, range(7), sampling={"steps": 1}, batch_size=3)
    pixels = images.images()
    images.save_pngs(tmp_path / "png")
    files = [tmp_path / "png" / f"{i:06d}.png" for i in range(7)]
    assert torch.equal(torch.stack([read_pixels(path) for path in files]), pixels)
    sheet = read_pixels(tmp_path / "png" / "grid.png").numpy()
    assert np.array_equal(sheet[0], np.array(grid(pixels, [f"{n}" for n in (*system.config.id2label, "ant", "bee")])))
    settings = read_settings(files[6])
    assert settings is not None
    assert (settings["seed"], settings["label"], settings["class"]) == (6, 1, "bee")
    assert settings["sampling"] == images.sampling.model_dump(mode="json")
    assert settings["model"] == system.fingerprint == system.fused().fingerprint
    assert images.save_npz(tmp_path / "npz" / "samples.npz") == (7, 8, 8, 1)
    with np.load(tmp_path / "npz" / "samples.npz") as file:
        assert np.array_equal(file["arr_0"].transpose(0, 3, 1, 2), pixels.numpy())
        assert file["arr_1"].tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_a_setting_is_whole_or_changes_or_a_quality(system: System) -> None:
    own = system.config.sampling
    assert udit.generate(system).sampling == own
    assert udit.generate(system, sampling={"steps": 9}).sampling == own.replace(steps=9)
    other = SamplingConfig(sampler="flow-heun", steps=3)
    assert udit.generate(system, sampling=other).sampling == other
    draft = udit.generate(system, quality="draft").sampling
    assert (draft.sampler, draft.steps) == FlowConfig.quality["draft"]
    assert draft.guidance == 1.5


def test_requests_that_do_not_fit_are_refused(system: System, tmp_path: Path, one_line: OneLine) -> None:
    def told(**options: Any) -> str:
        with pytest.raises(UserError) as error:
            udit.generate(system, **options)
        return one_line(error.value)

    assert "sampling is given and quality good sets it" in told(quality="good", sampling={"steps": 2})
    assert "no class 'cat'" in told(labels=["cat"])
    assert "seeds is []; give one for each image" in told(seeds=[])
    assert "batch_size is 0" in told(batch_size=0)
    assert "unknown key" in told(sampling={"step": 2})
    assert "label 12 is out of range" in told(labels="12"), "not classes 1 and 2"
    assert "labels is 7; give a list" in told(labels=7)
    assert "labels are 3 and seeds 2" in told(labels=[0, 1, 2], seeds=[0, 1])
    assert "seeds is 3; give a list" in told(seeds=3)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write to"):
        udit.generate(system).save_pngs(tmp_path / "file")
    with pytest.raises(UserError, match="takes no vectors"):
        list(udit.generate(system, context=Context(torch.zeros(1, 2, 4))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: udit.train("digits"), r"run is 'digits'; give a Run, e.g. udit.load_run\('digits'\)"),
        (lambda run: udit.encode("digits", "cache"), "run is 'digits'; give a Run"),
        (lambda run: udit.evaluate(run), "run is a Run; give its folder"),
        (lambda run: udit.tune(run), "run is a Run; give its folder"),
        (lambda run: udit.posthoc_ema(run, 0.07), "run is a Run; give its folder"),
        (lambda run: udit.generate(nn.Linear(1, 1)), "model is Linear.*; give a folder, a hub id or a loaded system"),
        (lambda run: udit.export(nn.Linear(1, 1), "onnx"), "model is Linear.*; give a folder"),
        (lambda run: udit.export("runs/digits", "onnxx"), "kind is 'onnxx'; did you mean 'onnx'"),
        (lambda run: udit.load_run("digits", "seed=1"), "overrides is 'seed=1'; give a list"),
        (lambda run: next(udit.bench("U-DiT-tiny")), "models is 'U-DiT-tiny'; give a list"),
        (
            lambda run: next(udit.bench(["U-DiT-tiny"], work=["forwards"])),
            "work has 'forwards'; did you mean 'forward'",
        ),
        (lambda run: next(udit.bench(["U-DiT-tiny"], batch_sizes=[0])), "at least 1, and one of them is 0"),
    ],
)
def test_an_argument_of_another_type_or_name_is_refused(
    call: Callable[[udit.Run], object], message: str, one_line: OneLine
) -> None:
    with pytest.raises(UserError, match=message) as error:
        call(udit.load_run("digits"))
    one_line(error.value)


# -- evaluate ----------------------------------------------------------------------------------------------------------


def test_a_run_is_evaluated_once_and_its_report_is_returned_again(run: Path) -> None:
    report = udit.evaluate(run, num_samples=30, sampling={"steps": 1})
    assert isinstance(report, Report)
    assert report.num_samples == 30
    assert report.protocol["sampling"]["steps"] == 1
    written = run / "evaluation" / "metrics.json"
    assert Report.model_validate_json(written.read_text()) == report
    own = path_of(written, report.setting)
    assert own.read_bytes() == written.read_bytes()
    names = {path.name for path in written.parent.iterdir()}
    rows = {name for name in names if name.startswith(("features-", "reference-"))}
    assert len(rows) == 2  # for comparisons seed by seed
    assert names - rows == {
        *("metrics.json", "report.md", "grid.png", "samples.npz", "judge.safetensors"),
        *(own.name, path_of(written.parent / "report.md", report.setting).name),
    }
    before = written.stat().st_mtime_ns
    assert udit.evaluate(run, num_samples=30, sampling={"steps": 1}) == report
    assert written.stat().st_mtime_ns == before
    assert udit.evaluate(run, num_samples=30, sampling={"steps": 1}, again=True) == report
    assert written.stat().st_mtime_ns > before


def test_readme_s_jobs_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of the README that needs a trained run, on a small one."""
    [code] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "udit.evaluate(" in block]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"udit": udit}
    exec(compile(code.replace("runs/digits", str(run)), "README.md", "exec"), names)
    assert len(list((tmp_path / "sevens").glob("0*.png"))) == 8
    assert names["report"].num_samples == 20


# -- chunks ------------------------------------------------------------------------------------------------------------


class Means:
    """An extractor of four numbers per image."""

    name = "means"
    sha256 = "0" * 64
    inception = False

    def __call__(self, images: np.ndarray) -> Features:
        return Features(images.reshape(len(images), 4, -1).mean(2, dtype=np.float64))


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), np.uint8)


class Counting:
    """A data set whose images are made when they are read."""

    def __init__(self, side: int) -> None:
        self.side, self.reads = side, 0

    def image(self, i: int) -> np.ndarray:
        self.reads += 1
        return np.full((1, self.side, self.side), i % 251, np.uint8)


@pytest.mark.slow
def test_a_reference_of_a_large_data_set_takes_the_memory_of_a_few_chunks() -> None:
    source, count = Counting(64), 12 * CHUNK
    images = ImageSet.of_source(source, np.arange(count))  # type: ignore[arg-type]
    assert images.kept(max_bytes=1 << 20) is images
    tracemalloc.start()
    reference = reference_of(images, Means())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reference.count == count
    chunk = CHUNK * 64 * 64
    assert chunk < peak < 4 * chunk, "of the twelve chunks that all images take"


def test_a_judge_of_a_large_data_set_reads_only_what_it_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_set, "MAX_KEPT_BYTES", 1 << 10)
    source, labels = Counting(8), np.arange(5000) % 2
    streamed = train_judge(ImageSet.of_source(source, np.arange(5000)), labels, 2, steps=3, seed=0)  # type: ignore[arg-type]
    assert source.reads <= 3 * 64 + 1
    pixels = np.stack([source.image(i) for i in range(5000)])
    assert train_judge(pixels, labels, 2, steps=3, seed=0).fingerprint == streamed.fingerprint


def test_chunks_change_no_bit_of_features_or_references() -> None:
    pixels = noise(2 * CHUNK + 100).transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)  # as they lie in a .npz
    judge = train_judge(pixels[:200], np.arange(200) % 2, 2, steps=2, seed=0)
    assert np.array_equal(ImageSet.of(pixels).map(judge.features), judge.features(pixels))
    one = Means()(pixels)
    assert np.array_equal(gather(pixels, [Means()])[0].rows, one.pool)
    [whole] = {reference_of(images, Means()).sha256 for images in (pixels, ImageSet.of(pixels))}
    assert reference_of(pixels[:, :, ::-1], Means()).sha256 != whole
