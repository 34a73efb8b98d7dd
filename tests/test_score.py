"""Good samples score well, bad ones badly, and the report contains the protocol."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from udit.data.sources import InMemory, digits, split
from udit.errors import UserError
from udit.evaluation import real as module
from udit.evaluation.judge import Judge
from udit.evaluation.real import RealImages
from udit.evaluation.report import NOTE, Report
from udit.evaluation.score import score_with_judge
from udit.run.config import EvaluationConfig

SOURCE = digits()
PARTS = split(SOURCE.labels, SOURCE.names, 0.35, 0.15)
CONFIG = EvaluationConfig(judge_steps=100, bootstrap=20)
PROTOCOL: dict[str, Any] = {"weights": "abc", "checkpoint_step": 7, "sampling": {"guidance": 2.0, "interval": None}}


@pytest.fixture(scope="module")
def judge_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judge") / "judge.safetensors"


def score(path: Path | None, pixels: np.ndarray, labels: np.ndarray, **changes: Any) -> Report:
    settings: dict[str, Any] = {"source": SOURCE, "parts": PARTS, "config": CONFIG} | changes
    return score_with_judge(pixels, labels.tolist(), protocol=PROTOCOL, judge_path=path, **settings)


@pytest.fixture(scope="module")
def real(judge_path: Path) -> Report:
    """Test images in the place of samples."""
    return score(judge_path, SOURCE.pixels[PARTS.test], SOURCE.labels[PARTS.test])


def test_fresh_real_images_score_as_real(real: Report) -> None:
    assert real.num_samples == real.matched_count == len(PARTS.test)
    assert real.distance == real.distance_matched == real.distance_real
    assert real.agreement == real.judge_on_test > 0.9
    assert real.memorised == real.memorised_real == pytest.approx(0.05, abs=0.02)
    assert real.distance_interval[0] <= real.distance <= real.distance_interval[1]
    assert real.agreement_interval[0] < real.agreement < real.agreement_interval[1]
    assert real.reference_count == len(PARTS.train)


def test_what_is_known_of_real_images_is_found_once(
    judge_path: Path, real: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept for these images and this judge, and found again where the file is damaged."""
    made: list[Path] = []

    def found(*given: Any) -> RealImages:
        made.append(tmp_path)
        return find(*given)

    find = module._found
    monkeypatch.setattr(module, "_found", found)
    monkeypatch.setattr(module, "cached", lambda name: tmp_path / "cache" / name)
    again = [score(judge_path, SOURCE.pixels[PARTS.test], SOURCE.labels[PARTS.test]) for _ in range(2)]
    assert again == [real, real]
    assert len(made) == 1
    [file] = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:5000])
    assert score(judge_path, SOURCE.pixels[PARTS.test], SOURCE.labels[PARTS.test]) == real
    other = replace(PARTS, test=PARTS.test[1:])
    assert score(judge_path, SOURCE.pixels[PARTS.test], SOURCE.labels[PARTS.test], parts=other) != real
    assert len(made) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_noise_scores_badly(judge_path: Path, real: Report) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 1, 8, 8), dtype=np.uint8)
    report = score(judge_path, noise, np.arange(300) % 10)
    assert report.agreement < 0.3
    assert report.distance > 5 * real.distance
    assert report.memorised == 0


def test_wrong_classes_lower_agreement_alone(judge_path: Path, real: Report) -> None:
    report = score(judge_path, SOURCE.pixels[PARTS.test], (SOURCE.labels[PARTS.test] + 1) % 10)
    assert report.agreement < 0.05
    assert report.distance == real.distance


def test_copies_of_training_images_are_detected(judge_path: Path) -> None:
    report = score(judge_path, SOURCE.pixels[PARTS.train], SOURCE.labels[PARTS.train])
    assert report.memorised == 1
    assert report.distance == pytest.approx(0, abs=1e-9)
    assert report.agreement == pytest.approx(report.judge_on_train)
    assert report.distance_matched > report.distance  # few samples seem farther away than many
    assert report.matched_count == len(PARTS.test)


def test_one_missing_class_shows_in_the_distance(judge_path: Path, real: Report) -> None:
    kept = PARTS.test[SOURCE.labels[PARTS.test] != 3]
    assert score(judge_path, SOURCE.pixels[kept], SOURCE.labels[kept]).distance > real.distance * 1.5


def test_kept_judge_is_used_again(judge_path: Path, real: Report) -> None:
    before = judge_path.stat().st_mtime_ns
    assert score(judge_path, SOURCE.pixels[PARTS.test], SOURCE.labels[PARTS.test]) == real
    assert judge_path.stat().st_mtime_ns == before
    assert Judge.load(judge_path).fingerprint == real.judge_sha256


@pytest.mark.slow
def test_judge_of_other_images_or_steps_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    quick = CONFIG.replace(judge_steps=2)
    seen = [score(path, SOURCE.pixels[:30], SOURCE.labels[:30], config=quick).judge_sha256]
    other = InMemory(255 - SOURCE.pixels, SOURCE.labels, SOURCE.names)
    for changes in ({"config": CONFIG.replace(judge_steps=3)}, {"source": other, "config": quick}):
        seen.append(score(path, SOURCE.pixels[:30], SOURCE.labels[:30], **changes).judge_sha256)
        assert Judge.load(path).fingerprint == seen[-1]
    fewer = replace(PARTS, judge=PARTS.judge[::2])
    seen.append(score(path, SOURCE.pixels[:30], SOURCE.labels[:30], parts=fewer, config=quick).judge_sha256)
    assert len(set(seen)) == 4


def test_damaged_judge_is_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "judge.safetensors"
    path.write_bytes(b"torn")
    report = score(path, SOURCE.pixels[:30], SOURCE.labels[:30], config=CONFIG.replace(judge_steps=2))
    assert Judge.load(path).fingerprint == report.judge_sha256
    assert "cannot be used" in caplog.text


def test_too_few_images_name_the_share() -> None:
    for name in ("judge", "test"):
        with pytest.raises(UserError, match=f"the {name} part has 0 images; raise data.{name}_share"):
            score(None, SOURCE.pixels, SOURCE.labels, parts=replace(PARTS, **{name: PARTS.test[:0]}))


def test_samples_unlike_the_data_are_refused() -> None:
    for pixels, labels in (
        (SOURCE.pixels[:9, :, :4], SOURCE.labels[:9]),
        (SOURCE.pixels[:9], SOURCE.labels[:8]),
        (SOURCE.pixels[:9].astype(np.float32), SOURCE.labels[:9]),
    ):
        with pytest.raises(UserError, match=r"needed are .* uint8 \[1, 8, 8\]"):
            score(None, pixels, labels)


def test_report_comes_back_for_its_protocol_alone(real: Report, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    assert Report.read(path, PROTOCOL) is None
    real.write(path)
    assert Report.read(path, PROTOCOL) == real
    assert Report.read(path, PROTOCOL | {"checkpoint_step": 8}) is None
    assert json.loads(path.read_text())["note"] == NOTE
    real.replace(judge="older").write(path)
    assert Report.read(path, PROTOCOL) is None
    path.write_text(path.read_text()[:50])
    assert Report.read(path, PROTOCOL) is None


def test_table_tells_numbers_protocol_and_what_they_are_not(real: Report) -> None:
    table = real.table()
    assert NOTE in table
    assert f"{100 * real.agreement:.1f} %" in table
    for line in table.splitlines():
        if "Fréchet" in line:
            assert "judge features" in line
    assert "- checkpoint_step: 7" in table
    assert "guidance 2.0, interval none" in table
    assert real.judge_sha256[:12] in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
