"""Scores side by side, for `udit scores`: of runs by their judge, and of any images by a published network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from udit.errors import UserError
from udit.evaluation import standard
from udit.evaluation.report import Report, percent
from udit.evaluation.standard import Scores

SAME = ("judge", "judge_sha256", "reference_sha256", "num_samples")
"""Equal where a judge's scores of two runs can be compared; distances are biased by the number of images."""


def read(path: Path) -> Report | Scores:
    """The scores in a file that `udit eval` wrote, or the latest ones of a run's folder.

    Raises:
        UserError: there are none.
    """
    if (path / "run.yaml").is_file():
        path = path / "evaluation" / "metrics.json"
        if not path.is_file():
            raise UserError(f"{path} is missing; `udit eval {path.parent.parent}` writes it")
    if path.is_dir():
        raise UserError(f"{path} is a folder and no run; give files that `udit eval` wrote")
    try:
        return Report.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return Scores.read(path)


def tables(named: Sequence[tuple[str, Report | Scores]]) -> str:
    """Scores as Markdown tables; those that cannot be compared are in separate ones, with what differs."""
    reports = [(name, found) for name, found in named if isinstance(found, Report)]
    scores = [(name, found) for name, found in named if isinstance(found, Scores)]
    blocks = [of_judges(reports)] if reports else []
    return "\n\n".join([*blocks, *([standard.tables(scores)] if scores else [])])


def of_judges(named: Sequence[tuple[str, Report]]) -> str:
    """Reports by judges: one table for each judge, reference and number of images."""
    groups: dict[tuple[object, ...], list[tuple[str, Report]]] = {}
    for name, report in named:
        groups.setdefault(tuple(getattr(report, key) for key in SAME), []).append((name, report))
    first = next(iter(groups))
    blocks = []
    for key, group in groups.items():
        text = _table(group)
        if key != first:
            keys = ", ".join(name for name, own, other in zip(SAME, key, first, strict=True) if own != other)
            text = f"Not comparable with the first table (it differs in {keys}):\n\n{text}"
        blocks.append(text)
    return "\n\n".join(blocks)


def _table(group: Sequence[tuple[str, Report]]) -> str:
    header = ["scores", "sampling", "class agreement", "95 %", "distance", "95 %", "precision", "recall", "memorised"]
    rows = [
        [
            name,
            _sampling(report),
            percent(report.agreement),
            " to ".join(map(percent, report.agreement_interval)),
            f"{report.distance:.4f}",
            " to ".join(f"{end:.4f}" for end in report.distance_interval),
            percent(report.precision),
            percent(report.recall),
            percent(report.memorised),
        ]
        for name, report in group
    ]
    report = group[0][1]
    real = percent(report.judge_on_test)
    rows.append(
        ["real test images", "", real, "", f"{report.distance_real:.4f}", "", "", "", percent(report.memorised_real)]
    )
    warned = dict.fromkeys(found.judge_warning for _, found in group if found.judge_warning)
    facts = [
        f"- judge: {report.judge}, right on {real} of real test images, weights {report.judge_sha256[:12]}; distances "
        "are of its features, not FID",
        f"- reference: {report.reference_count} training images, sha256 {report.reference_sha256[:12]}",
        f"- num_samples: {report.num_samples}; of real test images: {report.matched_count}",
    ]
    return "\n".join([*standard.markdown(header, rows), "", *(f"**{line}**\n" for line in warned), *facts])


def _sampling(report: Report) -> str:
    """Sampler, steps and guidance in short, where the report's protocol has them."""
    found = report.protocol.get("sampling")
    how = found if isinstance(found, dict) else {}
    words = [str(how[key]) for key in ("sampler", "steps") if key in how]
    words += [f"guidance {how['guidance']:g}"] if "guidance" in how else []
    kind = how.get("guidance_kind", "cfg")
    return " ".join([*words, *([str(kind)] if kind != "cfg" and how["guidance"] != 1 else [])])
