"""Scores side by side, for `udit scores`: of runs by their judge, and of any images by a published network.

``paired`` compares two of them seed by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from udit.errors import UserError
from udit.evaluation import standard
from udit.evaluation.paired import (
    LEAST,
    Difference,
    agreement_difference,
    frechet_difference,
    kernel_difference,
    mind_difference,
    require_same_seeds,
)
from udit.evaluation.report import Report, percent, plain
from udit.evaluation.rows import SEEDS, SPACE, Rows
from udit.evaluation.standard import Scores
from udit.record import Record

SAME = ("judge", "judge_sha256", "reference_sha256", "num_samples")
"""Equal where a judge's scores of two runs can be compared; distances are biased by the number of images."""


def read(path: Path) -> Report | Scores:
    """The scores in a file that `udit eval` wrote, or the latest ones of a run's folder.

    Raises:
        UserError: there are none.
    """
    path = _file_of(path)
    try:
        return Report.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return Scores.read(path)


def _file_of(path: Path) -> Path:
    if (path / "run.yaml").is_file():
        path = path / "evaluation" / "metrics.json"
        if not path.is_file():
            raise UserError(f"{path} is missing; `udit eval {path.parent.parent}` writes it")
    if path.is_dir():
        raise UserError(f"{path} is a folder and no run; give files that `udit eval` wrote")
    return path


class Paired(Record):
    """Two ways of drawing, settings of one model or two models, compared over the same seeds."""

    a: str
    """What A is: the file of its scores."""
    b: str
    differences: dict[str, Difference]
    """A minus B by score: fid or frechet_distance, kid or kernel_distance, mind or sliced_distance, class_agreement."""
    facts: dict[str, Any]
    """Seeds, features and reference, which are the same for both."""

    def table(self) -> str:
        """The differences as a Markdown table that also reads well as it is."""
        rows = [
            [
                name,
                f"{one.a:.6g}",
                f"{one.b:.6g}",
                f"{one.value:.4g}",
                f"{one.interval[0]:.4g} to {one.interval[1]:.4g}",
                "yes" if one.separate else "no",
            ]
            for name, one in self.differences.items()
        ]
        header = ["score", "A", "B", "A - B", "95 %", "told apart"]
        facts = [f"- A: {self.a}", f"- B: {self.b}", *(f"- {key}: {plain(value)}" for key, value in self.facts.items())]
        return "\n".join([*standard.markdown(header, rows), "", *facts])


def paired(a: Path, b: Path) -> Paired:
    """Compares two ways of drawing over the same seeds, by the features that `udit eval` kept beside the scores.

    What A and B share, noise and labels, cancels in the difference, so that far fewer images tell them apart than two
    intervals would take. The interval of a difference is 95 %, with the reference held fixed.

    Args:
        a: a file of scores, or a run's folder, whose latest scores are meant.
        b: the same.

    Raises:
        UserError: no scores, no features beside them, or other seeds, labels, features or reference.
    """
    first, second = (_rows_of(path) for path in (a, b))
    require_same_seeds(first.facts, second.facts, (*SEEDS, *SPACE))
    names = standard.NAMES if not first.facts.get("inception") else {name: name for name in standard.NAMES}
    found = {names["fid"]: frechet_difference(first.features, second.features, first.reference)}
    if first.reference_features is not None:
        found[names["kid"]] = kernel_difference(first.features, second.features, first.reference_features)
        count = min(len(first.features), len(first.reference_features), standard.MOST_SLICED)
        some = np.arange(count) * len(first.features) // count
        if count >= LEAST:
            found[names["mind"]] = mind_difference(
                first.features[some], second.features[some], first.reference_features
            )
    if first.right is not None and second.right is not None:
        found["class_agreement"] = agreement_difference(first.right, second.right)
    facts = {key: first.facts[key] for key in (*SEEDS, *SPACE)}
    return Paired(a=str(a), b=str(b), differences=found, facts=facts)


def _rows_of(path: Path) -> Rows:
    return Rows.read(_file_of(path).parent, read(path).setting)


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
