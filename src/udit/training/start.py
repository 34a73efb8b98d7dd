"""Initial weights from a trained model: what fits is copied, label tables are rebuilt, the rest is initialised."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from udit import store
from udit.errors import UserError
from udit.run.config import Run
from udit.run.system import SystemConfig

TABLE = "label.weight"
"""Ending of the names of label tables, in every family."""


def start_from(new: Mapping[str, Tensor], run: Run) -> list[str]:
    """Fills a freshly initialised network with the averaged weights of ``run.init_from``.

    A parameter of the same name and shape is copied. In a label table, the null row and the rows of class names that
    both models have are copied; without names, all rows if the number of classes is the same. What has another shape,
    because channels or size differ (stem, head, learned positions), stays as it was initialised from the run's seed.

    Args:
        new: the state of a network of ``run.model``; changed in place.
        run: with ``init_from``.

    Returns:
        A report in a few lines.

    Raises:
        UserError: there is no model, none with a parameter in common, or an adapter would leave something untrained.
    """
    assert run.init_from is not None
    origin = store.load(run.init_from)
    old = origin.backbone.state_dict()
    taken = [name for name, tensor in new.items() if name in old and old[name].shape == tensor.shape]
    tables = [name for name in new if name.endswith(TABLE) and name in old]
    rows = _rows(origin.config, run)
    taken = [name for name in taken if name not in tables]
    if not taken:
        raise UserError(f"the weights of init_from={run.init_from} have nothing in common with the run's model")
    with torch.no_grad():
        for name in taken:
            new[name].copy_(old[name])
        for name in tables:
            for target, row in rows.items():
                new[name][target].copy_(old[name][row])
    count = sum(new[name].numel() for name in taken)
    total = sum(tensor.numel() for tensor in new.values())
    report = [
        f"init_from {run.init_from}: took {len(taken)} of {len(new)} tensors ({count / 1e6:.2f} of {total / 1e6:.2f} "
        "million numbers)"
    ]
    if tables:
        report.append(_told(rows, origin.config, run))
    fresh = [name for name in new if name not in taken and name not in tables]
    left = [name for name in old if name not in new]
    if run.training.adapter is not None and (fresh or (tables and len(rows) < len(new[tables[0]]))):
        untrained = _listed(fresh) if fresh else f"rows of {tables[0]}"
        raise UserError(
            f"training.adapter leaves all other weights as they are in init_from={run.init_from}, which lacks some of "
            f"the run's model ({untrained}); take data of the same size, channels and classes, or leave adapter out"
        )
    report += [f"initialised: {_listed(fresh)}"] if fresh else []
    report += [f"left out: {_listed(left)}"] if left else []
    return report


def _rows(origin: SystemConfig, run: Run) -> dict[int, int]:
    """{row of the new label table: row of the old one that is copied there}."""
    old, new = origin.model, run.model
    rows = {}
    if old.null_label is not None and new.null_label is not None:
        rows[new.null_label] = old.null_label
    if origin.id2label and run.id2label:
        known = {name: i for i, name in enumerate(origin.id2label)}
        return rows | {i: known[name] for i, name in enumerate(run.id2label) if name in known}
    if old.num_classes == new.num_classes:
        return rows | {i: i for i in range(new.num_classes)}
    return rows


def _told(rows: dict[int, int], origin: SystemConfig, run: Run) -> str:
    null = run.model.null_label
    kept = [i for i in rows if i != null]
    words = ["null row kept"] if null in rows else []
    by = "by name" if origin.id2label and run.id2label else "in order"
    named = [SystemConfig.of(run).classes.title(i) for i in sorted(kept)]
    words += [f"{len(kept)} {by} ({_listed(named)})"] if kept else []
    words.append(f"{run.model.num_classes - len(kept)} initialised")
    return f"label table for {run.model.num_classes} classes: {', '.join(words)}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
