"""Who scores the members of a comparison: a thin interface, and the judge of the data set behind it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from udit.comparison.records import EvaluatorFacts, Score
from udit.data.sources import parts_of
from udit.evaluation import npz
from udit.evaluation.judges import judge_of
from udit.evaluation.report import Report
from udit.evaluation.trust import warn_of_weak
from udit.files import whole_file
from udit.run.config import Run
from udit.run.scorable import require_scorable
from udit.scoring import JUDGE, evaluate, evaluation_folder

LOWER_IS_BETTER = frozenset({"distance"})
"""Scores of which the smaller one wins."""
COLUMNS, ROWS = 10, 3
"""Of the grid of samples that a record keeps: a column for each of the first classes."""


@dataclass(frozen=True)
class Judged:
    """What an evaluator found of one model."""

    scores: dict[str, Score]
    facts: EvaluatorFacts
    weights: str
    """Fingerprint of the scored weights."""
    images: torch.Tensor
    """uint8 [N, C, H, W], the first samples for a grid of ``COLUMNS`` or fewer columns."""
    columns: int


class Evaluator(Protocol):
    """Scores trained runs, all of them in the same way."""

    def prepare(self, run: Run) -> None:
        """Makes what it needs, once for all members; ``run`` is any of theirs.

        Raises:
            UserError: the data do not allow these scores.
        """

    def score(self, folder: Path) -> Judged:
        """Draws from the newest checkpoint of a run folder and scores that.

        Raises:
            UserError, RunError: it cannot.
        """


@dataclass(frozen=True)
class JudgeEvaluator:
    """Scores of ``udit eval``: by a classifier that is trained on a part of the data no generator saw.

    Attributes:
        folder: where the one judge of all members is kept.
    """

    folder: Path

    @property
    def judge(self) -> Path:
        """The file of the judge."""
        return self.folder / JUDGE

    def prepare(self, run: Run) -> None:
        """See ``Evaluator``."""
        source = run.data.scored().build()
        parts = parts_of(source, run.data)
        require_scorable(source.labels, parts)
        self.folder.mkdir(parents=True, exist_ok=True)
        judge = judge_of(source, parts, run.evaluation.judge_steps, self.judge, mirrored=run.data.mirrored)
        warn_of_weak(judge, source, parts)

    def score(self, folder: Path) -> Judged:
        """See ``Evaluator``."""
        own = evaluation_folder(folder) / JUDGE
        own.parent.mkdir(parents=True, exist_ok=True)
        if not own.is_file():
            with whole_file(own) as temporary:
                shutil.copyfile(self.judge, temporary)
        report = evaluate(folder, progress=False)
        assert report is not None, "one process has rank 0"
        found = npz.read(own.parent / "samples.npz")
        assert found.images is not None, "udit eval keeps its images"
        assert found.labels is not None, "and their labels"
        chosen, columns = _grid(found.labels)
        images = torch.from_numpy(np.ascontiguousarray(found.images[chosen]))
        return Judged(scores_of(report), facts_of(report), str(report.protocol["weights"]), images, columns)


def scores_of(report: Report) -> dict[str, Score]:
    """The scores of a report by their names in a record; recall has no interval of its own."""
    return {
        "distance": _score(report.distance, report.distance_interval),
        "agreement": _score(report.agreement, report.agreement_interval),
        "precision": _score(report.precision, report.precision_interval),
        "recall": _score(report.recall, (report.recall, report.recall)),
    }


def facts_of(report: Report) -> EvaluatorFacts:
    """Who has scored a report."""
    return EvaluatorFacts(
        name=report.judge,
        sha256=report.judge_sha256,
        reference_sha256=report.reference_sha256,
        real={"distance": report.distance_real, "agreement": report.judge_on_test},
    )


def _score(value: float, ends: tuple[float, float]) -> Score:
    return Score(value=value, low=ends[0], high=ends[1])


def _grid(labels: np.ndarray) -> tuple[list[int], int]:
    """Places of the first ``ROWS`` samples of each of the first classes, row by row."""
    classes = sorted({int(label) for label in labels})[:COLUMNS]
    places = {label: np.flatnonzero(labels == label)[:ROWS].tolist() for label in classes}
    rows = min(len(found) for found in places.values())
    return [places[label][row] for row in range(rows) for label in classes], len(classes)
