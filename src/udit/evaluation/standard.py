"""Standard scores of any images against any reference, in the space of any features, with their protocol.

Only Inception's distances bear the literature's names (fid, sfid, inception_score, kid, mind); of other features the
same numbers are called frechet_distance, kernel_distance and sliced_distance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from udit.data.sources import Labels, Pixels
from udit.errors import UserError
from udit.evaluation import metrics
from udit.evaluation.fidelity import Extractor, kernel_distance
from udit.evaluation.frechet import Array, Statistics, Target, measure
from udit.evaluation.gathered import KEPT, Gathered, gather
from udit.evaluation.image_set import ImageSet
from udit.evaluation.mind import DIRECTIONS, mind
from udit.evaluation.report import plain
from udit.evaluation.sets import Reference
from udit.files import whole_file
from udit.record import Record
from udit.spec.base import Spec

NAMES = {"fid": "frechet_distance", "kid": "kernel_distance", "mind": "sliced_distance"}
"""What the literature's names for Inception's distances are for others."""
MOST_SLICED = 5000
"""Samples that MIND takes at most; it is meant for 1,000 to 5,000."""


class Score(Spec):
    """One number."""

    value: float
    interval: tuple[float, float] | None = None
    """95 %."""
    debiased: float | None = None
    """Of a Fréchet distance: extrapolated to unlimited samples; the interval is around it."""
    spread: tuple[float, ...] = ()
    """The same score of ``GROUPS`` subsets; each has a fifth of the samples, so a distance is biased upwards more."""
    beside: str = ""
    """A note: extractor, number of samples, what it means."""


class Scores(Record):
    """Scores of one set of images. Scores of two sets can be compared only if ``protocol`` is the same."""

    scores: dict[str, Score]
    subject: dict[str, Any]
    """What was scored; may differ between scores that are compared."""
    protocol: dict[str, Any]
    """How: number of samples, sampling, extractor, reference; plain values."""
    warning: str | None = None
    """One line where the extractor is a judge so weak that these numbers tell little (``Trust``)."""

    @property
    def distance(self) -> Score:
        """The Fréchet distance, under whichever name."""
        return self.scores["fid" if "fid" in self.scores else NAMES["fid"]]

    def title(self, name: str) -> str:
        """What a score is called in tables: older files name the distances of all features as Inception's."""
        published = str(self.protocol.get("extractor", "inception-v3-compat")).startswith("inception-v3-compat")
        return name if published else NAMES.get(name, name)

    @property
    def setting(self) -> dict[str, Any]:
        """What the scores are of."""
        return {"weights": self.subject.get("weights"), **self.protocol}

    @classmethod
    def read(cls, path: Path) -> Scores:
        """The scores in a file that ``write`` wrote.

        Raises:
            UserError: the file is missing or holds something else.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError):
            raise UserError(
                f"{path} holds no scores; give a file that `udit eval` wrote: RUN/evaluation/metrics*.json or its --out"
            ) from None


def check_features(extractor: Extractor, reference: Reference, shape: tuple[int, int, int]) -> None:
    """Refuses a reference that cannot be compared with images (C, H, W), before there are any.

    Raises:
        UserError: the extractor does not take such images, or its features are not the reference's.
    """
    _same_width(extractor, extractor(np.zeros((2, *shape), np.uint8)).pool.shape[1], reference)


def _same_width(extractor: Extractor, width: int, reference: Reference) -> None:
    if width != len(reference.pool.mean):
        raise UserError(
            f"the reference has {len(reference.pool.mean)} features and {extractor.name} gives {width}; make one with "
            "`udit ref make` and the same --features"
        )
    if reference.features is not None and len(reference.features) <= metrics.NEIGHBORS:
        raise UserError(
            f"the reference has {len(reference.features)} images, and precision and recall need more than "
            f"{metrics.NEIGHBORS}; give more"
        )


def score(
    images: Pixels | ImageSet,
    extractor: Extractor,
    reference: Reference,
    *,
    subject: dict[str, Any],
    protocol: dict[str, Any],
) -> Scores:
    """Scores images in the space of one extractor; see ``score_panel``."""
    return score_panel(images, [(extractor, reference)], subject=subject, protocol=protocol)[0]


def score_panel(
    images: Pixels | ImageSet,
    spaces: Sequence[tuple[Extractor, Reference]],
    *,
    subject: dict[str, Any],
    protocol: dict[str, Any],
    labels: Labels | None = None,
    keep: Callable[[Gathered, Scores], object] = lambda _gathered, _scores: None,
) -> list[Scores]:
    """Scores images in several spaces by one pass over them.

    Args:
        images: uint8 [N, C, H, W], or a set, which is read in chunks.
        spaces: extractors, each with a reference that was made with it.
        subject: what is scored.
        protocol: how the images were generated; number, extractor and reference are added here.
        labels: the requested classes [N], for the class agreement of a judge.
        keep: called with what was gathered in each space, and its scores.

    Returns:
        The scores in each space.

    Raises:
        UserError: too few images, or a reference of other features.
    """
    if len(images) < 2:
        raise UserError(f"{len(images)} images are too few for a score; give at least 2")
    found = []
    gathered = gather(images, [extractor for extractor, _ in spaces])
    for (extractor, reference), seen in zip(spaces, gathered, strict=True):
        _same_width(extractor, seen.rows.shape[1], reference)
        facts = protocol | {
            "num_samples": seen.count,
            "extractor": extractor.name,
            "extractor_sha256": extractor.sha256,
            "reference_sha256": reference.sha256,
            "reference_count": reference.count,
        }
        if max(seen.count, reference.count or 0) > KEPT:
            facts["manifolds_of"] = KEPT
        values = _values(seen, extractor, reference, labels)
        found.append(Scores(scores=values, subject=subject, protocol=json.loads(json.dumps(facts))))
        keep(seen, found[-1])
    return found


def _values(seen: Gathered, extractor: Extractor, reference: Reference, labels: Labels | None) -> dict[str, Score]:
    by, inception = extractor.name, extractor.inception
    names = {name: name if inception else other for name, other in NAMES.items()}
    scores = {names["fid"]: _frechet(seen.pool, seen.rows, reference.pool, by)}
    if inception and seen.spatial and reference.spatial is not None:
        scores["sfid"] = _frechet(seen.spatial, seen.spatial_rows, reference.spatial, by)
    if seen.inception_score is not None:
        value, deviation = seen.inception_score
        scores["inception_score"] = Score(
            value=value, beside=f"{by}; over ten subsets, standard deviation {deviation:.4g}"
        )
    if reference.features is not None:
        value, deviation = kernel_distance(samples=seen.rows, reference=reference.features)
        scores[names["kid"]] = Score(value=value, beside=f"{by}; over subsets, standard deviation {deviation:.4g}")
        count = min(len(seen.rows), len(reference.features), MOST_SLICED)
        value = mind(seen.rows[np.arange(count) * len(seen.rows) // count], reference.features)
        scores[names["mind"]] = Score(value=value, beside=f"{by}; {count} images of each, {DIRECTIONS} directions")
        shares = metrics.precision_recall(samples=seen.rows, reference=reference.features)
        scores["precision"] = Score(
            value=shares.precision,
            interval=metrics.share_interval(shares.precision, len(seen.rows)),
            beside=f"{by}; samples within the reference's manifold",
        )
        scores["recall"] = Score(value=shares.recall, beside=f"{by}; reference within the samples' manifold")
        scores["density"] = Score(value=shares.density, beside=f"{by}; balls of the reference around a sample, over k")
        scores["coverage"] = Score(value=shares.coverage, beside=f"{by}; reference with a sample in its ball")
    if seen.classes is not None and labels is not None:
        agreement = metrics.class_agreement(seen.classes, labels)
        scores["class_agreement"] = Score(
            value=agreement,
            interval=metrics.share_interval(agreement, seen.count),
            beside=f"{by}; samples of the requested class",
        )
    return scores


def _frechet(parts: Sequence[Statistics], rows: Array, reference: Statistics, by: str) -> Score:
    """The distance of all parts together, with its interval by the features of kept images."""
    whole, target = Statistics.joined(parts), Target(reference)
    ends = np.cumsum([part.count or 0 for part in parts])
    spread: tuple[float, ...] = ()
    if len(parts) > 1:
        few = len(rows) == whole.count and max(part.count or 0 for part in parts) < rows.shape[1]
        if few:  # less work than by covariances
            spread = tuple(target.distance_of(part)[0] for part in np.split(rows, ends[:-1]))
        else:
            spread = tuple(target.distance(part) for part in parts)
    found = measure(rows, target, whole=whole)
    return Score(
        value=found.value,
        interval=found.interval,
        debiased=found.debiased,
        spread=spread,
        beside=by if found.interval else f"{by}; too few samples for an interval",
    )


def tables(named: Sequence[tuple[str, Scores]]) -> str:
    """Scores as Markdown tables; different protocols are listed separately, with the keys that differ."""
    groups: list[list[tuple[str, Scores]]] = []
    for name, scores in named:
        for group in groups:
            if group[0][1].protocol == scores.protocol:
                group.append((name, scores))
                break
        else:
            groups.append([(name, scores)])
    blocks = []
    for i, group in enumerate(groups):
        text = _table(group)
        if i:
            keys = ", ".join(differing(groups[0][0][1], group[0][1]))
            text = f"Another protocol, not comparable with the first table (it differs in {keys}):\n\n{text}"
        blocks.append(text)
    return "\n\n".join(blocks)


def differing(a: Scores, b: Scores) -> list[str]:
    """Keys at which two protocols differ."""
    return sorted(key for key in {**a.protocol, **b.protocol} if a.protocol.get(key) != b.protocol.get(key))


def require_same_protocol(named: Sequence[tuple[str, Scores]]) -> None:
    """Refuses scores of different protocols.

    Raises:
        UserError: names two of them and the keys that differ.
    """
    for name, scores in named[1:]:
        if keys := differing(named[0][1], scores):
            raise UserError(
                f"{named[0][0]} and {name} were scored under protocols that differ in {', '.join(keys)}; only "
                "scores of the same protocol can be compared"
            )


def save_sweep(named: Sequence[tuple[str, Scores]], path: Path) -> None:
    """Plots the debiased distances of scores, each named by a number, with their intervals.

    Raises:
        UserError: their protocols differ.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    require_same_protocol(named)
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x = [float(name) for name, _ in named]
    found = [scores.distance for _, scores in named]
    middle = [f.value if f.debiased is None else f.debiased for f in found]
    reach = [f.interval or (m, m) for f, m in zip(found, middle, strict=True)]
    below, above = ([abs(m - ends[i]) for m, ends in zip(middle, reach, strict=True)] for i in (0, 1))
    axes.errorbar(x, middle, yerr=[below, above], fmt="o-", capsize=3)
    protocol = named[0][1].protocol
    axes.set(
        xlabel="sigma_rel", ylabel="Fréchet distance", title=f"{protocol['extractor']}, N = {protocol['num_samples']}"
    )
    with whole_file(path, durable=False) as temporary:
        figure.savefig(temporary, dpi=120)


def _table(group: Sequence[tuple[str, Scores]]) -> str:
    header = ["samples", "score", "value", "debiased", "95 %", "five subsets", "note"]
    rows = [
        [
            name,
            scores.title(key),
            f"{s.value:.6g}",
            _number(s.debiased),
            _range(s.interval),
            _range(_ends(s.spread)),
            s.beside,
        ]
        for name, scores in group
        for key, s in scores.scores.items()
    ]
    facts = [f"- {key}: {plain(value)}" for key, value in group[0][1].protocol.items()]
    warned = dict.fromkeys(scores.warning for _, scores in group if scores.warning)
    return "\n".join([*markdown(header, rows), "", *(f"**{line}**\n" for line in warned), *facts])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table that also reads well as it is."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in [header, *rows]]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return lines


def _ends(values: Sequence[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if values else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _range(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"
