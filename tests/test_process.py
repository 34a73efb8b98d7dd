"""A noising process is one place, and so is a sampler: throw-away ones are added, trained, sampled and refused.

The process takes a config with its row (``diffusion/config.py``), a module and the row of its sampler
(``diffusion/samplers.py``); nothing else in the library names it.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

import udit
from conftest import ErrorOf, succeeds
from runs import image_folder, metrics, train
from test_layering import FILES, module, tree
from udit.diffusion.config import PROCESSES, DDPMConfig, Level, ProcessConfig, SamplingConfig, check_sampler
from udit.diffusion.consistency import Consistency
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.edm import EDM, Preconditioned
from udit.diffusion.flow import Flow, flow_loss
from udit.diffusion.guidance import AnyDenoiser, Guided
from udit.diffusion.meanflow import MeanFlow
from udit.diffusion.objective import Losses
from udit.diffusion.sample import Noise, Sampler, SeededNoise, Step, make_sampler, sample
from udit.diffusion.samplers import SAMPLERS, SamplerSpec, listed
from udit.diffusion.schedule import Schedule, TimeUnit
from udit.diffusion.targets import Target
from udit.errors import UserError
from udit.run.resolve import resolve
from udit.tuning.quality import default

# ---- a throw-away process and its sampler ----------------------------------------------------------------------------


class CosineConfig(ProcessConfig):
    """Continuous variance-preserving diffusion on a cosine schedule, v prediction (Salimans & Ho 2022)."""

    title: ClassVar[str] = "cosine diffusion"
    quality: ClassVar[dict[Level, tuple[str, int]]] = {
        "draft": ("cosine-ddim", 2),
        "good": ("cosine-ddim", 4),
        "best": ("cosine-ddim", 8),
    }
    few_step_samplers: ClassVar[tuple[str, ...]] = ("cosine-ddim",)

    kind: Literal["cosine"] = "cosine"
    shift: float = 0.0

    def build(self) -> Cosine:
        """The process."""
        return Cosine(self.shift)


@dataclass(frozen=True)
class Cosine(Schedule):
    """x_t = cos(pi t / 2) x0 + sin(pi t / 2) eps, ln(sigma / alpha) shifted."""

    process: ClassVar = CosineConfig
    time: ClassVar[TimeUnit] = "unit"

    shift: float = 0.0

    @property
    def target(self) -> Target:
        """v."""
        return "v"

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scales at t [B]."""
        angle = torch.atan(torch.tan(t.float() * (math.pi / 2)) * math.exp(self.shift))
        angle = angle.view(-1, *[1] * (like.ndim - 1))
        return angle.cos(), angle.sin()

    def draw(self, generator: torch.Generator) -> Tensor:
        """Uniform."""
        return torch.rand((), generator=generator)

    def fraction(self, t: Tensor) -> Tensor:
        """t."""
        return t.double()

    def network_time(self, t: Tensor, unit: TimeUnit) -> Tensor:
        """As on a flow path."""
        return Flow("gvp").network_time(t, unit)

    def loss(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
        """Mean squared error of v."""
        return flow_loss(denoiser, x0, t, noise, y)


class CosineDDIMSpec(SamplerSpec):
    """``CosineDDIM``."""

    def build(self, eta: float, clip: bool) -> Sampler:
        """The sampler."""
        return CosineDDIM()


class CosineDDIM:
    """DDIM at evenly spaced times of a continuous process."""

    def times(self, denoiser: AnyDenoiser, steps: int | str) -> Tensor:
        """As ``Sampler.times``."""
        return denoiser.network_time(self._ladder(denoiser, steps)[:-1])

    def __call__(
        self, denoiser: AnyDenoiser, x: Tensor, steps: int | str, y: Tensor | None, noise: Noise
    ) -> Iterator[Step]:
        """Yields after every step."""
        for k, (t, lower) in enumerate(pairwise(self._ladder(denoiser, steps)), start=1):
            found = denoiser(x, t.expand(len(x)), y)
            alpha, sigma = denoiser.schedule.alpha_sigma(lower.expand(len(x)), x)
            x = alpha * found.x0 + sigma * found.eps
            yield Step(k, int(steps), x, found.x0)

    def _ladder(self, denoiser: AnyDenoiser, steps: int | str) -> Tensor:
        check_sampler("cosine-ddim", denoiser.schedule.process, steps)
        return torch.linspace(0.99, 0, int(steps) + 1)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two rows."""
    monkeypatch.setitem(PROCESSES, "cosine", CosineConfig)
    monkeypatch.setitem(SAMPLERS, "cosine-ddim", CosineDDIMSpec("cosine-ddim", "DDIM", ("cosine",)))


@pytest.mark.usefixtures("added")
def test_added_process_trains_resumes_samples_and_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, words = tmp_path / "run", image_folder(tmp_path / "pictures")
    words += ["diffusion={kind: cosine, shift: 0.5}", "sampling={steps: 3, guidance: 2}", "model={name: U-DiT-tiny}"]
    train(out, *words, "training.steps=3")
    train(out, *words, "training.steps=4")
    lines = metrics(out)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert all(math.isfinite(float(line[key])) for line in lines for key in ("loss", "val_loss") if key in line)
    system = udit.load(out / "model")
    assert system.config.diffusion == CosineConfig(shift=0.5)
    assert (system.config.sampling.sampler, system.config.model.learn_sigma) == ("cosine-ddim", False)
    assert isinstance(system.denoiser.schedule, Cosine)
    alone, together = (torch.cat(list(system.generate(seeds, [1] * len(seeds)))) for seeds in ([5], [4, 5]))
    assert (alone[0].int() - together[1].int()).abs().max() <= 1
    succeeds(capsys, "sample", str(out), "--quality", "good", "--n", "1", "--out", str(tmp_path / "out"))
    how = default("best", system.config.sampling, system.config.diffusion)
    assert (how.sampler, how.steps, how.guidance) == ("cosine-ddim", 8, 2)


SAID = [
    (["diffusion.kind=cosien"], "diffusion.kind is 'cosien'; did you mean 'cosine'?"),
    (["diffusion={kind: cosine, shfit: 1}"], "unknown key 'diffusion.shfit'; did you mean 'shift'?"),
    (["diffusion={kind: cosine, shift: a}"], "shift is 'a'; it takes a number"),
    (["diffusion={kind: cosine}", "sampling.sampler=ddim"], "'ddim'; a cosine model takes cosine-ddim"),
    (["diffusion={kind: cosine}", "sampling.sampler=cosine-ddmi"], "did you mean 'cosine-ddim'?"),
    (["diffusion={kind: cosine}", "sampling.eta=0.5"], "eta works with the ddim sampler, not with cosine-ddim"),
    (["diffusion={kind: cosine}", "model.learn_sigma=true"], "cosine diffusion learns no variance"),
    (["diffusion={kind: cosine}", "model={name: SiT-tiny}"], "the model predicts a reversed flow"),
    (["diffusion={kind: flow}", "sampling.sampler=cosine-ddim"], "a flow model takes flow-euler, flow-heun, dpmpp"),
]


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize(("words", "said"), SAID, ids=[said for _, said in SAID])
def test_misuse_of_an_added_process_is_a_one_line_error(words: list[str], said: str, error_of: ErrorOf) -> None:
    words = words if "sampling" in str(words) else [*words, "sampling={}"]  # for the recipe names a sampler
    assert said in error_of("train", "digits", *words, "--dry-run")


@pytest.mark.usefixtures("added")
def test_samplers_of_other_processes_are_refused_by_name(one_line: Callable[[BaseException], str]) -> None:
    def denoiser(schedule: Schedule) -> Denoiser:
        return Denoiser(lambda x, t, y=None: x, schedule, time=schedule.time)

    for schedule, sampler, said in (
        (Cosine(), "ddim", "trained with cosine diffusion; use cosine-ddim"),
        (Cosine(), "dpmpp", "trained with cosine diffusion; use cosine-ddim"),
        (Cosine(), "edm-heun", "trained with cosine diffusion; use cosine-ddim"),
        (Flow(), "cosine-ddim", "trained with flow matching; use flow-euler"),
    ):
        with pytest.raises(UserError) as caught:
            list(sample(denoiser(schedule), torch.zeros(1, 1, 2, 2), sampler=sampler, steps=4))
        assert said in one_line(caught.value)
    with pytest.raises(UserError, match="has no discrete steps to respace; use cosine-ddim") as caught:
        denoiser(Cosine()).respaced(4)
    one_line(caught.value)


@pytest.mark.parametrize("name", SAMPLERS)
def test_times_of_a_sampler_are_refused_as_its_steps_are(name: str, one_line: Callable[[BaseException], str]) -> None:
    """Conditions are computed for them before the sampler itself is called."""

    def refused(schedule: Schedule, steps: int | str) -> str:
        denoiser = Denoiser(lambda x, t, y=None: x, schedule, time=schedule.time)
        with pytest.raises(UserError) as caught:
            make_sampler(name).times(denoiser, steps)
        return one_line(caught.value)

    served = {schedule.process.model_fields["kind"].default: schedule for schedule in (DDPM.linear(), Flow(), EDM())}
    for kind, schedule in served.items():
        if kind not in SAMPLERS[name].processes:
            assert f"{name} does not fit a model" in refused(schedule, 4)
        elif not SAMPLERS[name].respaces:
            for steps in (0, -3, "ddim50"):
                assert f"the {name} sampler takes a count of at least 1" in refused(schedule, steps)


def test_without_its_rows_the_process_is_unknown() -> None:
    """So that the tests above test the rows."""
    with pytest.raises(UserError, match=r"diffusion\.kind is 'cosine'"):
        resolve({"data": {"kind": "digits"}, "model": "U-DiT-tiny", "diffusion": {"kind": "cosine"}})
    with pytest.raises(UserError, match="no sampler 'cosine-ddim'"):
        make_sampler("cosine-ddim")


# ---- the tables ------------------------------------------------------------------------------------------------------


def test_rows_and_classes_agree() -> None:
    for kind, config in PROCESSES.items():
        schedule = config().build()
        assert config().kind == kind
        assert schedule.process is config
        assert config.samplers(), f"nothing samples from {kind}"
        assert {name for name, _ in config.quality.values()} | {*config.few_step_samplers} <= {*config.samplers()}
    for name, row in SAMPLERS.items():
        assert make_sampler(name).name == name  # type: ignore[attr-defined]
        assert set(row.processes) <= set(PROCESSES)
    assert DDPMConfig.samplers()[0] == SamplingConfig().sampler


@pytest.mark.slow
def test_no_other_module_asks_which_process_it_is() -> None:
    names = {word for name in ("DDPM", "Flow", "EDM") for word in (name, f"{name}Config")}
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
                asked = names & {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)}
                assert {name.removesuffix("Config").lower() for name in asked} <= {path.stem}, f"{path}:{node.lineno}"


def test_sampler_names_are_listed_in_one_module() -> None:
    found = set()
    for path in FILES:
        for node in ast.walk(tree(path)):
            words: set[str] = set()
            if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
                words = {
                    each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and each.value in SAMPLERS
                }
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = set(re.findall(r"[\w-]+", node.value)) & {*SAMPLERS}
            if len(words) > 3:
                found.add(module(path))
    assert found == {"udit.diffusion.samplers"}


def test_help_names_every_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("sample", "eval"):
        said = " ".join(re.sub(r"[│|]", " ", succeeds(capsys, command, "--help")).split())
        assert listed(SAMPLERS) in said
    assert listed(DDPMConfig.samplers()) in " ".join(succeeds(capsys, "bench", "--help").split())


def test_bench_refuses_samplers_of_other_processes(error_of: ErrorOf) -> None:
    assert "flow-euler does not fit a model that was trained with DDPM; use ddim" in error_of(
        "bench", "U-DiT-tiny", "--sampler", "flow-euler"
    )


def test_tables_of_the_page_are_those_of_the_code() -> None:
    page = (Path(__file__).parent.parent / "docs" / "sampling.md").read_text(encoding="utf-8")
    for name, row in SAMPLERS.items():
        options = " ".join(f"`{option}`" for option in ("eta", "clip") if getattr(row, option)) or "none"
        steps = "a count, or respacing" if row.respaces else "a count"
        assert f"| `{name}` | {row.about} | {', '.join(row.processes)} | {steps} | {options} |" in page
    for kind, config in PROCESSES.items():
        cells = (kind, *(f"{sampler}, {steps} steps" for sampler, steps in config.quality.values()))
        assert f"| {' | '.join(cells)} |" in page


# ---- times of samplers -----------------------------------------------------------------------------------------------

SCHEDULES: dict[str, Schedule] = {
    "ddpm": DDPM.linear(1000),
    "ddpm, scaled": DDPM.scaled_linear(1000),
    "flow": Flow(),
    "gvp": Flow("gvp"),
    "edm": EDM(),
    "mean-flow": MeanFlow(),
    "consistency": Consistency(),
}
ASKED = [
    (label, name, steps)
    for label, schedule in SCHEDULES.items()
    for name in schedule.process.samplers()
    for steps in (1, 2, 7, 12)
]
ASKED += [
    (label, name, text) for label in ("ddpm", "ddpm, scaled") for name in ("ddim", "ddpm") for text in ("ddim25", "3,5")
]


def heard(denoiser: AnyDenoiser, sampler: Sampler, steps: int | str, times: list[Tensor]) -> Tensor:
    """The times that the network got in a run, one per evaluation."""
    x, y = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 4, 0])
    times.clear()
    taken = sample(denoiser, x, sampler=sampler, steps=steps, y=y, noise=lambda k: torch.ones_like(x))
    assert len(list(taken)) == len(times)
    assert all(len(t.unique(dim=0)) == 1 for t in times)
    return torch.stack([t[0] for t in times])


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize(("label", "name", "steps"), ASKED)
def test_times_are_those_that_the_network_gets(label: str, name: str, steps: int | str, guided: bool) -> None:
    schedule, sampler, told = SCHEDULES[label], make_sampler(name), []

    def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        told.append(t)
        return 0.1 * x

    units: tuple[TimeUnit, ...] = ("index", "unit", "sigma")
    for unit in units:
        for reversed_flow in (False, True) if schedule.process.reversible else (False,):
            backbone, time = schedule.precondition(network, unit)
            denoiser: AnyDenoiser = Denoiser(
                backbone, schedule, schedule.target, time=time, null_label=5, num_classes=5, reversed_flow=reversed_flow
            )
            denoiser = Guided(denoiser, 3.0, interval=(0.2, 0.8)) if guided else denoiser
            found = heard(denoiser, sampler, steps, told)
            times = sampler.times(denoiser, steps)
            assert times.dtype == found.dtype
            assert times.tolist() == found.tolist()


ENDS = [
    (label, name)
    for label, name, steps in ASKED
    if steps == 7 and label not in ("mean-flow", "consistency") and name != "flow-sde"
]
"""Not those whose networks predict the end itself, and not SiT's stochastic steps, whose error hides what is left."""


@pytest.mark.parametrize(("label", "name"), ENDS)
def test_no_noise_is_left_at_the_end(label: str, name: str) -> None:
    """Data of one point are reached in few steps; a sampler that stops a step before leaves a seventh of the noise."""
    schedule, noise = SCHEDULES[label], SeededNoise([0, 1], (1, 8, 8))
    denoiser = Denoiser(lambda x, t, y=None: torch.full_like(x, 0.3), schedule, "x0", time=schedule.time)
    *_, step = sample(denoiser, noise(0), sampler=make_sampler(name), steps=7, noise=noise)
    bent = label == "gvp" and name.startswith("flow-")  # a path that Euler's and Heun's steps follow with an error
    torch.testing.assert_close(step.x, torch.full_like(step.x, 0.3), atol=0.02 if bent else 1e-5, rtol=0)


def test_reversed_flow_counts_from_noise_to_data() -> None:
    plain, reverse = (Denoiser(lambda x, t, y=None: x, Flow(), "flow", reversed_flow=way) for way in (False, True))
    sampler = make_sampler("flow-euler")
    assert sampler.times(plain, 4).tolist() == [1000, 750, 500, 250]
    assert sampler.times(reverse, 4).tolist() == [0, 250, 500, 750]


def test_times_are_those_of_the_innermost_network() -> None:
    network = Preconditioned(lambda x, t, y=None: x, time="unit", path="preserving")
    schedule = DDPM.linear(100)
    denoiser = Denoiser(network, schedule, "x0", time="sigma")
    ratios = torch.from_numpy((1 / schedule.alpha_bar - 1) ** 0.5).flip(0)
    torch.testing.assert_close(make_sampler("ddim").times(denoiser, 100), (ratios / (1 + ratios)).float())


# ---- names that changed ----------------------------------------------------------------------------------------------


def test_scheduler_is_still_read_and_the_new_name_given() -> None:
    denoiser = Denoiser(lambda x, t, y=None: 0.1 * x, DDPM.linear(100))
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(DeprecationWarning, match=r"sampler="):
        old = list(udit.sample(denoiser, x, scheduler="dpmpp", steps=4))
    new = list(udit.sample(denoiser, x, sampler="dpmpp", steps=4))
    assert torch.equal(old[-1].x, new[-1].x)
