"""Finding a learning rate: the same start for all, what fails is said, what is done is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import udit
from runs import metrics, small_run
from udit.errors import UserError
from udit.training.trainer import Trainer
from udit.tuning.rates import FILE, Rates, Tried, shortened

OneLine = Callable[[BaseException], str]


@pytest.mark.slow
def test_rates_are_compared_from_the_same_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(tmp_path / "run", "training.clip_norm=null")
    told: list[Tried] = []
    found = udit.find_lr(run, [1e-2, 1e-5, 1e30], steps=4, progress=False, on_tried=told.append)
    assert found is not None
    assert [one.lr for one in found.tried] == [1e-5, 1e-2, 1e30]
    assert tuple(told) == found.tried
    folder = tmp_path / "run-rates"
    assert Rates.model_validate(json.loads((folder / FILE).read_text())) == found
    first = [metrics(folder / f"lr-{rate}")[0]["loss"] for rate in ("1e-05", "0.01")]
    assert first[0] == first[1]  # same weights, images, times and noise
    assert found.best is not None
    assert found.best.trouble is None
    assert found.best.loss == min(one.loss for one in found.tried[:2] if one.loss is not None)
    assert found.tried[2].trouble
    assert not (tmp_path / "run").exists()

    monkeypatch.setattr(Trainer, "_loop", lambda *_: pytest.fail("trained again"))
    assert udit.find_lr(run, [1e-2, 1e-5], steps=4, progress=False) == found.replace(tried=found.tried[:2])


def test_trainings_are_short_and_narrow_on_request(tmp_path: Path) -> None:
    run = small_run(tmp_path, "training.steps=3000", "training.lr_warmup=100", "model.width=16", "model.heads=2")
    short = shortened(run, narrow=2)
    assert (short.training.steps, short.training.lr_warmup) == (300, 10)
    assert (getattr(short.model, "width", 0), getattr(short.model, "heads", 0)) == (8, 1)
    assert shortened(run, steps=7).model == run.model


def test_the_best_at_an_end_is_said() -> None:
    sound = [Tried(lr=lr, loss=loss) for lr, loss in ((1e-4, 3.0), (1e-3, 1.0), (1e-2, 2.0))]
    rates = Rates(steps=1, model="DiT", width=8, optimizer="adamw", tried=tuple(sound))
    assert rates.best == sound[1]
    assert not rates.edge
    assert rates.replace(tried=tuple(sound[1:])).edge
    assert rates.replace(tried=(Tried(lr=1.0, loss=None, trouble="x"),)).best is None


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        ([], {"rates": [0.0]}, "a learning rate is 0"),
        ([], {"rates": [1e-3], "narrow": 3}, "--narrow is 3 and the model has width 8 and 1 heads"),
        ([], {"rates": [1e-3], "steps": 0}, "--steps is 0; it is 1 or more"),
        (["data.test_share=0"], {"rates": [1e-3]}, "data.test_share is 0"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path, overrides: list[str], options: dict[str, object], said: str, one_line: OneLine
) -> None:
    with pytest.raises(UserError) as error:
        udit.find_lr(small_run(tmp_path, *overrides), **options)  # type: ignore[arg-type]
    assert said in one_line(error.value)
