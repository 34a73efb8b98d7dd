"""Tables of speed targets and the results in docs/performance/*.json."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from statistics import geometric_mean
from typing import Any, NamedTuple

from udit.benchmarking.report import comparisons

Row = dict[str, Any]
Found = dict[str, Any]


class Figure(NamedTuple):
    """One measured figure of a target."""

    where: str
    """What distinguishes this figure from the target's others, e.g. the batch."""
    text: str
    reached: bool


class Target(NamedTuple):
    """A row of the table."""

    what: str
    target: str
    figures: list[Figure]
    either: bool = False
    """Whether one figure that reaches it is enough."""


def targets(found: Found) -> list[str]:
    """Lines of the table of targets; a target whose files are missing is left out."""
    lines = ["| | target | result | |", "| --- | --- | --- | --- |"]
    for what, target, figures, either in _all(found):
        if figures:
            reached = sum(figure.reached for figure in figures)
            verdict = "in part" if reached else "missed"
            if reached == len(figures) or (reached and either):
                verdict = "reached"
            result = "; ".join(_bold(figure, 0 < reached < len(figures)) for figure in figures)
            lines.append(f"| {what} | {target} | {result} | {verdict} |")
    return lines


def baselines(found: Found) -> list[str]:
    """Lines of a table: U-DiT-S's time over that of each network of about the same MACs."""
    groups = [
        (side, rows) for side in (16, 32, 64, 128) for rows in _groups(found, f"equal-MACs-{side}x{side}") if rows
    ]
    kinds = list(dict.fromkeys(_kind(row) for _, rows in groups for row in rows if row["subject"] != "U-DiT-S"))
    lines = ["| input, batch | work | " + " | ".join(kinds) + " |", "| --- | --- |" + " ---: |" * len(kinds)]
    for side, rows in sorted(groups, key=lambda group: (group[0], group[1][0]["work"])):
        ours = _row(rows, "U-DiT-S")
        assert ours is not None
        work, _, batch = rows[0]["work"].split(", ")
        times = {
            _kind(row): f"{ours['median'] / row['median']:.2f} ({row['flops'] / ours['flops']:.2f})" for row in rows
        }
        cells = " | ".join(times.get(kind, "-") for kind in kinds)
        lines.append(f"| {side}x{side}, {batch} | {work} | {cells} |")
    return lines


def _kind(row: Row) -> str:
    """The class of a subject's network, without its sizes."""
    return "our DiT" if row["subject"].startswith("DiT/") else str(row["subject"]).split(", ")[0]


def _bold(figure: Figure, mark: bool) -> str:
    value = f"**{figure.text}**" if mark and figure.reached else figure.text
    return f"{figure.where} {value}".strip()


def _all(found: Found) -> Iterator[Target]:
    yield from _against_literal(found)
    yield from _against_largest_dit(found)
    yield from _against_equal_dit(found)
    yield from _compiling(found)


def _against_literal(found: Found) -> Iterator[Target]:
    by_name = {"U-DiT-" + size: list(_groups(found, f"forward-{size}")) for size in "SBL"}
    for form, least in (("", 1.3), (", compiled", 1.6)):
        ratios = {
            name: [_ratio(rows, rows[0]["subject"], name + form) for rows in groups if _row(rows, name + form)]
            for name, groups in by_name.items()
        }
        every = [ratio for of_one in ratios.values() for ratio in of_one]
        each = ", ".join(f"{name} {geometric_mean(of_one):.2f}" for name, of_one in ratios.items() if of_one)
        mean = geometric_mean(every) if every else 0.0
        figures = [Figure("", f"{mean:.2f}x ({each})", mean >= least)] if every else []
        what = f"forward{form}, times as fast as the literal network, geometric mean of batches 1, 4 and 16"
        yield Target(what, f"at least {least}x", figures)

    shares = [
        Figure("", f"{row['share_of_peak']:.0%}", row["share_of_peak"] >= 0.85)
        for rows in by_name["U-DiT-B"]
        if (row := _row(rows, "U-DiT-B, compiled")) and _batch(rows) == "batch 4"
    ]
    yield Target("forward, U-DiT-B compiled, batch 4, share of the matrix product's peak", "at least 85 %", shares)

    for what, name, least in (("U-DiT-S", "training-S", 2), ("2 M weights on 1x32x32", "training-2M", 3)):
        figures = []
        for rows in _groups(found, name):
            for row in rows[1:]:
                faster = _ratio(rows, rows[0]["subject"], row["subject"])
                memory = row["peak_bytes"] / rows[0]["peak_bytes"]
                how = "selective recomputation" if "recomputation" in row["subject"] else "all activations kept"
                figures.append(Figure(how, f"{faster:.2f}x at {memory:.0%}", faster >= least and memory <= 0.5))
        what = f"training step of {what}, against the literal network"
        yield Target(what, f"at least {least}x at half its memory", figures, either=True)


def _against_largest_dit(found: Found) -> Iterator[Target]:
    for name, ours, work, least in (
        ("forward-B-against-DiT-XL", "U-DiT-B", "forward", 5.0),
        ("forward-L-against-DiT-XL", "U-DiT-L", "forward", 1.0),
        ("training-L-against-DiT-XL", "U-DiT-L", "training step", 1.0),
    ):
        ratios = [(_batch(rows), _ratio(rows, "DiT-XL/2", ours)) for rows in _groups(found, name, exact=True)]
        figures = [Figure(batch, f"{ratio:.2f}x", ratio >= least) for batch, ratio in ratios]
        yield Target(f"{work} of {ours}, times as fast as DiT-XL/2", f"at least {least}x", figures)


def _against_equal_dit(found: Found) -> Iterator[Target]:
    for side, work in itertools.product((16, 32, 64, 128), ("forward", "training step")):
        most = 1.2 if side <= 32 else 1.0
        figures = [
            Figure(f"{_batch(rows)}, {whose}", f"{times:.2f}", times <= most)
            for rows in _groups(found, f"equal-MACs-{side}x{side}")
            if rows[0]["work"].startswith(work)
            for whose, row in zip(("ours", "diffusers'"), rows, strict=False)
            for times in [_ratio(rows, "U-DiT-S", row["subject"])]
        ]
        what = f"{work} of U-DiT-S at {side}x{side}, its time over a DiT's of equal MACs"
        yield Target(what, f"at most {most}", figures)


def _compiling(found: Found) -> Iterator[Target]:
    compiled = [row for content in found.values() for row in content["results"] if row.get("graph_breaks") is not None]
    of_b = [row["first_call"] for rows in _groups(found, "compiling-B") for row in rows if row in compiled]
    breaks = sum(row["graph_breaks"] for row in compiled)
    figures = [Figure("", f"{max(of_b):.0f} s, {breaks}", max(of_b) < 60 and not breaks)] if of_b else []
    what = "compiling U-DiT-B cold on two cores, the longest; graph breaks of all compiled"
    yield Target(what, "below 60 s; none", figures)


def _groups(found: Found, name: str, exact: bool = False) -> Iterator[list[Row]]:
    """Groups of rows that were timed together, from the files whose names begin with ``name``."""
    for stem, content in found.items():
        if stem == name or (not exact and stem.startswith(name + "-") and "against" not in stem):
            yield from comparisons(content)


def _row(rows: Sequence[Row], subject: str) -> Row | None:
    return next((row for row in rows if row["subject"] == subject), None)


def _ratio(rows: Sequence[Row], one: str, two: str) -> float:
    """The median seconds of ``one`` over those of ``two``."""
    seconds = {row["subject"]: float(row["median"]) for row in rows}
    return seconds[one] / seconds[two]


def _batch(rows: Sequence[Row]) -> str:
    return str(rows[0]["work"]).split(", ")[2]
