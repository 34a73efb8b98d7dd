"""Kinds of guidance: each is its paper's formula, on data whose best denoisers have a closed form; all in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gaussian import Gaussian
from udit.diffusion.cache import StepCache
from udit.diffusion.combine import APG, CFG, CFGZero, Rule, rescaled
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser, Prediction
from udit.diffusion.edm import EDM
from udit.diffusion.flow import Flow
from udit.diffusion.guidance import Guided
from udit.diffusion.sample import SeededNoise, sample
from udit.diffusion.schedule import Schedule
from udit.errors import UserError

PROCESSES: dict[str, tuple[Schedule, list[float]]] = {
    "ddpm": (DDPM.linear(1000), [999, 500, 20]),
    "flow": (Flow(), [0.99, 0.5, 0.02]),
    "gvp": (Flow("gvp"), [0.99, 0.5, 0.02]),
    "edm": (EDM(), [70.0, 1.0, 0.01]),
}
NULL, CLASSES = 2, 2
EVERY = pytest.mark.parametrize("kind", PROCESSES)
OF_A_FLOW = pytest.mark.parametrize("kind", ["flow", "gvp"])
W = 3.0


@dataclass(frozen=True)
class TwoClasses:
    """Pixels of class 0 from N(0.5, 0.3**2), of class 1 from N(-0.4, 0.5**2), of no class from N(0, 0.8**2)."""

    schedule: Schedule
    variance: float | None = None
    parts: tuple[Gaussian, ...] = (Gaussian(0.5, 0.3), Gaussian(-0.4, 0.5), Gaussian(0.0, 0.8))

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        y = torch.full((len(x),), NULL) if y is None else y
        each = [part.denoiser(self.schedule, self.schedule.target, self.variance).backbone(x, t) for part in self.parts]
        return torch.stack(each, 1)[torch.arange(len(x)), y]

    def denoiser(self) -> Denoiser:
        schedule = self.schedule
        return Denoiser(
            *(self, schedule, schedule.target, self.variance is not None, schedule.time),
            null_label=NULL,
            num_classes=CLASSES,
        )


def inputs(schedule: Schedule, time: float, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and y."""
    x = torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kind = torch.long if schedule.time == "index" else torch.float64
    t = torch.full((batch,), time, dtype=kind)
    _, sigma = schedule.alpha_sigma(t, x)
    return x * sigma.clamp_min(1) + 0.2, t, torch.tensor([0, 1, 0])[:batch]


def both(denoiser: Denoiser, x: Tensor, t: Tensor, y: Tensor) -> tuple[Prediction, Prediction]:
    return denoiser(x, t, y), denoiser(x, t, None)


def rows(x: Tensor) -> Tensor:
    return x.flatten(1)


def apg(cond: Tensor, uncond: Tensor, w: float, eta: float, r: float, beta: float, before: Tensor | float) -> tuple:
    """Sadat et al. 2024, Alg. 1, image by image: the guided x0, and the running difference."""
    running = cond - uncond + beta * before
    guided = []
    for difference, d in zip(rows(running), rows(cond), strict=True):
        clipped = difference * min(1.0, r / float(difference.norm()))
        unit = d / d.norm()
        parallel = clipped.dot(unit) * unit
        guided.append(d + (w - 1) * (clipped - parallel + eta * parallel))
    return torch.stack(guided).view_as(cond), running


def check_consistent(schedule: Schedule, found: Prediction, x: Tensor, t: Tensor) -> None:
    alpha, sigma = schedule.alpha_sigma(t, x)
    torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x, rtol=1e-7, atol=1e-9)


# ---- adaptive projected guidance -------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("eta", [0.0, 0.4])
@pytest.mark.parametrize("r", [0.5, 1e9])
def test_apg_is_its_algorithm_in_x0_over_a_run(kind: str, eta: float, r: float) -> None:
    schedule, times = PROCESSES[kind]
    denoiser = TwoClasses(schedule).denoiser()
    guided = Guided(denoiser, W, rule=APG(eta, r, -0.75)).begun()
    before: Tensor | float = 0.0
    for time in times:
        x, t, y = inputs(schedule, time)
        cond, uncond = both(denoiser, x, t, y)
        wanted, before = apg(cond.x0, uncond.x0, W, eta, r, -0.75, before)
        found = guided(x, t, y)
        torch.testing.assert_close(found.x0, wanted, rtol=1e-7, atol=1e-9)
        check_consistent(schedule, found, x, t)


@EVERY
def test_apg_without_its_parts_is_plain_guidance(kind: str) -> None:
    schedule, times = PROCESSES[kind]
    denoiser = TwoClasses(schedule).denoiser()
    x, t, y = inputs(schedule, times[1])
    found = Guided(denoiser, W, rule=APG(eta=1.0, momentum=0.0)).begun()(x, t, y)
    torch.testing.assert_close(found.x0, Guided(denoiser, W)(x, t, y).x0, rtol=1e-9, atol=1e-9)


@EVERY
def test_apg_leaves_even_images_unguided(kind: str) -> None:
    """All differences of an image of one value are parallel to it: closed form."""
    schedule, times = PROCESSES[kind]
    denoiser = TwoClasses(schedule).denoiser()
    x, t, y = inputs(schedule, times[1])
    x = torch.full_like(x, 0.7)
    torch.testing.assert_close(Guided(denoiser, W, rule=APG())(x, t, y).x0, denoiser(x, t, y).x0, rtol=1e-9, atol=1e-9)


# ---- CFG-Zero* -------------------------------------------------------------------------------------------------------


@OF_A_FLOW
@pytest.mark.parametrize("target", ["velocity", "x0", "eps"])
def test_cfg_zero_scales_the_null_velocity(kind: str, target: str) -> None:
    """Whatever the network itself predicts."""
    schedule, times = PROCESSES[kind]
    denoiser = TwoClasses(schedule).denoiser()
    x, t, y = inputs(schedule, times[1])

    def velocity(prediction: Prediction) -> Tensor:
        if kind == "flow":
            return prediction.eps - prediction.x0
        angle = torch.pi / 2 * t.view(-1, 1, 1, 1)
        return torch.pi / 2 * (angle.cos() * prediction.eps - angle.sin() * prediction.x0)

    cond, uncond = (rows(velocity(each)) for each in both(denoiser, x, t, y))
    wanted = []
    for c, u in zip(cond, uncond, strict=True):
        s = c.dot(u) / u.dot(u)
        wanted.append((1 - W) * s * u + W * c)
    if target != "velocity":
        parts = denoiser

        def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            out: Tensor = getattr(parts(x, t, y), target)
            return out

        denoiser = Denoiser(backbone, schedule, target, time="unit", null_label=NULL, num_classes=CLASSES)  # type: ignore[arg-type]
    found = Guided(denoiser, W, rule=CFGZero())(x, t, y)
    torch.testing.assert_close(rows(velocity(found)), torch.stack(wanted), rtol=1e-8, atol=1e-9)


@OF_A_FLOW
def test_cfg_zero_needs_no_guidance_where_velocities_are_parallel(kind: str) -> None:
    """Those of an image of one value are: closed form."""
    schedule, times = PROCESSES[kind]
    denoiser = TwoClasses(schedule).denoiser()
    x, t, y = inputs(schedule, times[1])
    x = torch.full_like(x, 0.7)
    found = Guided(denoiser, W, rule=CFGZero())(x, t, y)
    torch.testing.assert_close(found.x0, denoiser(x, t, y).x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ["linear", "gvp"])
@pytest.mark.parametrize("sampler", ["flow-euler", "flow-heun"])
def test_zero_init_rests_at_the_first_evaluations(path: str, sampler: str) -> None:
    """The samples are those of a run whose first two velocities are 0, and the network is not asked for them."""
    asked: list[float] = []
    schedule = Flow(path)  # type: ignore[arg-type]
    inner = TwoClasses(schedule)

    def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        asked.append(float(t[0]))
        return inner(x, t, y)

    denoiser = Denoiser(backbone, schedule, schedule.target, time="unit", null_label=NULL, num_classes=CLASSES)
    guided = Guided(denoiser, W, rule=CFGZero(), zero_init=2)
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    steps = list(sample(guided, x, sampler=sampler, steps=5, y=torch.tensor([0, 1])))
    assert len(asked) == 3
    torch.testing.assert_close(steps[0].x, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(steps[1].x, x, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(steps[2].x, x, atol=1e-2)
    assert len(list(sample(guided, x, sampler=sampler, steps=5, y=torch.tensor([0, 1])))) == 5
    assert len(asked) == 6, "every run starts over"


# ---- rescale, levels, autoguidance -----------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("phi", [0.7, 1.0])
def test_rescale_brings_the_deviation_to_the_conditional_one(kind: str, phi: float) -> None:
    """Of the network's own prediction (Lin et al. 2023, Eqs. 15 and 16)."""
    schedule, times = PROCESSES[kind]
    denoiser = TwoClasses(schedule).denoiser()
    x, t, y = inputs(schedule, times[1])
    c, u = (denoiser.raw(x, t, labels)[0] for labels in (y, None))
    guided = u + W * (c - u)
    ratio = (rows(c).std(dim=1) / rows(guided).std(dim=1)).view(-1, 1, 1, 1)
    wanted = phi * guided * ratio + (1 - phi) * guided
    found = Guided(denoiser, W, rescale=phi)(x, t, y)
    torch.testing.assert_close(found.x0, denoiser.decode(wanted, None, x, t).x0, rtol=1e-8, atol=1e-9)
    if phi == 1:
        got = rescaled(guided, c, 1.0)
        torch.testing.assert_close(rows(got).std(dim=1), rows(c).std(dim=1), rtol=1e-12, atol=0)


@EVERY
def test_levels_are_ratios_of_noise_to_signal(kind: str) -> None:
    schedule, times = PROCESSES[kind]
    denoiser = TwoClasses(schedule).denoiser()
    ratios = []
    for time in times:
        x, t, _ = inputs(schedule, time)
        alpha, sigma = schedule.alpha_sigma(t, x)
        ratios.append(float(sigma[0] / alpha[0]))
    low, high = ratios[1] * 0.9, ratios[1] * 1.1
    guided = Guided(denoiser, W, levels=(low, high))
    for time, acts in zip(times, (False, True, False), strict=True):
        x, t, y = inputs(schedule, time)
        wanted = (Guided(denoiser, W) if acts else denoiser)(x, t, y).x0
        assert torch.equal(guided(x, t, y).x0, wanted), (time, ratios)


@EVERY
def test_autoguidance_leaves_the_weaker_model_towards_the_model(kind: str) -> None:
    """x0_weak + w (x0 - x0_weak), for the same labels (Karras et al. 2024, Eq. 3), and no null label is needed."""
    schedule, times = PROCESSES[kind]
    labels: list[Tensor | None] = []
    weaker = TwoClasses(schedule, parts=(Gaussian(0.4, 0.6), Gaussian(-0.2, 0.7), Gaussian(9.0, 9.0)))

    def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        labels.append(y)
        return weaker(x, t, y)

    weak = Denoiser(backbone, schedule, schedule.target, time=schedule.time)
    denoiser = Denoiser(TwoClasses(schedule), schedule, schedule.target, time=schedule.time)
    for time in times:
        x, t, y = inputs(schedule, time)
        found = Guided(denoiser, W, weak=weak)(x, t, y)
        strong, worse = denoiser(x, t, y).x0, weak(x, t, y).x0
        torch.testing.assert_close(found.x0, worse + W * (strong - worse), rtol=1e-7, atol=1e-9)
        assert all(torch.equal(label, y) for label in labels if label is not None)
        check_consistent(schedule, found, x, t)


@pytest.mark.parametrize("kind", ["ddpm", "flow"])
def test_autoguided_samples_are_in_closed_form(kind: str) -> None:
    """Of Gaussians the guided x0 is linear in x_t, and so is every step of DDIM and of Euler's method; no labels."""
    schedule = PROCESSES[kind][0]
    strong, weak = Gaussian(0.3, 0.4), Gaussian(0.3, 0.7)
    guided = Guided(strong.denoiser(schedule, schedule.target), W, weak=weak.denoiser(schedule, schedule.target))
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    sampler = "ddim" if kind == "ddpm" else "flow-euler"
    *_, last = sample(guided, x, sampler=sampler, steps=4, y=None)
    times = [999, 666, 333, 0] if kind == "ddpm" else [1.0, 0.75, 0.5, 0.25]
    scales = [schedule.alpha_sigma(torch.tensor([time]), x.double()) for time in times]
    path = [(float(a), float(s)) for a, s in scales] + [(1.0, 0.0)]
    wanted = x.double()
    for (a, s), (a_next, s_next) in pairwise(path):
        ends = [g.mean + a * g.std**2 * (wanted - a * g.mean) / (a**2 * g.std**2 + s**2) for g in (weak, strong)]
        x0 = ends[0] + W * (ends[1] - ends[0])
        wanted = a_next * x0 + s_next * (wanted - a * x0) / s
    torch.testing.assert_close(last.x.double(), wanted, rtol=1e-3, atol=1e-3)


# ---- what all kinds share --------------------------------------------------------------------------------------------

KINDS: dict[str, dict] = {
    "cfg": {},
    "rescale": {"rescale": 0.7},
    "apg": {"rule": APG(0.1, 1.0, -0.5)},
    "apg, rescale": {"rule": APG(), "rescale": 0.5},
    "cfg-zero": {"rule": CFGZero(), "zero_init": 1},
    "weak": {},
}
SAMPLERS = {"ddpm": ("ddim", "ddpm", "dpmpp"), "flow": ("flow-euler", "flow-heun"), "edm": ("edm-heun",)}
RUNS = [
    (kind, process, sampler)
    for kind in KINDS
    for process, names in SAMPLERS.items()
    for sampler in names
    if kind != "cfg-zero" or process == "flow"
]


def of_kind(kind: str, process: str, w: float = W) -> Guided:
    schedule = PROCESSES[process][0]
    worse = TwoClasses(schedule, parts=(Gaussian(0.4, 0.6), Gaussian(-0.2, 0.7), Gaussian(0.0, 0.8)))
    weak = worse.denoiser() if kind == "weak" else None
    return Guided(TwoClasses(schedule).denoiser(), w, weak=weak, **KINDS[kind])


def drawn(guided: Guided, sampler: str, seeds: list[int], cache: StepCache | None = None) -> Tensor:
    noise = SeededNoise(seeds, (2, 4, 4))
    y = torch.tensor([seed % 2 for seed in seeds])
    *_, last = sample(guided, noise(0), sampler=sampler, steps=5, y=y, noise=noise, cache=cache)
    return last.x


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "process", "sampler"), RUNS)
def test_image_is_the_same_in_any_batch_and_in_every_run(kind: str, process: str, sampler: str) -> None:
    """Nothing passes from one image to another, nor from one run to the next."""
    guided, seeds = of_kind(kind, process), [3, 5, 8, 12]
    together = drawn(guided, sampler, seeds)
    assert torch.equal(drawn(guided, sampler, seeds), together)
    for i, seed in enumerate(seeds):
        torch.testing.assert_close(drawn(guided, sampler, [seed])[0], together[i], rtol=1e-5, atol=1e-5)
    assert torch.equal(drawn(guided, sampler, seeds), together)


@pytest.mark.parametrize(("kind", "process"), dict.fromkeys((kind, process) for kind, process, _ in RUNS))
def test_one_is_the_conditional_prediction(kind: str, process: str) -> None:
    """Of images to which guidance does not apply in a batch with others: w is 1 for them."""
    schedule, times = PROCESSES[process]
    guided = of_kind(kind, process)
    x, t, y = inputs(schedule, times[1], 2)
    t[1] = 20 if process == "ddpm" else 0.01
    limited = Guided(
        *(guided.denoiser, W, (float(schedule.fraction(t)[0]) - 1e-3, 1.0)),
        rule=guided.rule,
        rescale=guided.rescale,
        weak=guided.weak,
    )
    found = limited(x, t, y).x0
    torch.testing.assert_close(found[1], guided.denoiser(x, t, y).x0[1], rtol=1e-7, atol=1e-9)
    assert not torch.allclose(found[0], guided.denoiser(x, t, y).x0[0], atol=1e-3)


@pytest.mark.parametrize("rule", [CFG(), APG(0.2, 1.0, -0.5)], ids=["cfg", "apg"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_variance_is_conditional_and_only_the_first_channels_are_guided(rule: Rule, rescale: float) -> None:
    schedule = DDPM.linear(1000)
    denoiser = TwoClasses(schedule, variance=0.25).denoiser()
    x, t, y = inputs(schedule, 500)
    found = Guided(denoiser, W, channels=1, rule=rule, rescale=rescale)(x, t, y)
    assert found.variance is not None
    assert torch.equal(found.variance, torch.full_like(x, 0.25))
    assert torch.equal(found.x0[:, 1:], denoiser(x, t, y).x0[:, 1:])
    alone = Guided(TwoClasses(schedule).denoiser(), W, rule=rule, rescale=rescale)(x[:, :1], t, y)
    torch.testing.assert_close(found.x0[:, :1], alone.x0, rtol=1e-9, atol=1e-9)


def test_weaker_model_is_respaced_with_the_model() -> None:
    guided = of_kind("weak", "ddpm").respaced(10)
    assert guided.weak is not None
    assert guided.weak.schedule.timesteps.tolist() == guided.schedule.timesteps.tolist()  # type: ignore[attr-defined]


# ---- what makes no sense ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ddpm", "edm"])
def test_cfg_zero_is_of_flows(kind: str, one_line: Callable) -> None:
    with pytest.raises(
        UserError, match=r"CFG-Zero\* corrects the velocity of a flow and the model was trained"
    ) as told:
        Guided(TwoClasses(PROCESSES[kind][0]).denoiser(), W, rule=CFGZero())
    one_line(told.value)


def test_weaker_models_that_do_not_fit_are_refused(one_line: Callable) -> None:
    flow, ddpm = (TwoClasses(PROCESSES[kind][0]).denoiser() for kind in ("flow", "ddpm"))
    with pytest.raises(UserError, match=r"trained with DDPM to predict eps, and the model with flow matching") as told:
        Guided(flow, W, weak=ddpm)
    one_line(told.value)
    with pytest.raises(UserError, match=r"CFG-Zero\* corrects the null prediction") as told:
        Guided(flow, W, weak=flow, rule=CFGZero())
    one_line(told.value)
    text = Denoiser(TwoClasses(Flow()), Flow(), "flow", time="unit")
    with pytest.raises(UserError, match="leave null out") as told:
        Guided(text, W, weak=text, null=torch.zeros(3, 6))
    one_line(told.value)
