"""A sweep leaves what a model has, but for what is surely better over the same seeds, and keeps its budget."""

from __future__ import annotations

import numpy as np

from udit.diffusion.config import SamplingConfig
from udit.evaluation.frechet import Array, Statistics, distance
from udit.tuning.quality import Scored
from udit.tuning.sweep import INTERVAL, Sweep, averages_of, difference, guidances

OWN = SamplingConfig(sampler="dpmpp", steps=10, guidance=2.0)


class Drawn:
    """A model whose images lie ``apart`` from the real ones, and more with another guidance, from the same noise."""

    reference = Statistics(np.zeros(3), np.eye(3))
    count = 200

    def __init__(self, apart: float = 0.0) -> None:
        self.apart = apart
        self.features: dict[SamplingConfig, Array] = {}
        self.asked: list[SamplingConfig] = []

    def measure(self, sampling: SamplingConfig) -> Scored:
        self.asked.append(sampling)
        noise = np.random.default_rng(0).standard_normal((self.count, 3))
        own = np.random.default_rng(int(100 * sampling.guidance + 10 * sampling.guidance_interval[0])).standard_normal(
            (self.count, 3)
        )
        found = noise + 0.02 * own + self.apart + abs(sampling.guidance - 2.5)
        self.features[sampling] = found
        far = distance(Statistics.of(found), self.reference)
        ends = {"distance_interval": (0, far), "agreement_interval": (0, 1)}
        return Scored(sampling=sampling, distance=far, agreement=0.9, seconds=1.0, **ends)


def test_guidance_is_changed_only_for_what_is_surely_better() -> None:
    model, said = Drawn(), list[Scored]()
    sweep = Sweep(None, said.append)
    sweep.measure(model, OWN)
    chosen, seen = sweep.better(model, OWN, guidances(OWN))
    assert chosen.guidance == 2.5
    assert len(said) == 1 + len(seen)
    assert {how.guidance for how in model.asked} == {1.0, 1.5, 1.75, 2.0, 2.5, 3.0}
    alike = Drawn()
    sweep.measure(alike, chosen)
    kept, _ = sweep.better(alike, chosen, [chosen.replace(guidance_interval=INTERVAL)])
    assert kept == chosen  # as good but for chance
    apart = difference(model, OWN, model, chosen)
    assert apart is not None
    assert apart.interval[0] > 0
    assert difference(model, OWN, model, OWN.replace(steps=99)) is None


def test_models_without_guidance_are_left_without() -> None:
    assert not list(guidances(OWN.replace(guidance=1.0)))
    assert not list(guidances(OWN.replace(guidance_levels=(1.0, 2.0))))


def test_another_average_is_taken_where_it_is_surely_better() -> None:
    own, better, best, worse = Drawn(0.5), Drawn(0.3), Drawn(0.1), Drawn(0.9)
    sweep = Sweep(None, lambda _: None)
    sweep.measure(own, OWN)
    others = [(0.05, lambda: better), (0.1, lambda: best), (0.2, lambda: worse)]
    chosen, length, found = averages_of(sweep, own, OWN, others)
    assert chosen is best
    assert length == 0.1
    assert [each.sigma_rel for each in found] == [0.05, 0.1, 0.2]
    assert found[2].difference is not None
    assert found[2].difference[0] > 0
    same, none, _ = averages_of(sweep, own, OWN, [(0.1, lambda: worse)])
    assert same is own
    assert none is None


def test_what_the_budget_does_not_allow_is_left_out() -> None:
    model = Drawn()
    sweep = Sweep(200 * 10 * 2 + 200 * 10, lambda _: None)
    assert sweep.measure(model, OWN) is not None  # guided: two evaluations a step
    _, seen = sweep.better(model, OWN, guidances(OWN))
    assert [each.sampling.guidance for each in seen] == [1.0]
    assert (sweep.spent, sweep.left_out) == (6000, 9)
    assert sweep.measure(model, OWN, always=True) is not None
