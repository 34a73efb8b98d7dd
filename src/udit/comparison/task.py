"""One piece of work of a comparison, as a file: what a process reads that trains a member, on whatever machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from udit.comparison.config import Comparison, plain_name, short_amount
from udit.comparison.records import Sized
from udit.optim.config import ConstantSchedule
from udit.record import Record
from udit.run.config import Run
from udit.spec.base import Seed, Spec, parse

ANYWHERE = frozenset({"name", "out", "model", "seed", "data.root", "data.test_root", "training.lr", "training.device"})
"""Keys of a run that are no part of a protocol: what members differ in, and where things lie."""


class Task(Record):
    """The choice of a system's learning rate, or a member."""

    id: str
    """Name of its record, without the ending."""
    kind: Literal["rates", "member"]
    comparison: Comparison
    size: Sized
    seed: Seed
    steps: PositiveInt
    """Of the whole training."""
    run: dict[str, Any]
    """A run's plain values, with the system's model; rate and folder are not decided yet."""
    protocol: dict[str, Any]
    """All that decides a member beside its system and its seed."""
    rates: str | None = None
    """Of a member: the task that chooses its rate; None where it is the recipe's."""

    @property
    def record(self) -> str:
        """The file of its result within the comparison's folder."""
        return f"{'rates' if self.kind == 'rates' else 'records'}/{self.id}.json"

    @property
    def title(self) -> str:
        """In words, e.g. ``DiT at 20M, seed 0``."""
        what = "learning rate" if self.kind == "rates" else f"seed {self.seed}"
        return f"{self.size.system} at {short_amount(self.size.amount)}, {what}"

    def run_in(self, folder: Path) -> Run:
        """The run at a constant rate in a folder; its last step is the last branch's."""
        run: Run = parse(Run, self.run | {"out": str(folder), "seed": self.seed})
        return run


def tasks_of(comparison: Comparison, size: Sized, run: Run, fingerprint: str) -> list[Task]:
    """The tasks of one system at one size: its rate, where there is a choice, and a member for each seed.

    Args:
        comparison: of the system.
        size: the system's.
        run: the base recipe's, with any model.
        fingerprint: of the data set.
    """
    steps = run.training.steps
    training = run.training.replace(
        lr_schedule=ConstantSchedule(),
        save_every=max(1, steps // 20),
        sample_every=steps,
        keep=2,
        trackers=(),
        posthoc_ema=None,
    )
    shared = run.replace(training=training, name=comparison.name)
    plain = shared.plain() | {"model": size.model}
    protocol = {
        "run": without(plain, ANYWHERE),
        "data": fingerprint,
        **{key: list(getattr(comparison, key)) for key in ("fractions", "rates")},
        "decay": comparison.decay,
        "rate_share": comparison.rate_share,
        "rate_seed": comparison.seeds[0],
    }
    if not comparison.rates:  # the recipe's own rate counts, and no trial
        protocol |= {"lr": run.training.lr, "rate_share": None, "rate_seed": None}

    complete = shared.replace(model=size.model)
    decided = {
        **protocol,
        "run": without(chosen(complete), ANYWHERE),
        "model": chosen(complete.model),
    }

    def task(kind: Literal["rates", "member"], seed: int, rates: str | None) -> Task:
        decides = decided | {"kind": kind, "seed": seed}
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:10]
        middle = "" if kind == "rates" else f"-seed{seed}"
        name = f"{plain_name(size.system)}-{short_amount(size.amount)}{middle}-{digest}"
        return Task(
            id=name,
            kind=kind,
            comparison=comparison,
            size=size,
            seed=seed,
            steps=steps,
            run=plain,
            protocol=protocol,
            rates=rates,
        )

    choice = [task("rates", comparison.seeds[0], None)] if comparison.rates else []
    return choice + [task("member", seed, choice[0].id if choice else None) for seed in comparison.seeds]


def chosen(spec: Spec) -> dict[str, Any]:
    """Plain values of a spec without those that are defaults; what says of which kind a section is stays.

    A digest of them stays the same when a later version has more keys, whose defaults are what was before.
    """
    plain = spec.model_dump(mode="json")
    values: dict[str, Any] = {}
    for key, field in type(spec).model_fields.items():
        value = getattr(spec, key)
        if key in ("kind", "family") or field.is_required() or value != field.get_default(call_default_factory=True):
            values[key] = chosen(value) if isinstance(value, Spec) else plain[key]
    return values


def without(plain: Any, keys: frozenset[str], path: str = "") -> Any:
    """Nested plain values without some dotted keys."""
    if not isinstance(plain, dict):
        return plain
    named = {f"{path}.{key}" if path else key: key for key in plain}
    return {key: without(plain[key], keys, dotted) for dotted, key in named.items() if dotted not in keys}
