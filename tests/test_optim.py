"""Optimisers and schedules: against torch's and diffusers' own, which weights each one changes, and exact resuming."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import udit
from conftest import quick
from runs import finish, finished_at, launch, metrics, small_run, state_hash, train
from udit.dist import World
from udit.errors import UserError
from udit.optim import adamw
from udit.optim.config import (
    AdamWConfig,
    ConstantSchedule,
    CosineSchedule,
    GroupConfig,
    InverseSqrtSchedule,
    LinearSchedule,
    MuonConfig,
    ScheduleConfig,
    WarmupStableDecaySchedule,
)
from udit.optim.groups import choices_of, matrices
from udit.optim.muon import Muon, orthogonalized
from udit.training.learner import Learner

OneLine = Callable[[BaseException], str]
BETAS = (0.9, 0.999)


# ---- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [ConstantSchedule(), LinearSchedule(), CosineSchedule()], ids=lambda c: c.kind)
def test_schedules_are_those_of_diffusers_after_the_warm_up(config: ScheduleConfig) -> None:
    from diffusers.optimization import get_scheduler

    name = "constant_with_warmup" if config.kind == "constant" else config.kind
    theirs = get_scheduler(name, torch.optim.SGD([torch.zeros(1)], lr=1.0), num_warmup_steps=10, num_training_steps=50)
    assert config.factor(0, 50, 10) == 0.1  # diffusers' first step has rate 0 and changes nothing
    for step in range(50):
        if step >= 10:
            assert config.factor(step, 50, 10) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        theirs.optimizer.step()
        theirs.step()


def test_inverse_sqrt_halves_after_four_times_as_many_steps() -> None:
    schedule = InverseSqrtSchedule(reference=100)
    assert [schedule.factor(step, 9999, 0) for step in (0, 100, 400, 900)] == pytest.approx([1, 1, 1 / 2, 1 / 3])
    assert schedule.factor(4, 9999, 10) == 0.5


@pytest.mark.parametrize(("shape", "halfway"), [("linear", 0.55), ("1-sqrt", 1 - 0.9 * math.sqrt(0.5))])
def test_wsd_is_constant_and_then_decays(shape: str, halfway: float) -> None:
    schedule = WarmupStableDecaySchedule(decay=0.2, shape=shape, end=0.1)
    factors = [schedule.factor(step, 100, 5) for step in range(100)]
    assert factors[4:81] == [1.0] * 77
    assert factors[90] == pytest.approx(halfway)
    assert all(a > b > 0.1 for a, b in itertools.pairwise(factors[80:]))


def test_no_schedule_exceeds_its_highest_rate() -> None:
    for schedule in (LinearSchedule(end=0.5), CosineSchedule(), InverseSqrtSchedule(reference=3)):
        assert all(0 < schedule.factor(step, 20, 7) <= 1 for step in range(20))


# ---- which weights, at which rate ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return udit.build("U-DiT-tiny")


def test_the_last_group_that_matches_counts(model: nn.Module) -> None:
    groups = [
        GroupConfig(match="*.label.weight", lr=0.1, weight_decay=0.5),
        GroupConfig(match="conditioners.0.*", lr=0),
    ]
    choices = choices_of(model, groups, weight_decay=0.2)
    scales = {name: choice.scale for name, choice in choices.items() if choice.scale != 1}
    assert scales.pop("conditioners.1.label.weight") == 0.1
    assert set(scales) == {name for name in choices if name.startswith("conditioners.0.")}
    assert set(scales.values()) == {0.0}
    assert choices["conditioners.1.label.weight"].weight_decay == 0.5
    assert choices["stem.weight"].weight_decay == 0.2


def test_group_without_a_parameter_is_refused(model: nn.Module, one_line: OneLine) -> None:
    with pytest.raises(UserError) as error:
        choices_of(model, [GroupConfig(match="conditioners.0.label.wieght")])
    assert "did you mean 'conditioners.0.label.weight'" in one_line(error.value)
    with pytest.raises(UserError) as error:
        choices_of(model, [GroupConfig(match="*", lr=0)])
    assert "lr 0 for every parameter, so that nothing is trained" in one_line(error.value)


def test_layer_decay_lowers_the_rate_block_by_block_towards_the_input() -> None:
    model = udit.build("DiT-tiny")
    choices = choices_of(model, layer_decay=0.5)
    count = len(model.blocks)  # type: ignore[arg-type]
    rates = [choices[f"blocks.{i}.modulation.weight"].scale for i in range(count)]
    assert rates == [0.5 ** (count - i) for i in range(count)]
    names = list(choices)
    assert choices[names[0]].scale == 0.5 ** (count + 1)
    assert choices[names[-1]].scale == 1.0


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    run = small_run(tmp_path, "training.groups=[{match: 'stem.*', lr: 0}]", "training.steps=2")
    trainer = udit.Trainer(run, World())
    before = {name: p.detach().clone() for name, p in trainer.learner.model.named_parameters()}
    for _ in trainer.steps():
        pass
    changed = {name for name, p in trainer.learner.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert not [name for name in changed if name.startswith("stem.")]


# ---- Muon ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalized_keeps_singular_vectors(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.mT @ orthogonalized(matrix) @ vh.mT
    assert 0.6 < float(inner.diagonal().min()) <= float(inner.diagonal().max()) < 1.25
    assert float((inner - torch.diag(inner.diagonal())).abs().max()) < 1e-12


@pytest.mark.parametrize("adjust", ["match-rms-adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torch_s_within_the_rounding_of_bfloat16(adjust: Any, nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(24, 10, generator=generator)
    gradients = torch.randn(4, 24, 10, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    config = MuonConfig(adjust=adjust, nesterov=nesterov)
    group: dict[str, object] = {"lr": 0.1, "weight_decay": 0.3}
    mine = Muon([{"params": [ours], **group}], config)
    torchs = torch.optim.Muon(
        [{"params": [theirs], **group}], nesterov=nesterov, adjust_lr_fn=adjust.replace("-", "_"), momentum=0.95
    )
    for gradient in gradients:
        before = ours.detach().clone()
        for parameter, optimizer in ((ours, mine), (theirs, torchs)):
            parameter.grad = gradient.clone()
            optimizer.step()
        # bfloat16 keeps 8 bits; five iterations of three products each amplify what they round by a few times
        moved = (ours - before).detach().norm()
        assert float((ours - theirs).detach().norm() / moved) < 0.05
        assert float(moved) > 0.01
        theirs.data.copy_(ours)


def test_muon_takes_the_matrices_of_blocks_and_adamw_all_else(model: nn.Module) -> None:
    optimizer = MuonConfig().build(model, choices_of(model), BETAS)
    first, second = ({id(p) for g in part.optimizer.param_groups for p in g["params"]} for part in optimizer.parts)
    names = {id(p): name for name, p in model.named_parameters()}
    assert first | second == set(names)
    assert not first & second
    assert {names[i] for i in first} == set(matrices(model))
    assert all(".blocks." in names[i] for i in first)
    assert {"stem.weight", "conditioners.0.label.weight", "encoder.0.blocks.0.attention.filter.weight"} <= {
        names[i] for i in second
    }
    assert optimizer.told().startswith(f"muon: {len(first)} tensors, ")


def test_muon_of_a_model_without_matrices_is_refused(one_line: OneLine) -> None:
    plain = nn.Sequential(nn.Conv2d(1, 1, 3))
    with pytest.raises(UserError) as error:
        MuonConfig().build(plain, choices_of(plain), BETAS)
    assert "no linear layer within its blocks" in one_line(error.value)


def test_training_says_what_goes_to_muon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    train(tmp_path, "training.steps=1", "training.optimizer=muon")
    assert "by muon: " in caplog.text
    assert "; adamw: " in caplog.text


# ---- runs ------------------------------------------------------------------------------------------------------------

RECIPES = {
    "muon": ["training.optimizer=muon", "training.weight_decay=0.1"],
    "cosine": ["training.lr_schedule=cosine", "training.lr_layer_decay=0.8"],
    "linear": ["training.lr_schedule={kind: linear, end: 0.1}"],
    "inverse-sqrt": ["training.lr_schedule={kind: inverse-sqrt, reference: 2}"],
    "wsd": ["training.lr_schedule={kind: wsd, decay: 0.5}", "training.groups=[{match: '*.label.*', lr: 0.2}]"],
}
PACKAGES = {"adamw-8bit": ["training.optimizer=adamw-8bit"], "schedule-free": ["training.optimizer=schedule-free"]}
"""Of packages that only the slow tests have."""


def cut_and_resumed(out: Path, overrides: list[str]) -> None:
    """An unbroken run of eight steps, and one that is left after step 4, between two checkpoints, end alike."""
    steps = "training.steps=8"
    train(out / "whole", steps, *overrides)
    for record in udit.Trainer(small_run(out / "cut", steps, *overrides), World()).steps():
        if record.step == 4:
            break
    assert train(out / "cut", steps, *overrides) == finished_at(out / "cut", 8)
    assert state_hash(out / "cut") == state_hash(out / "whole")
    assert metrics(out / "cut") == metrics(out / "whole")


@pytest.mark.parametrize("name", quick(RECIPES, list(RECIPES)[:2]))
def test_run_resumes_to_the_bit(tmp_path: Path, name: str) -> None:
    cut_and_resumed(tmp_path, RECIPES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_run_of_a_package_s_optimiser_resumes_to_the_bit(tmp_path: Path, name: str) -> None:
    # widths from which bitsandbytes keeps 8 bits
    cut_and_resumed(tmp_path, [*PACKAGES[name], "model.width=32"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", *PACKAGES])
def test_two_ranks_resume_to_the_bit(tmp_path: Path, name: str) -> None:
    chosen = [*(RECIPES | PACKAGES)[name], "training.batch_size=6", "training.save_every=3"]
    for out, stops in (("whole", (6,)), ("cut", (3, 6))):
        for steps in stops:
            ended = finish(launch(tmp_path / out, *chosen, f"training.steps={steps}", ranks=2))
            assert [code for code, _ in ended] == [0, 0], ended
    assert state_hash(tmp_path / "cut") == state_hash(tmp_path / "whole")


@pytest.mark.slow
def test_schedule_free_s_average_takes_the_place_of_the_ema(tmp_path: Path) -> None:
    learner = Learner(small_run(tmp_path, "training.optimizer=schedule-free"), World())
    learner.share(0)
    weights = [p.detach().double().clone() for p in learner.model.parameters()]
    average, total = [w.clone() for w in weights], 0.0
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        for p in learner.model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        rate = 1e-3 * (step + 1)
        learner.optimizer.step(rate)
        total += rate**2  # every step counts by the square of the highest rate so far (Defazio et al. 2024, sec. 4)
        for mean, p in zip(average, learner.model.parameters(), strict=True):
            z = learner.optimizer.state(p)["z"].double()  # type: ignore[arg-type]
            mean.lerp_(z, rate**2 / total)
    assert learner.optimizer.average is not None
    for mean, p in zip(average, learner.model.parameters(), strict=True):
        torch.testing.assert_close(learner.optimizer.average(p).double(), mean, rtol=0, atol=1e-6)  # type: ignore[arg-type]


def test_missing_package_is_one_line(model: nn.Module, monkeypatch: pytest.MonkeyPatch, one_line: OneLine) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(adamw, "importlib", SimpleNamespace(import_module=absent))
    for build in (adamw.adamw_8bit, adamw.schedule_free):
        with pytest.raises(UserError) as error:
            build(model, choices_of(model), BETAS)
        assert "pip install 'udit[optimizers]'" in one_line(error.value)


def test_unknown_optimiser_and_schedule_name_the_nearest(tmp_path: Path, one_line: OneLine) -> None:
    for key, near in (("training.optimizer=moun", "muon"), ("training.lr_schedule=cosin", "cosine")):
        with pytest.raises(UserError) as error:
            small_run(tmp_path, key)
        assert f"did you mean '{near}'?" in one_line(error.value)


def test_size_of_the_state_is_what_a_checkpoint_holds(tmp_path: Path) -> None:
    for config in (AdamWConfig(), MuonConfig()):
        learner = Learner(small_run(tmp_path, f"training.optimizer={config.kind}"), World())
        for p in learner.model.parameters():
            p.grad = torch.ones_like(p)
        learner.optimizer.step(1e-3)
        held = sum(t.numel() * t.element_size() for key, t in learner.optimizer.tensors().items() if key[:5] != "step.")
        assert learner.optimizer.bytes == held
