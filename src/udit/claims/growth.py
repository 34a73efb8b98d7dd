"""How time and memory of a forward grow with the number of tokens: DiT, U-DiT, DiMSUM, and DiMSUM's scans alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import PositiveFloat, PositiveInt

from udit.claims.claim import Interval, Judged, Measurement, markdown, slope
from udit.spec.base import Spec

if TYPE_CHECKING:
    from udit.models.config import ModelConfig

COMMAND = "udit claims mamba-is-linear"
SIDES = (16, 32, 64, 128)
"""Of the input, each pixel of which is a token: 256 to 16,384 of them."""
ROUNDS = 4
LINEAR = 1.1
"""The largest exponent that is called linear."""
WHOLE, SCANS = "DiMSUM", "DiMSUM's scans alone"


class Cost(Spec):
    """One subject at one number of tokens."""

    tokens: PositiveInt
    seconds: tuple[PositiveFloat, ...]
    """Processor time of a forward at batch 1, of each round."""
    memory: PositiveInt
    """Most bytes that were allocated at one time, beyond the weights."""


class Growth(Spec):
    """One subject."""

    subject: str
    costs: tuple[Cost, ...]
    """From few tokens to many."""

    def time(self, *, last: bool) -> Interval:
        """The exponent of time over all sizes, or of the ``last`` two; with the interval over rounds."""
        chosen = self.costs[-2:] if last else self.costs
        rounds = zip(*(one.seconds for one in chosen), strict=True)
        return Interval.of(
            [slope([(one.tokens, taken) for one, taken in zip(chosen, each, strict=True)]) for each in rounds]
        )

    def memory(self, *, last: bool) -> float:
        """The exponent of memory; it is the same in every round."""
        chosen = self.costs[-2:] if last else self.costs
        return slope([(one.tokens, one.memory) for one in chosen])


class Growths(Measurement):
    """All subjects, timed in interleaved rounds."""

    growths: tuple[Growth, ...]

    def of(self, subject: str) -> Growth:
        """One of them."""
        return next(one for one in self.growths if one.subject == subject)


RECORD = Growths


def configs() -> dict[str, ModelConfig]:
    """The networks, small and with one token for each pixel."""
    from udit.models.catalog import families

    flat = {"width": 64, "depth": 2, "heads": 4, "patch": 1}
    sizes = {
        "DiT": flat,
        "U-DiT": {"width": 32, "heads": 4, "depths": (1, 1, 1)},
        WHOLE: flat | {"attention_every": 2, "fusion_heads": 4},
    }
    known = families()
    return {name: known[name.partition(",")[0]].model_validate(values) for name, values in sizes.items()}


def measure(tell: Callable[[str], object] = lambda line: None) -> Growths:
    """Times forwards, and profiles what they allocate."""
    from udit.benchmarking.meters import CPU
    from udit.claims.facts import facts, processor_seconds

    calls = {(name, side): _forward(config, side) for name, config in configs().items() for side in SIDES}
    calls |= {(SCANS, side): _scan(side) for side in SIDES}
    for call in calls.values():
        call()  # compiles kernels and fills caches
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    for number in range(ROUNDS):
        for key, call in calls.items():
            seconds[key].append(processor_seconds(call))
        tell(f"round {number + 1} of {ROUNDS}")
    found = []
    for name in dict.fromkeys(name for name, _ in calls):
        costs = tuple(
            Cost(tokens=side**2, seconds=tuple(seconds[name, side]), memory=CPU.dissect(calls[name, side]).extra)
            for side in SIDES
        )
        found.append(Growth(subject=name, costs=costs))
        tell(f"{name}: time {found[-1].time(last=True).text()}, memory {found[-1].memory(last=True):.2f}")
    scale = (
        f"64 channels (U-DiT 32), 2 blocks, one token for each of {SIDES[0]}x{SIDES[0]} to {SIDES[-1]}x{SIDES[-1]} "
        f"pixels, {ROUNDS} interleaved rounds"
    )
    return Growths(scale=scale, growths=tuple(found), **facts(COMMAND))


def _forward(config: ModelConfig, side: int) -> Callable[[], object]:
    import torch

    from udit.benchmarking.subjects import inputs
    from udit.models.build import build, fuse

    sized = config.replace(input_size=side)
    network, arguments = fuse(build(sized)), inputs(sized, 1, (side, side))

    def call() -> None:
        with torch.no_grad():
            network(*arguments)

    return call


def _scan(side: int) -> Callable[[], object]:
    """One of DiMSUM's scans with its matrices, convolution and gate, on half of the channels."""
    import torch

    from udit import rng
    from udit.nn.mamba import Mamba

    config: Any = configs()[WHOLE]
    scan = Mamba(config.half, config.width, config.states, config.kernel, config.step_rank)
    for parameter in scan.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=rng.generator(0, "claims"))
    x = torch.randn(1, side**2, config.half, generator=rng.generator(1, "claims"))

    def call() -> None:
        with torch.no_grad():
            scan(x)

    return call


def judge(name: str, record: Growths) -> Judged:
    """Whether time and memory grow with an exponent of at most ``LINEAR`` between the two largest sizes."""
    one = record.of(SCANS if name == "scans-are-linear" else WHOLE)
    time, memory = one.time(last=True), one.memory(last=True)
    pair = f"from {one.costs[-2].tokens:,} to {one.costs[-1].tokens:,} tokens"
    told = f"{pair} time grows with the exponent {time.text()}, memory with {memory:.2f}"
    if name != "scans-are-linear":
        told += "".join(
            f"; {other}: {record.of(other).time(last=True).value:.2f} and {record.of(other).memory(last=True):.2f}"
            for other in ("DiT", "U-DiT")
        )
    if memory > LINEAR or time.low > LINEAR:
        return Judged("does not hold", told)
    return Judged("holds" if time.high <= LINEAR else "cannot be tested at this scale", told)


def details(record: Growths) -> list[str]:
    """Milliseconds, megabytes and exponents."""
    header = ["", *(f"{one.tokens:,} tokens" for one in record.growths[0].costs), "exponent, all", "exponent, last two"]
    rows = []
    for one in record.growths:
        times = [f"{1e3 * min(cost.seconds):.1f} ms" for cost in one.costs]
        rows.append(
            [f"{one.subject}, time", *times, one.time(last=False).text(), one.time(last=True).text()],
        )
        sizes = [f"{cost.memory / 1e6:.1f} MB" for cost in one.costs]
        rows.append(
            [f"{one.subject}, memory", *sizes, *(f"{one.memory(last=last):.2f}" for last in (False, True))],
        )
    return markdown(header, rows)
