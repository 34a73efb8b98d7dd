"""Cached inference: how much the deep part changes between steps, and what reusing it costs.

Of networks that have long skips, and of one that has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from udit.claims.claim import Interval, Judged, Measurement, markdown
from udit.spec.base import Spec

if TYPE_CHECKING:
    import numpy as np

    from udit.claims.models import Trained
    from udit.evaluation.frechet import Statistics

COMMAND = "udit claims cached-features-change-less"
STEPS = 24
INTERVALS = (1, 2, 3, 4, 6, 8)
SCORED = 1000
WATCHED, BATCHES = 16, 6
"""Images that are watched together, and how often, with other seeds."""
RESAMPLES = 200


class Change(Spec):
    """How the deep part's output changes up to one step."""

    time: float
    """Of the network, as a share of the noising process: 1 noise."""
    relative: Interval
    """|D_j - D_(j-1)| / |D_j|, over batches of seeds. Of a network without skips D is what the deep part adds."""
    cosine: Interval
    """Cosine similarity of D_j and D_(j-1)."""
    prediction: Interval
    """|p_j(D_(j-1)) - p_j(D_j)| / |D_j|: what reusing it changes in the prediction, first order."""


class Cached(Spec):
    """Scores at one interval."""

    interval: PositiveInt
    """The deep part runs at every N-th step."""
    distance: NonNegativeFloat
    """Squared Fréchet distance of the judge's features to the training images."""
    agreement: NonNegativeFloat
    ratio: Interval
    """The distance over that without a cache, the same seeds; 95 %, by bootstrap over images."""
    seconds: PositiveFloat
    """Processor time per image."""


class Model(Spec):
    """One network."""

    name: str
    skips: bool
    """Whether long skips carry x_t past the part that is cached."""
    macs: PositiveInt
    deep: float
    """The deep part's share of the MACs."""
    changes: tuple[Change, ...]
    cached: tuple[Cached, ...]

    @property
    def change(self) -> float:
        """Relative change from step to step, averaged over steps."""
        return sum(one.relative.value for one in self.changes) / len(self.changes)


class Caching(Measurement):
    """All networks, with one sampler and the same seeds."""

    judge: str
    models: tuple[Model, ...]

    def of(self, name: str) -> Model:
        """One of them."""
        return next(one for one in self.models if one.name == name)


RECORD = Caching


def measure(tell: Callable[[str], object] = lambda line: None) -> Caching:
    """Of U-DiT's demo on the digits, and of a DiT and a Skip-DiT that are trained as it was."""
    from udit.claims.facts import facts
    from udit.claims.models import DIT, SKIP_DIT, U_DIT

    models, judge = [], ""
    for trained in (U_DIT, DIT, SKIP_DIT):
        model, judge = _measured(trained, tell)
        models.append(model)
    scale = (
        f"digits, networks of 3.4 to 3.7 M MACs trained for 800 steps of 32 with the recipe's learning rate, one seed; "
        f"flow-euler, {STEPS} steps, guidance 2; {SCORED} images an interval, {WATCHED * BATCHES} for the changes"
    )
    return Caching(scale=scale, judge=judge, models=tuple(models), **facts(COMMAND))


def _measured(trained: Trained, tell: Callable[[str], object]) -> tuple[Model, str]:
    """Both measurements of one model, and who judges."""
    import time

    import torch

    from udit.analysis import cost
    from udit.diffusion.cache import carries, split
    from udit.diffusion.config import SamplingConfig
    from udit.evaluation import metrics
    from udit.tuning.search import Scorer

    system = trained.system(tell)
    trained.folder.mkdir(parents=True, exist_ok=True)
    scorer = Scorer.of(trained.run(), system, trained.folder / "judge.safetensors", SCORED)
    plain = SamplingConfig(sampler="flow-euler", steps=STEPS, guidance=2.0)
    changes = _changes(scorer, plain)
    features: list[np.ndarray[Any, Any]] = []
    cached = []
    for interval in INTERVALS:
        started = time.process_time()
        sampling = plain.replace(cache=interval)
        seeds = range(SCORED)
        batches = system.generate(seeds, scorer.labels, sampling=sampling, batch_size=250)
        images = torch.cat(list(batches)).numpy()
        taken = (time.process_time() - started) / SCORED
        features.append(scorer.judge.features(images))
        labels = torch.tensor(scorer.labels).numpy()
        cached.append(
            Cached(
                interval=interval,
                distance=_distance(features[-1], scorer.reference),
                agreement=metrics.class_agreement(scorer.judge.classes(features[-1]), labels),
                ratio=_ratio(features[-1], features[0], scorer.reference),
                seconds=taken,
            )
        )
        tell(
            f"{trained.name}, interval {interval}: distance {cached[-1].distance:.3f}, {cached[-1].ratio.text()} times"
        )
    config = system.config.model
    network = split(system.backbone)
    with torch.no_grad():
        x = torch.zeros(1, *config.input_shape())
        _, skips = network.enter(x, network.condition(torch.zeros(1), torch.zeros(1, dtype=torch.long)))
    model = Model(
        name=trained.name,
        skips=carries(skips),
        macs=cost(config).macs,
        deep=_deep_share(network, x),
        changes=changes,
        cached=tuple(cached),
    )
    return model, scorer.judge.described


def _deep_share(network: Any, x: Any) -> float:
    """The share of a forward's MACs that a cached step leaves out."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from udit import ops

    t, y = torch.zeros(1), torch.zeros(1, dtype=torch.long)
    with torch.no_grad(), ops.kernels("off"):
        cond = network.condition(t, y)
        entered, _ = network.enter(x, cond)
        with FlopCounterMode(display=False) as whole:
            network(x, t, y)
        with FlopCounterMode(display=False) as deep:
            network.deep(entered, cond)
    return deep.get_total_flops() / whole.get_total_flops()


def _changes(scorer: Any, plain: Any) -> tuple[Change, ...]:
    """How the deep part changes along runs without a cache, one run for each batch of seeds."""
    import dataclasses

    import numpy as np

    rows: list[list[tuple[float, float, float]]] = []
    times: list[float] = []
    for number in range(BATCHES):
        drift = dataclasses.replace(scorer, first_seed=scorer.first_seed + number * WATCHED).watch(plain)
        inner, slopes = drift.deep, drift.slopes
        squared = np.diag(inner)
        found = []
        for j in range(1, len(squared)):
            moved = max(0.0, squared[j] + squared[j - 1] - 2 * inner[j, j - 1])
            found.append(
                (
                    float(np.sqrt(moved / squared[j])),
                    float(inner[j, j - 1] / np.sqrt(squared[j] * squared[j - 1])),
                    float(np.sqrt(slopes[j] * moved / squared[j])),
                )
            )
        rows.append(found)
        times = [float(t) for t in drift.times]
    scale = times[0]
    return tuple(
        Change(
            time=times[j + 1] / scale,
            relative=Interval.of([row[j][0] for row in rows]),
            cosine=Interval.of([row[j][1] for row in rows]),
            prediction=Interval.of([row[j][2] for row in rows]),
        )
        for j in range(len(rows[0]))
    )


def _distance(features: np.ndarray[Any, Any], reference: Statistics) -> float:
    from udit.evaluation import frechet

    return frechet.distance(frechet.Statistics.of(features), reference)


def _ratio(own: np.ndarray[Any, Any], plain: np.ndarray[Any, Any], reference: Statistics) -> Interval:
    """The ratio of two distances of the same seeds, resampled together: percentiles of the bootstrap."""
    import numpy as np

    value = _distance(own, reference) / _distance(plain, reference)
    generator = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(len(own), size=len(own))
        found.append(_distance(own[chosen], reference) / _distance(plain[chosen], reference))
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(value=value, low=float(low), high=float(high))


def judge(name: str, record: Caching) -> Judged:
    """Whether the networks with long skips change less than DiT, or lose less at an interval."""
    plain = next(one for one in record.models if not one.skips)
    others = [one for one in record.models if one.skips]
    if name == "cached-features-change-less":
        compared = {
            one.name: [_below(own.relative, its.relative) for own, its in zip(one.changes, plain.changes, strict=True)]
            for one in others
        }
        outcomes = [_sign(signs) for signs in compared.values()]
        told = "change of what is cached from step to step, averaged over steps: " + ", ".join(
            f"{one.name} {one.change:.2f}" for one in record.models
        )
        told += f"; less than {plain.name}: " + ", ".join(
            f"{name} at {signs.count(1)} of {len(signs)} steps" for name, signs in compared.items()
        )
    else:
        told = "distance over that without a cache: " + "; ".join(
            f"{one.name} " + ", ".join(f"{at.ratio.value:.2f} at {at.interval}" for at in one.cached[1:])
            for one in record.models
        )
        outcomes = [
            _sign([_below(own.ratio, its.ratio) for own, its in zip(one.cached[1:], plain.cached[1:], strict=True)])
            for one in others
        ]
    if all(outcome > 0 for outcome in outcomes):
        return Judged("holds", told)
    if any(outcome < 0 for outcome in outcomes):
        return Judged("does not hold", told)
    return Judged("cannot be tested at this scale", told)


def _below(own: Interval, its: Interval) -> int:
    """1 if one interval is below another, -1 if above, 0 if they meet."""
    return (own.high < its.low) - (own.low > its.high)


def _sign(outcomes: list[int]) -> int:
    """1 if more than half of the comparisons are won, -1 if lost, 0 otherwise."""
    return next((sign for sign in (1, -1) if 2 * outcomes.count(sign) > len(outcomes)), 0)


def details(record: Caching) -> list[str]:
    """Changes at some steps, and scores at every interval."""
    lines = ["What is cached, from one step to the next: relative change, at some times (1 noise, 0 data).", ""]
    places = range(0, len(record.models[0].changes), 4)
    header = ["network", "deep part, share of MACs", *(f"t = {record.models[0].changes[j].time:.2f}" for j in places)]
    rows = [
        [
            f"{one.name}, {one.macs / 1e6:.2f} M MACs, {'long skips' if one.skips else 'no skips'}",
            f"{one.deep:.0%}",
            *(one.changes[j].relative.text() for j in places),
        ]
        for one in record.models
    ]
    lines += markdown(header, rows)
    lines += ["Distance by the judge of the digits (agreement), and its ratio to that without a cache:", ""]
    header = ["the deep part runs at every", *(one.name for one in record.models)]
    rows = []
    for i, at in enumerate(record.models[0].cached):
        cells = [
            f"{one.cached[i].distance:.3f} ({one.cached[i].agreement:.1%}), {one.cached[i].ratio.text()}"
            for one in record.models
        ]
        rows.append([f"{at.interval}. step" if i else "step", *cells])
    return lines + markdown(header, rows)
