"""Tables of a comparison in words, for the terminal, the report and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from udit.comparison.config import UNITS, Yardstick, short_amount
from udit.comparison.evaluator import LOWER_IS_BETTER
from udit.comparison.records import Member, Sized
from udit.comparison.summary import Estimate, Panel

Table = tuple[str, list[str], list[list[str]]]
"""Title, header and rows."""


def number(value: float, score: str) -> str:
    """A score: shares as per cent."""
    return f"{value:.4g}" if score in LOWER_IS_BETTER else f"{100 * value:.1f} %"


def interval(one: Estimate, score: str) -> str:
    """A score with its interval, if there is one."""
    if one.low == one.high:
        return number(one.value, score)
    return f"{number(one.value, score)} ({number(one.low, score)} to {number(one.high, score)})"


def title_of(panel: Panel, budget: Yardstick) -> str:
    """Score and budget of a panel."""
    better = "lower" if panel.score in LOWER_IS_BETTER else "higher"
    real = "" if panel.real is None else f", real images {number(panel.real, panel.score)}"
    return f"{panel.score} at {short_amount(panel.amount)} {UNITS[budget]} ({better} is better{real})"


def standings_of(panel: Panel, budget: Yardstick) -> Table:
    """Who is ahead at the end of the training, and at equal seconds."""
    header = ["system", "seeds", f"{panel.score} (95 %)", "seconds", "behind the first"]
    if panel.seconds is not None:
        header.insert(4, f"at {panel.seconds:.3g} s")
    if any(one.reached is not None for one in panel.standings):
        header.append("steps to reach")
    rows = []
    for one in panel.standings:
        behind = "-" if one.behind is None else "yes" if one.behind else "not separated"
        cells = [
            one.system,
            str(one.final.seeds),
            interval(one.final, panel.score),
            f"{panel.curves[one.system].seconds[-1]:.3g}",
        ]
        if panel.seconds is not None and one.same_seconds is not None:
            cells.append(interval(one.same_seconds, panel.score))
        cells.append(behind)
        if header[-1] == "steps to reach":
            cells.append("not reached" if one.reached is None else f"{one.reached:,.0f}")
        rows.append(cells)
    return title_of(panel, budget), header, rows


def pairs_of(panel: Panel) -> Table:
    """All pairs of systems, by their differences seed by seed."""
    rows = [
        [
            f"{pair.first} - {pair.second}",
            interval(pair.difference, panel.score),
            str(pair.difference.seeds),
            "yes" if pair.separates else "no",
        ]
        for pair in panel.pairs
    ]
    return "Differences at the end", ["pair", "difference (95 %)", "seeds", "separates"], rows


def sizes_of(sizes: Sequence[Sized], members: Sequence[Member]) -> Table:
    """The systems as they were solved, with their rates and times."""
    rows = []
    for size in sizes:
        own = [one for one in members if one.size == size]
        rates = "-"
        if own and own[0].rate is not None:
            losses = [
                f"{one.lr:g}: " + ("failed" if one.loss is None else f"{one.loss:.4f}") for one in own[0].rate.tried
            ]
            rates = ", ".join(losses) + ("; the best is at the end of the grid" if own[0].rate.edge else "")
        rows.append(
            [
                size.system,
                short_amount(size.amount),
                size.changed,
                f"{size.macs / 1e6:,.2f}",
                f"{size.parameters / 1e6:,.3f}",
                f"{size.error:+.2%}",
                f"{own[0].lr:g}" if own else "-",
                rates,
                f"{own[0].step_seconds:.3g}" if own else "-",
            ]
        )
    header = [
        *("system", "budget", "size", "MACs (M)", "parameters (M)", "off the budget"),
        *("learning rate", "held-out loss of each rate", "seconds per step"),
    ]
    return "Systems", header, rows


def members_of(members: Sequence[Member]) -> Table:
    """Each finished member with its own intervals, those of its samples."""
    rows = []
    for one in members:
        last = one.points[-1]
        scores = [
            f"{number(score.value, name)} ({number(score.low, name)} to {number(score.high, name)})"
            for name, score in last.scores.items()
        ]
        loss = "-" if last.val_loss is None else f"{last.val_loss:.4f}"
        rows.append(
            [
                one.system,
                short_amount(one.size.amount),
                str(one.seed),
                f"{one.lr:g}",
                f"{last.seconds:.3g}",
                loss,
                *scores,
                last.weights[:12],
                f"{one.machine}; {one.date}",
            ]
        )
    names = list(members[0].points[-1].scores)
    header = ["system", "budget", "seed", "rate", "seconds", "held-out loss", *names, "weights", "machine"]
    return "Members", header, rows


def protocol_of(members: Sequence[Member]) -> Table:
    """What all members have in common, and what those of one seed have."""
    first = members[0]
    rows = [
        ["evaluator", f"{first.evaluator.name}, weights {first.evaluator.sha256}"],
        ["reference images", f"sha256 {first.evaluator.reference_sha256}"],
    ]
    for seed in sorted({one.seed for one in members}):
        own = next(one for one in members if one.seed == seed)
        rows.append([f"order of images, seed {seed}", f"sha256 {own.sample_ids_sha256}"])
        rows.append([f"times and noise, seed {seed}", f"sha256 {own.noise_sha256}"])
    rows += [[key, text] for key, text in _flat(first.protocol)]
    rows.append(["versions", "; ".join(sorted({one.versions for one in members}))])
    return "Protocol", ["what", "value"], rows


def _flat(values: Any, path: str = "") -> list[tuple[str, str]]:
    """Dotted keys and values of nested plain values."""
    if isinstance(values, dict):
        return [pair for key, value in values.items() for pair in _flat(value, f"{path}.{key}" if path else str(key))]
    return [(path.removeprefix("run."), "none" if values is None else str(values))]
