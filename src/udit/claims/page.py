"""docs/claims.md and its images, from the records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from udit.claims import comparisons
from udit.claims.claim import Kind, Measurement, markdown
from udit.claims.comparisons import FASHION_MNIST
from udit.claims.drawing import FIGURES, trained
from udit.claims.job import MODULES, Results, Row, of_kind
from udit.files import write_text

INTRO = """# Claims, measured

What papers on U-shaped diffusion transformers say, and what was found here, on one CPU and at small scale. A verdict is
of the scale that stands with it: nothing here was trained on ImageNet. Written by `udit claims --page` from the records
in `docs/results/claims` and `docs/results/comparisons`.

- **holds**, **does not hold**: the numbers, or their 95 % intervals, decide, by the rule that stands with the claim.
- **cannot be tested at this scale**: the intervals do not decide.
- **not yet measured**: the command measures it.

<!-- not executed: minutes to hours -->
```console
$ udit claims                    # lists the claims with their verdicts
$ udit claims low-frequencies    # measures one anew, and writes this page
```
"""
TITLES: dict[Kind, str] = {
    "attention": "The cost of attention",
    "spectra": "Spectra of trained features",
    "caching": "Cached inference",
    "growth": "Growth with the number of tokens",
    "sizes": "Sizes in circulation",
    "comparisons": "Trainings at equal MACs",
}
CAPTIONS: dict[Kind, tuple[str, str]] = {
    "spectra": ("claims-spectra.png", "power by radial frequency at the places of each network; low share over time"),
    "growth": ("claims-growth.png", "time and memory of a forward against the number of tokens"),
    "caching": ("claims-caching.png", "change of the cached features over time, and the score against the interval"),
}
"""Images: file, and what they show."""
TRAINED = "claims-trained.png", "distance against MACs per sample, a line for each system, intervals over seeds"


def write_page(results: Results, docs: Path) -> Path:
    """Writes ``claims.md`` and ``images/claims-*.png`` in a folder."""
    for kind, (name, _) in CAPTIONS.items():
        record = results.measured[kind]
        if record is not None:
            (docs / "images").mkdir(parents=True, exist_ok=True)
            FIGURES[kind](record, docs / "images" / name)
    if results.members.curves(FASHION_MNIST):
        (docs / "images").mkdir(parents=True, exist_ok=True)
        trained(results.members, docs / "images" / TRAINED[0])
    path = docs / "claims.md"
    write_text(path, page(results))
    return path


def page(results: Results) -> str:
    """The text of the page."""
    rows = results.rows()
    lines = [INTRO]
    lines += markdown(
        ["claim", "said", "verdict", "measured"],
        [[f"[{row.claim.name}](#{row.claim.name})", row.claim.said, verdict(row), row.judged.measured] for row in rows],
    )
    for kind, title in TITLES.items():
        lines += [f"## {title}", "", *_section(results, of_kind(rows, kind), kind)]
    return "\n".join(lines).rstrip("\n") + "\n"


def verdict(row: Row) -> str:
    """In bold where it is one."""
    word = row.judged.verdict
    return word if word == "not yet measured" else f"**{word}**"


def _section(results: Results, rows: list[Row], kind: Kind) -> Iterator[str]:
    for row in rows:
        yield f"### {row.claim.name}"
        yield ""
        yield f"{row.claim.said} *{row.claim.where}.*"
        yield ""
        measured = f" {row.judged.measured}." if row.judged.measured else ""
        yield (
            f"{verdict(row)[:1].upper()}{verdict(row)[1:]}.{measured}" if not measured else f"{verdict(row)}:{measured}"
        )
        yield ""
        yield f"Holds where {row.claim.rule}. Command: `{row.command}`." + (
            f" Scale: {row.scale}." if row.scale and kind == "comparisons" else ""
        )
        yield ""
    if kind == "comparisons":
        if results.members.curves(FASHION_MNIST):
            yield f"![{TRAINED[1]}](images/{TRAINED[0]})"
            yield ""
        yield from comparisons.details([row.claim.name for row in rows], results.members)
        return
    record = results.measured[kind]
    if record is None:
        return
    yield f"Scale: {scale(record)}."
    yield ""
    if kind in CAPTIONS:
        name, shown = CAPTIONS[kind]
        yield f"![{shown}](images/{name})"
        yield ""
    yield from MODULES[kind].details(record)


def scale(record: Measurement) -> str:
    """Scale, machine and date of a measurement."""
    return f"{record.scale}. {record.machine}; {record.versions}; {record.date}"
