"""Sizes in circulation: parameters and MACs as a survey and the papers print them, beside those counted here."""

from __future__ import annotations

from collections.abc import Callable

from udit.claims.claim import Judged, Measurement, markdown
from udit.spec.base import Spec

COMMAND = "udit claims sizes-of-the-survey"
CLOSE = 0.01
"""How far a printed number may be from the counted one: papers round, and count some operators that we do not."""


class Printed(Spec):
    """Numbers of one row somewhere."""

    parameters: float
    macs: float


SURVEY = {
    "U-DiT-S": Printed(parameters=30e6, macs=4.8e9),
    "U-DiT-B": Printed(parameters=83e6, macs=19.4e9),
    "U-DiT-L": Printed(parameters=220e6, macs=59.8e9),
    "DiT-B/2": Printed(parameters=90e6, macs=16.3e9),
    "DiT-L/2": Printed(parameters=231e6, macs=52.1e9),
}
"""A table that circulates in surveys of U-shaped diffusion transformers."""
PAPERS = {
    "U-DiT-S": Printed(parameters=52.05e6, macs=6.04e9),
    "U-DiT-B": Printed(parameters=204.43e6, macs=22.22e9),
    "U-DiT-L": Printed(parameters=810.19e6, macs=85.00e9),
    "DiT-B/2": Printed(parameters=130e6, macs=23.01e9),
    "DiT-L/2": Printed(parameters=458e6, macs=80.71e9),
}
"""U-DiT's paper (arXiv 2405.02730), and DiT's (arXiv 2212.09748)."""


class Size(Spec):
    """A model of the catalogue, counted."""

    name: str
    parameters: int
    """Of the fused network, with the fixed tables that a release has as parameters."""
    macs: int
    """Of a forward of the fused network at batch 1."""


class Sizes(Measurement):
    """Counts of the models that both tables have."""

    sizes: tuple[Size, ...]


RECORD = Sizes


def measure(tell: Callable[[str], object] = lambda line: None) -> Sizes:
    """Counts them on the meta device."""
    from udit.analysis import cost
    from udit.claims.facts import facts
    from udit.models.catalog import find

    found = []
    for name in PAPERS:
        counted = cost(find(name).config)
        found.append(Size(name=name, parameters=counted.inference_parameters, macs=counted.macs))
        tell(f"{name}: {found[-1].parameters:,} parameters, {found[-1].macs:,} MACs")
    return Sizes(scale="full sizes, counted on the meta device", sizes=tuple(found), **facts(COMMAND))


def off(printed: Printed, size: Size) -> float:
    """By how much the worse of two printed numbers is off, as a share of the counted one."""
    ratios = printed.parameters / size.parameters, printed.macs / size.macs
    return max(abs(ratio - 1) for ratio in ratios)


def judge(name: str, record: Sizes) -> Judged:
    """Whether all printed numbers are within ``CLOSE`` of the counted ones."""
    printed = SURVEY if name == "sizes-of-the-survey" else PAPERS
    distances = {size.name: off(printed[size.name], size) for size in record.sizes}
    right = [one for one, distance in distances.items() if distance <= CLOSE]
    worst = max(distances, key=lambda one: distances[one])
    told = (
        f"{len(right)} of {len(distances)} rows are within {CLOSE:.0%}; the farthest, {worst}, is off by "
        f"{distances[worst]:.1%}"
    )
    return Judged("holds" if len(right) == len(distances) else "does not hold", told)


def details(record: Sizes) -> list[str]:
    """The three tables side by side."""
    rows = [
        [
            size.name,
            *(
                f"{table[size.name].parameters / 1e6:g}M / {table[size.name].macs / 1e9:g}G"
                for table in (SURVEY, PAPERS)
            ),
            f"{size.parameters / 1e6:.2f}M / {size.macs / 1e9:.2f}G",
        ]
        for size in record.sizes
    ]
    return markdown(["model", "survey", "paper", "counted here"], rows)
