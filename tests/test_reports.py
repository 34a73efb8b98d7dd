"""What `udit eval`, `udit tune` and `udit scores` refuse before they begin, warn of, and keep beside each other."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import udit
from conftest import ErrorOf, succeeds
from runs import image_folder, small_run, train
from udit import files, panel, scoring
from udit.data.sources import Parts
from udit.errors import UserError
from udit.evaluation import compare, npz, sets
from udit.evaluation.archive import keep, path_of
from udit.evaluation.compare import read, tables
from udit.evaluation.fidelity import Features
from udit.evaluation.judge import Judge
from udit.evaluation.report import Report
from udit.evaluation.standard import Score, Scores
from udit.evaluation.trust import Trust
from udit.run.scorable import warn_before_training, what_is_missing
from udit.tuning import search
from udit.tuning.ema import sweep_ema
from udit.tuning.quality import FILE, Quality

SMALL = ("evaluation.num_samples=20", "evaluation.judge_steps=2", "evaluation.bootstrap=10", "sampling.steps=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose judge has two images of each of two classes."""
    root = tmp_path_factory.mktemp("run")
    train(root / "run", *image_folder(root / "images"), "training.steps=1", "training.posthoc_ema.every=1", *SMALL)
    return root / "run"


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of so few images that there are none for a judge."""
    root = tmp_path_factory.mktemp("lacking")
    train(root / "run", *image_folder(root / "images", each=4), "training.steps=1", *SMALL)
    return root / "run"


@pytest.fixture
def nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_: Any, **__: Any) -> None:
        raise AssertionError("images are sampled before the refusal")

    monkeypatch.setattr("udit.assemble.System.generate", drawn)


# ---- what data lack --------------------------------------------------------------------------------------------------


def parts(train: list[int], judge: list[int], test: list[int]) -> Parts:
    return Parts(*(np.array(part, np.int64) for part in (train, judge, test)))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (parts([0, 1, 2, 3], [4, 5], [6, 7]), None),
        (parts([0, 1, 2, 3], [4], [6, 7]), "the judge part has 1 images; raise data.judge_share or add images"),
        (parts([0, 1, 2, 3], [4, 5], []), "the test part has 0 images; raise data.test_share or add images"),
        (parts([0, 1, 2], [4, 5], [6, 7]), "the training part has 3 images, and scores need 4"),
        (parts([0, 1, 2, 3], [4, 6], [5, 7]), "the judge part has no image of class 1"),
    ],
)
def test_parts_that_are_too_small_for_a_judge_are_named(split: Parts, message: str | None) -> None:
    found = what_is_missing(np.arange(8) % 2, split)
    assert found is None if message is None else message in str(found)


def test_training_warns_before_the_first_step_and_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = [*image_folder(tmp_path / "images", each=4), "training.steps=1"]
    train(tmp_path / "run", *words)
    [said] = [record.getMessage() for record in caplog.records if "udit eval" in record.getMessage()]
    assert "the judge part has 0 images; raise data.judge_share or add images now" in said
    caplog.clear()
    train(tmp_path / "run", *words, "training.steps=2")  # too late for the remedy
    assert "udit eval" not in caplog.text


def test_no_warning_where_there_is_a_judge_or_could_be_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = image_folder(tmp_path / "images", each=1)
    labels, none = np.arange(8) % 2, parts([0, 1, 2, 3], [], [])
    for run, split in (
        (small_run(tmp_path, *words), parts([0, 1, 2, 3], [4, 5], [6, 7])),
        (small_run(tmp_path, *words, "num_classes=0"), none),
    ):
        warn_before_training(run, labels, split)
    assert not caplog.records
    warn_before_training(small_run(tmp_path, *words), labels, none)
    assert "`udit eval` will not judge this run" in caplog.text


@pytest.mark.usefixtures("nothing_is_drawn")
@pytest.mark.parametrize(
    "job",
    [udit.evaluate, udit.tune, lambda run: sweep_ema(run, [0.05])],
    ids=["eval", "tune", "ema sweep"],
)
def test_a_run_without_a_judge_is_refused_before_anything_is_drawn(
    job: Callable[[Path], object], lacking: Path
) -> None:
    with pytest.raises(UserError, match=r"the judge part has 0 images; .* in a new run: a trained one keeps its data"):
        job(lacking)
    assert not (lacking / "evaluation").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_is_drawn")
def test_references_weights_lengths_and_room_are_checked_before_anything_is_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8)
    with pytest.raises(UserError, match=r"there is no judge '.*judge.safetensors'; `udit eval RUN` trains"):
        panel.score_run(run, features="judge", weights_file=tmp_path / "judge.safetensors")
    weights = tmp_path / "judge.safetensors"
    trained = scoring.judge_of(*_data(run), 2, weights)
    few, wide = tmp_path / "few.npz", tmp_path / "wide.npz"
    npz.write(few, images=images[:3])
    sets.write_reference(wide, images, _Wide())  # type: ignore[arg-type]
    for path, message in (
        (tmp_path / "none.npz", "no file"),
        (few, "the reference has 3 images, and precision and recall need more than 3"),
        (wide, "use one of them for both"),
    ):
        with pytest.raises(UserError, match=message):
            panel.score_run(run, features="judge", weights_file=weights, reference=path)
    assert trained.num_classes == 2
    with pytest.raises(UserError, match=r"sigma_rel is 0\.5"):
        sweep_ema(run, [0.05, 0.5])
    usage = SimpleNamespace(free=100)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"about 0\.0 MB go to .*evaluation, which has 0\.0 MB free; make room"):
        udit.evaluate(run, again=True)


class _Wide:
    """An extractor of other features."""

    name, sha256, inception = "wide", "0" * 64, False

    def __call__(self, images: np.ndarray) -> Any:
        return Features(images.reshape(len(images), -1).astype(float))


def _data(run: Path) -> tuple[Any, Any]:
    values = udit.store.read_run_config(run)
    source = values.data.build()
    return source, scoring.parts_of(source, values.data)


def test_a_model_folder_is_no_folder_of_images(run: Path, tmp_path: Path, error_of: ErrorOf) -> None:
    model = run / "model"
    line = error_of("eval", str(model))
    assert f"{model} is a model folder" in line
    assert f"its run is scored by `udit eval {run}`" in line
    assert f"`udit sample {model} --out IMAGES`" in line
    alone = shutil.copytree(model, tmp_path / "alone")
    assert "is a model folder" in error_of("eval", str(alone), "--reference", "ref.npz")


# ---- judges of this version and of older ones ------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [True, False])
def test_the_judge_sees_mirrored_images_where_the_generator_does(
    flip: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    values = udit.store.read_run_config(run)
    flipped = values.replace(data=values.data.replace(flip=flip))
    monkeypatch.setattr(scoring, "read_run_config", lambda _: flipped)
    udit.evaluate(copy, again=True, progress=False)
    assert json.loads(Judge.load(copy / "evaluation" / "judge.safetensors").origin)["mirrored"] == flip


def test_a_report_by_an_older_judge_is_returned_and_named(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    report = udit.evaluate(copy, progress=False)
    assert report is not None
    shutil.rmtree(copy / "evaluation")
    older = report.replace(judge="udit-judge-2")
    keep(older, copy / "evaluation" / "metrics.json")
    caplog.set_level("INFO")
    assert udit.evaluate(copy, progress=False) == older
    assert "scored before by the judge of an older version, udit-judge-2" in caplog.text
    assert udit.evaluate(copy, again=True, progress=False) == report


# ---- judges that know little -----------------------------------------------------------------------------------------


def test_a_judge_is_weak_until_it_is_surely_halfway_from_chance_to_right() -> None:
    wanted = np.arange(100) % 5
    right = Trust.of(wanted, wanted)
    assert (right.right, right.count, right.chance, right.accuracy) == (100, 100, 0.2, 1)
    assert right.warning() is None
    for count, weak in ((100, False), (75, False), (60, True), (40, True), (20, True)):
        assert Trust(count, 100, 0.2).weak is weak, count
    assert not Trust(600, 1000, 0.1).weak
    assert Trust(6, 6, 0.5).weak, "six images say little, whatever the answers"
    skewed = Trust.of(np.zeros(50, int), np.array([0] * 45 + [1] * 5))
    assert skewed.chance == skewed.accuracy == 0.9
    assert skewed.weak, "always naming the most frequent class is no knowledge"
    assert "right on 40 of 100 real test images (40.0 %, 95 %: 30.9 to 49.8 %;" in str(Trust(40, 100, 0.2).warning())


def test_a_weak_judge_is_told_of_in_log_report_and_file(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    said = succeeds(capsys, "eval", str(run), "--no-progress", "--again")
    folder = run / "evaluation"
    warning = json.loads((folder / "metrics.json").read_text())["judge_warning"]
    assert "real test images" in warning
    assert "tell little" in warning
    assert f"**{warning}**" in said
    assert f"**{warning}**" in (folder / "report.md").read_text()
    assert warning in caplog.text
    assert f"**{warning}**" in succeeds(capsys, "scores", str(run))


def test_settings_that_a_weak_judge_chose_say_so(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr(search, "STEPS", (1,))
    monkeypatch.setattr(search, "SHARES", (0.5,))
    monkeypatch.setattr(search, "RESAMPLES", 2)
    said = succeeds(capsys, "tune", str(copy), "--n", "20")
    found = Quality.read(copy)
    assert found is not None
    assert found.warning is not None
    assert f"these were chosen by a {found.warning}" in said
    assert re.fullmatch(r"udit-judge-3, right on \d+\.\d % of \d+ real test images", found.protocol["judge"])
    assert f"the run's own judge, {found.protocol['judge']}, not the FID" in said
    caplog.clear()
    udit.generate(copy, [0], quality="good")
    assert f"quality.json was chosen by a {found.warning}" in caplog.text
    older = json.loads((copy / FILE).read_text())
    del older["warning"]
    (copy / FILE).write_text(json.dumps(older))
    assert Quality.read(copy) == found.replace(warning=None)


def test_a_weak_judge_s_standard_scores_say_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    udit.evaluate(run, progress=False)
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), np.uint8)
    npz.write(run / "reference.npz", images=images)
    said = succeeds(capsys, "eval", str(run), "--reference", str(run / "reference.npz"), "--no-progress")
    scores = Scores.read(run / "evaluation" / "metrics-judge.json")
    warning, by = scores.warning, scores.protocol["extractor"]
    assert warning is not None
    assert re.fullmatch(r"udit-judge-3, right on \d+\.\d % of \d+ real test images, not Inception", by)
    assert f"**{warning}**" in said
    [one] = sweep_ema(run, [0.05], progress=False)
    assert one.scores.warning == warning
    assert one.scores.protocol["extractor"] == by
    assert f"**{warning}**" in (run / "evaluation" / "ema-sweep.md").read_text()


# ---- reports beside each other ---------------------------------------------------------------------------------------


def test_reports_of_several_settings_stay(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run / "evaluation"
    one, two = (udit.evaluate(run, sampling={"steps": steps}, progress=False) for steps in (1, 2))
    assert one is not None
    assert two is not None
    for report in (one, two):
        assert Report.model_validate_json(path_of(folder / "metrics.json", report.setting).read_text()) == report
        assert report.table() in path_of(folder / "report.md", report.setting).read_text()
    assert Report.model_validate_json((folder / "metrics.json").read_text()) == two
    monkeypatch.setattr(scoring, "draw_samples", lambda *_: pytest.fail("scored before"))
    assert udit.evaluate(run, sampling={"steps": 1}) == one
    assert udit.evaluate(run, sampling={"steps": 2}) == two


def test_two_settings_are_compared_seed_by_seed(
    run: Path, capsys: pytest.CaptureFixture[str], error_of: ErrorOf
) -> None:
    folder = run / "evaluation"
    paths = []
    for steps in (1, 2):
        report = udit.evaluate(run, num_samples=40, sampling={"steps": steps}, progress=False)
        assert report is not None
        paths.append(path_of(folder / "metrics.json", report.setting))
    found = compare.paired(*paths)
    one, two = (Report.model_validate_json(path.read_text()) for path in paths)
    assert set(found.differences) >= {"frechet_distance", "class_agreement", "kernel_distance"}
    distance = found.differences["frechet_distance"]
    assert (distance.a, distance.b) == pytest.approx((one.distance, two.distance), rel=1e-4, abs=1e-6)
    assert distance.interval[0] <= distance.value <= distance.interval[1]
    assert found.differences["class_agreement"].value == pytest.approx(one.agreement - two.agreement)
    said = succeeds(capsys, "scores", *map(str, paths), "--paired")
    assert "told apart" in said
    assert "- first_seed: 0" in said
    same = compare.paired(paths[0], paths[0]).differences
    assert not any(each.separate for each in same.values())
    other = udit.evaluate(run, num_samples=50, progress=False)
    assert other is not None
    assert "differ in num_samples" in error_of(
        "scores", str(paths[0]), str(path_of(folder / "metrics.json", other.setting)), "--paired"
    )
    for file in folder.glob("features-*"):
        file.unlink()
    assert "score them again with `udit eval RUN --again`" in error_of("scores", *map(str, paths), "--paired")


def of_network(distance: float, **protocol: object) -> Scores:
    scores = {"fid": Score(value=distance)}
    return Scores(scores=scores, subject={"weights": "ab"}, protocol={"num_samples": 20, **protocol})


def test_a_result_under_the_plain_name_alone_is_kept_before_it_is_replaced(tmp_path: Path) -> None:
    plain = tmp_path / "evaluation" / "metrics-inception.json"
    older, newer = of_network(1, sampling="a"), of_network(2, sampling="b")
    plain.parent.mkdir()
    older.write(plain)
    keep(newer, plain)
    assert Scores.read(plain) == Scores.read(path_of(plain, newer.setting)) == newer
    assert Scores.read(path_of(plain, older.setting)) == older
    keep(newer, plain)
    assert len(list(plain.parent.iterdir())) == 3
    plain.write_text("torn")
    keep(older, plain)
    assert Scores.read(plain) == older


def test_scores_of_runs_are_shown_by_judge(run: Path, tmp_path: Path, error_of: ErrorOf) -> None:
    report = udit.evaluate(run, progress=False)
    assert report is not None
    other = report.replace(judge_sha256="f" * 64, agreement=0.25, num_samples=21)
    text = tables([("a", report), ("b", other), ("c", report), ("d", of_network(4.5, extractor="x"))])
    first, second = text.split("Not comparable with the first table (it differs in judge_sha256, num_samples):")
    assert [line.split("|")[1].strip() for line in first.splitlines() if line.startswith("| ")][1:] == [
        *("a", "c", "real test images")
    ]
    assert "| b " in second
    assert "25.0 %" in second
    assert "4.5" in second
    assert read(run) == Report.model_validate_json((run / "evaluation" / "metrics.json").read_text())
    (tmp_path / "other.json").write_text("{}")
    line = error_of("scores", str(tmp_path / "other.json"))
    assert "holds no scores; give a file that `udit eval` wrote: RUN/evaluation/metrics*.json or its --out" in line
    assert "is a folder and no run" in error_of("scores", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text("")
    assert f"`udit eval {tmp_path / 'run'}` writes it" in error_of("scores", str(tmp_path / "run"))


def test_a_model_of_more_classes_than_names_is_trained_drawn_and_scored(tmp_path: Path) -> None:
    words = [*image_folder(tmp_path / "images"), "num_classes=9", "training.steps=1", "training.sample_every=1", *SMALL]
    train(tmp_path / "run", *words)
    assert (tmp_path / "run" / "samples" / "step-00000001.png").is_file()
    report = udit.evaluate(tmp_path / "run", progress=False)
    assert report is not None
    with np.load(tmp_path / "run" / "evaluation" / "samples.npz") as drawn:
        assert drawn["arr_1"].tolist() == [0, 1] * 10, "of classes that were trained"
    udit.generate(tmp_path / "run", range(3), "cat,8").save_pngs(tmp_path / "drawn")
    assert (tmp_path / "drawn" / "grid.png").is_file()
