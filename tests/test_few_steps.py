"""MeanFlow and consistency tuning: against closed forms, through every backbone, exact on resuming, and refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import udit
from conftest import perturb, quick
from peers import STEEP
from runs import finish, finished_at, launch, metrics, small_run, state_hash, train
from test_optim import cut_and_resumed
from udit.assemble import System
from udit.diffusion.consistency import SOFTNESS, Consistency, consistency_loss
from udit.diffusion.denoiser import Denoiser, mix
from udit.diffusion.few_step_config import ConsistencyConfig, MeanFlowConfig
from udit.diffusion.meanflow import FLOOR, MeanFlow, average_velocity, guided_velocity, mean_flow_loss
from udit.diffusion.sample import SeededNoise, sample
from udit.diffusion.schedule import known
from udit.errors import UserError
from udit.joint import denoiser_of
from udit.models.catalog import CATALOG
from udit.run.recipes import load_run
from udit.run.system import SystemConfig
from udit.training.memory import estimate

OneLine = Callable[[BaseException], str]
STD = 0.5
MEAN_FLOW = ["diffusion={kind: mean-flow, share: 0.5}", "sampling.sampler=flow-average"]
ROWS = [name for name in CATALOG if name.endswith("-tiny") and CATALOG[name].config.time != "sigma"]
QUICK = ("U-DiT-tiny", "U-ViT-tiny", "MPDiT-tiny")
"""One each of vectors, tokens and a time of its own."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(t: Tensor) -> Tensor:
    """Standard deviation of x_t for data of N(0, STD ** 2) on the linear path."""
    return ((1 - t).square() * STD**2 + t.square()).sqrt()


def exact(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """The average velocity of such data: along the flow x_t goes with its standard deviation."""
    t = t if t.ndim == 2 else torch.stack([t, t], dim=1)
    start, end = (part.view(-1, *[1] * (x.ndim - 1)) for part in t.unbind(1))
    now = spread(start)
    slope = (start - (1 - start) * STD**2) / now.square()  # of ln(spread)
    gap = torch.where(start == end, 1.0, start - end)
    return x * torch.where(start == end, slope, (1 - spread(end) / now) / gap)


def flow(network: Any, **options: Any) -> Denoiser:
    return Denoiser(network, MeanFlow(**options), "flow", time="unit", null_label=3, num_classes=3)


# ---- the second time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quick(ROWS, QUICK))
def test_second_time_adds_nothing_at_first_and_is_told_apart_later(name: str) -> None:
    plain, two = udit.build(name), udit.build(name, second_time=True)
    assert [key for key in two.state_dict() if "second_time." not in key] == list(plain.state_dict())
    x = normal(2, *plain.config.input_shape()).float()
    t, shape = torch.tensor([0.6, 0.9]), plain.config.condition_shape
    y = normal(2, *shape).float() if shape else torch.tensor([1, 2])
    pair = torch.stack([t, t / 2], dim=1)
    with torch.no_grad():
        assert torch.equal(two(x, pair, y), plain(x, t, y))
        perturb(two, STEEP.get(name, 0.1))
        assert torch.equal(two(x, t, y), two(x, torch.stack([t, t], dim=1), y))
        assert not torch.equal(two(x, t, y), two(x, pair, y))


def test_times_of_another_shape_and_models_without_a_place_are_refused(one_line: OneLine) -> None:
    plain, two = udit.build("U-DiT-tiny"), udit.build("U-DiT-tiny", second_time=True)
    x, y = torch.zeros(2, 1, 8, 8), torch.tensor([1, 2])
    for model, t in ((plain, torch.ones(2, 2)), (two, torch.ones(2, 3)), (two, torch.ones(2, 2, 1))):
        with pytest.raises(UserError, match=r"t is \[2, .*give one time for each image") as error:
            model(x, t, y)
        one_line(error.value)
    with pytest.raises(UserError, match=r"model\.second_time is true and HDiT takes one time") as error:
        udit.build("HDiT-tiny", second_time=True)
    one_line(error.value)


@pytest.mark.parametrize("name", quick(ROWS, QUICK))
def test_loss_reaches_every_weight_of_every_backbone(name: str) -> None:
    model = perturb(udit.build(name, second_time=True, learn_sigma=False), STEEP.get(name, 0.1)).train()
    config = SystemConfig(model=model.config, diffusion=MeanFlowConfig(guidance=2.0, guidance_mix=0.5))
    denoiser = denoiser_of(config, model)
    x0, noise = (normal(3, *model.config.input_shape(), seed=i).float() for i in (1, 2))
    t, shape = torch.tensor([[0.9, 0.2], [0.5, 0.5], [0.7, 0.1]]), model.config.condition_shape
    y = normal(3, *shape, seed=3).float() if shape else torch.tensor([1, 2, 0])
    losses = mean_flow_loss(denoiser, x0, t, noise, y)
    assert losses.loss.shape == losses.mse.shape == (3,)
    losses.loss.sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not [n for n in without if "projectors" not in n]  # REPA's are of its alignment loss alone
    second = {n: p for n, p in model.named_parameters() if "second_time." in n}
    assert second
    assert all(p.grad is not None and p.grad.any() for p in second.values())


# ---- MeanFlow --------------------------------------------------------------------------------------------------------


def test_what_is_learned_is_the_average_velocity_itself() -> None:
    """Of the exact one, with the velocity of all data in place of one sample's."""
    x, t = normal(4, 1, 2, 2), torch.tensor([[0.9, 0.1], [0.5, 0.5], [1.0, 0.0], [0.3, 0.2]], dtype=torch.float64)
    found = average_velocity(flow(exact), x, t, exact(x, t[:, 0]), None)
    torch.testing.assert_close(found, exact(x, t), rtol=0, atol=1e-6)  # derivatives become float32


def test_derivative_is_taken_of_the_samples_that_move_alone() -> None:
    seen: list[tuple[int, ...]] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        seen.append((len(x), *(() if y is None else y.tolist())))
        return exact(x, t)

    x, y = normal(4, 1, 2, 2), torch.tensor([0, 1, 2, 1])
    t = torch.tensor([[0.9, 0.9], [0.5, 0.2], [0.4, 0.4], [0.3, 0.2]], dtype=torch.float64)
    velocity = normal(4, 1, 2, 2, seed=1)
    goal = average_velocity(flow(network), x, t, velocity, y)
    assert seen == [(2, 1, 1)]
    assert torch.equal(goal[[0, 2]], velocity[[0, 2]])
    assert torch.equal(average_velocity(flow(network), x, t[:, :1].expand(4, 2), velocity, y), velocity)
    assert len(seen) == 1


def test_guidance_is_that_of_the_paper_and_leaves_dropped_labels_alone() -> None:
    def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None
        return x * (1 + y.view(-1, 1, 1, 1)) * t.view(-1, 1, 1, 1)

    x, v, t, y = normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1), torch.tensor([0.5, 0.8, 1.0]).double(), torch.arange(3)
    y[2] = 3
    found = guided_velocity(flow(network, guidance=3.0, guidance_mix=0.25), x, t, v, y)
    omega, kappa = 3 * 0.75, 0.25  # an effective scale of omega / (1 - kappa)
    for i in range(2):
        own, null = x[i] * (1 + y[i]) * t[i], x[i] * 4 * t[i]
        torch.testing.assert_close(found[i], omega * v[i] + kappa * own + (1 - omega - kappa) * null, rtol=0, atol=1e-5)
    assert torch.equal(found[2], v[2])
    assert guided_velocity(flow(network), x, t, v, y) is v


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_weight_is_adaptive_and_has_no_gradient(power: float) -> None:
    factor = torch.tensor(0.7, requires_grad=True)
    x0, noise = normal(2, 1, 2, 2), normal(2, 1, 2, 2, seed=1)
    t = torch.tensor([[0.5, 0.5], [0.9, 0.9]])
    losses = mean_flow_loss(flow(lambda x, t, y=None: factor * x, power=power), x0, t, noise)
    x_t = mix(MeanFlow(), x0, noise, t)
    squared = (0.7 * x_t - (noise - x0)).square().flatten(1).sum(1)
    torch.testing.assert_close(losses.loss.double(), squared / (squared + FLOOR) ** power, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.mse.double(), squared / 4, rtol=1e-5, atol=0)
    [slope] = torch.autograd.grad(losses.loss.sum(), factor)
    raw = 2 * ((0.7 * x_t - (noise - x0)) * x_t).flatten(1).sum(1)
    torch.testing.assert_close(slope.double(), (raw / (squared + FLOOR) ** power).sum(), rtol=1e-5, atol=0)


def test_times_are_ordered_and_a_share_of_them_moves() -> None:
    schedule = MeanFlowConfig(share=0.25).build()
    generator = torch.Generator().manual_seed(0)
    t, r = torch.stack([schedule.draw(generator) for _ in range(4000)]).unbind(1)
    assert bool((r <= t).all())
    moving = float((r < t).double().mean())
    assert abs(moving - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    both = torch.logit(torch.cat([t, r])[torch.cat([r < t, r < t])])  # of those that move, all that was drawn
    assert abs(float(both.mean()) + 0.4) < 4 / math.sqrt(len(both))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_any_number_of_steps_along_the_exact_average_ends_at_the_data(steps: int) -> None:
    x = normal(3, 1, 2, 2).float()
    *_, last = sample(flow(exact), x, sampler="flow-average", steps=steps)
    assert last.index == last.total == steps
    torch.testing.assert_close(last.x, STD * x, rtol=0, atol=2e-6)


def test_other_samplers_of_flows_follow_the_velocity() -> None:
    x = normal(3, 1, 2, 2).float()
    *_, last = sample(flow(exact), x, sampler="flow-heun", steps=63)
    torch.testing.assert_close(last.x, STD * x, rtol=0, atol=5e-3)


def test_conditions_of_both_times_are_computed_once() -> None:
    model = perturb(udit.build("U-DiT-tiny", second_time=True, learn_sigma=False, time="unit")).eval()
    run = load_run("digits", ["diffusion.kind=mean-flow", "sampling={guidance: 2}"])
    system = System(SystemConfig.of(run).replace(model=model.config), model)
    assert (run.sampling.sampler, run.sampling.steps) == ("flow-average", 1)
    for steps in (1, 3):
        sampling = run.sampling.replace(steps=steps)
        *_, step = system.steps([5, 6], [1, 2], sampling=sampling)
        noise = SeededNoise([5, 6], (1, 8, 8))
        *_, plain = sample(
            system.guided(sampling), noise(0), sampler="flow-average", steps=steps, y=torch.tensor([1, 2])
        )
        torch.testing.assert_close(step.x, plain.x, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_run_of_mean_flow_resumes_to_the_bit_and_samples(tmp_path: Path) -> None:
    cut_and_resumed(tmp_path, [*MEAN_FLOW, "training.accumulation=2"])
    system = udit.load(tmp_path / "whole" / "model")
    assert system.config.model.second_time
    assert system.config.model.time == "unit"
    for sampling in (None, system.config.sampling.replace(sampler="flow-euler", steps=2)):
        assert next(system.generate([1, 2], [0, 1], sampling=sampling)).shape == (2, 1, 8, 8)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("keys", [MEAN_FLOW, ["diffusion={kind: consistency, stage_steps: 2}", "sampling={}"]])
def test_two_ranks_resume_to_the_bit(tmp_path: Path, keys: list[str]) -> None:
    chosen = [*keys, "training.batch_size=6", "training.save_every=2", "model.depths=[1]"]
    for out, stops in (("whole", (4,)), ("cut", (2, 4))):
        for steps in stops:
            ended = finish(launch(tmp_path / out, *chosen, f"training.steps={steps}", ranks=2))
            assert [code for code, _ in ended] == [0, 0], ended
    assert state_hash(tmp_path / "cut") == state_hash(tmp_path / "whole")


@pytest.mark.slow
def test_its_memory_is_counted_before_it_trains(tmp_path: Path) -> None:
    alike = estimate(small_run(tmp_path, "diffusion={kind: flow}", "sampling.sampler=flow-euler"))
    two = estimate(small_run(tmp_path, *MEAN_FLOW))
    assert two.weights > alike.weights
    assert two.total > alike.total


def test_it_trains_in_bfloat16(tmp_path: Path) -> None:
    train(tmp_path, "training.steps=2", "training.precision=bfloat16", *MEAN_FLOW)
    assert all(math.isfinite(line["mse"]) for line in metrics(tmp_path))  # type: ignore[arg-type]


# ---- consistency tuning ----------------------------------------------------------------------------------------------


def consistency(network: Any, **options: Any) -> Denoiser:
    return Denoiser(network, Consistency(**options), "flow", time="unit")


@pytest.mark.parametrize("stage", [1, 3])
def test_loss_compares_two_guesses_of_one_sample(stage: int) -> None:
    x0, noise, t = normal(2, 1, 2, 2), normal(2, 1, 2, 2, seed=1), torch.tensor([0.8, 0.4])
    factor = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    denoiser = consistency(lambda x, t, y=None: factor * x, stage=stage)
    losses = consistency_loss(denoiser, x0, t, noise)
    upper, lower = t.double(), t.double() * (1 - 2.0**-stage)

    def guess(at: Tensor, k: Tensor) -> Tensor:
        at = at.view(-1, 1, 1, 1)
        x = (1 - at) * x0 + at * noise
        return x - at * k * x

    fixed = factor.detach()
    squared = (guess(upper, factor) - guess(lower, fixed)).square().flatten(1).sum(1)
    soft = SOFTNESS * 2
    expected = ((squared + soft**2).sqrt() - soft) / (upper - lower)
    torch.testing.assert_close(losses.loss.double(), expected, rtol=1e-5, atol=0)
    [slope], [wanted] = (torch.autograd.grad(each.sum(), factor) for each in (losses.loss, expected))
    torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=0)


def test_points_come_closer_with_the_steps_and_then_stay() -> None:
    schedule = ConsistencyConfig(stages=3, stage_steps=10).build()
    assert [schedule.at_step(step).stage for step in (0, 9, 10, 25, 30, 999)] == [1, 1, 2, 3, 3, 3]
    assert MeanFlow().at_step(7) == MeanFlow()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_every_evaluation_guesses_and_noises_anew(steps: int) -> None:
    asked: list[float] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        asked.append(float(t[0]))
        return x / 2

    noise = SeededNoise([3, 4], (1, 2, 2))
    *_, last = sample(consistency(network), noise(0), sampler="flow-consistency", steps=steps, noise=noise)
    times = [1 - k / steps for k in range(steps)]
    assert asked == pytest.approx(times)
    x = noise(0) * 0.5
    for k, t in enumerate(times[1:], start=1):
        x_t = (1 - t) * x + t * noise(k)
        x = x_t - t * x_t / 2
    torch.testing.assert_close(last.x, x)


@pytest.fixture
def origin(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model folder of the small run's network, trained by a process."""

    def write(*overrides: str) -> Path:
        run = small_run(tmp_path / "unused", *overrides)
        network = perturb(udit.build(run.model))
        return udit.save(System(SystemConfig.of(run), network), tmp_path / "origin")

    return write


FLOW = ("diffusion={kind: flow, path: gvp}", "sampling={sampler: flow-euler, steps: 2, guidance: 2.0}")


@pytest.mark.slow
def test_tuning_goes_on_from_a_flow_and_resumes_to_the_bit(tmp_path: Path, origin: Callable[..., Path]) -> None:
    keys = ["diffusion={kind: consistency, stages: 3, stage_steps: 2}", "sampling={}", f"init_from={origin(*FLOW)}"]
    run = small_run(tmp_path / "x", *keys)
    assert (run.diffusion.path, run.diffusion.predict) == ("gvp", "velocity")  # type: ignore[attr-defined]
    assert (run.sampling.sampler, run.sampling.steps) == ("flow-consistency", 2)
    cut_and_resumed(tmp_path, keys)
    assert next(udit.load(tmp_path / "whole").generate([1], [0])).shape == (1, 1, 8, 8)


def test_mean_flow_goes_on_from_a_flow_with_a_new_embedding(tmp_path: Path, origin: Callable[..., Path]) -> None:
    folder = origin("diffusion={kind: flow}", "sampling={sampler: flow-euler, steps: 2}")
    keys = ["diffusion.kind=mean-flow", "sampling={}", f"init_from={folder}"]
    run = small_run(tmp_path / "out", *keys)
    assert run.model.second_time
    assert run.model.time == udit.load(folder).config.model.time
    assert train(tmp_path / "out", "training.steps=2", *keys) == finished_at(tmp_path / "out", 2)


@pytest.mark.parametrize(
    ("trained", "kind", "said"),
    [
        (("diffusion={kind: ddpm}",), "mean-flow", "trained with kind ddpm, predict eps, from which it cannot go on"),
        (FLOW, "mean-flow", "trained with kind flow, path gvp, predict velocity, from which it cannot go on"),
        (("diffusion={kind: flow, predict: x0}", FLOW[1]), "consistency", "predict x0, from which it cannot go on"),
        (FLOW, "consistency, path: linear", "diffusion.path is 'linear' and the weights of"),
        (FLOW, "edm", "from which it cannot go on; leave it out"),
    ],
)
def test_weights_of_no_use_are_refused(
    tmp_path: Path, origin: Callable[..., Path], trained: Sequence[str], kind: str, said: str, one_line: OneLine
) -> None:
    folder = origin(*trained)
    with pytest.raises(UserError) as error:
        small_run(tmp_path / "out", f"diffusion={{kind: {kind}}}", "sampling={}", f"init_from={folder}")
    assert said in one_line(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("diffusion={kind: mean-flow, density: uniform, density_mean: 1.0}", "density_mean belongs to density logit-n"),
        ("diffusion={kind: mean-flow, guidance_mix: 0.5}", "guidance_mix is 0.5 and guidance 1, which is none"),
        ("diffusion={kind: mean-flow} + sampling.cache=2", "cache keeps what changes little between many steps"),
        ("diffusion={kind: mean-flow} + sampling={sampler: ddim, guidance: 1}", "sampling.sampler is 'ddim'"),
        ("diffusion={kind: consistency, predict: x0}", "diffusion.predict is 'x0'"),
    ],
)
def test_keys_that_make_no_sense_are_refused(words: str, said: str, one_line: OneLine) -> None:
    with pytest.raises(UserError) as error:
        load_run("digits", words.split(" + "))
    assert said in one_line(error.value)


def test_what_has_no_counterpart_elsewhere_is_not_exported(tmp_path: Path, one_line: OneLine) -> None:
    for kind, said in (("mean-flow", "takes two times \\(MeanFlow\\)"), ("consistency", "has no scheduler")):
        run = load_run("digits", [f"diffusion.kind={kind}", "sampling={}"])
        system = System(SystemConfig.of(run), udit.build(run.model))
        with pytest.raises(UserError, match=said) as error:
            udit.export(system, "diffusers", tmp_path / kind)
        one_line(error.value)


@pytest.mark.parametrize(
    ("of", "sampler", "times"),
    [(flow, "flow-average", [[1.0, 0.5], [0.5, 0.0]]), (consistency, "flow-consistency", [[1.0], [0.5]])],
)
def test_the_host_knows_the_times_of_steps_on_another_device(
    of: Callable[..., Denoiser], sampler: str, times: list[list[float]]
) -> None:
    asked: list[list[float]] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert t.is_meta
        asked.append(known(t)[0].flatten().tolist())  # a value of the device itself cannot be read
        return x / 2

    noise = SeededNoise([3, 4], (1, 2, 2), "meta")
    for _ in sample(of(network), noise(0), sampler=sampler, steps=2, noise=noise):
        pass
    assert asked == times
