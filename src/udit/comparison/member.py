"""A member of a comparison: trained at a constant rate, with a branch of falling rate before each score."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import platform
import shutil
import statistics
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch

import udit
from udit import dist
from udit.benchmarking.report import processor
from udit.comparison.clock import Kind, clock_of
from udit.comparison.config import Stage, stages
from udit.comparison.evaluator import Evaluator
from udit.comparison.records import EvaluatorFacts, Member, Point, RateChoice, RateTried, Score
from udit.comparison.task import Task
from udit.data.batches import order_of
from udit.data.sources import parts_of
from udit.errors import RunError
from udit.files import whole_folder, write_text
from udit.images import grid, png_bytes
from udit.record import Record
from udit.run.config import Run
from udit.spec.base import parse
from udit.store import read_run_config
from udit.training.batches import batches_of
from udit.training.fork import fork
from udit.training.signals import StopFlag
from udit.training.trainer import Trainer
from udit.tuning.rates import find_lr

SIDE = 32
"""Least side of a sample in a record's grid."""
MOST_IDS = 2**20


@dataclass
class Clock:
    """Seconds of the training steps of a member, kept over interruptions.

    Attributes:
        path: the file.
        kind: what is measured.
        seconds: of each step so far, in no order that matters.
    """

    path: Path
    kind: Kind
    seconds: list[float] = field(default_factory=list)

    @classmethod
    def at(cls, path: Path, device: str) -> Clock:
        """The clock of a file, which may not be there yet."""
        seconds = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        return cls(path, clock_of(device)[1], seconds)

    def step(self) -> float:
        """The median step; 0 where none was timed, of a member that was killed at its end each time."""
        return statistics.median(self.seconds) if self.seconds else 0.0

    def train(self, run: Run, stop: StopFlag) -> bool:
        """Trains a run to its last step; False if ``stop`` asked to end before, or the starting process is gone."""
        trainer, parent = Trainer(run), os.getppid()
        now = clock_of(trainer.world.device.type)[0]
        try:
            before = now()
            for _ in trainer.steps(stop=stop):
                self.seconds.append(now() - before)
                if os.getppid() != parent and not stop.signal:
                    stop.signal = 15  # the comparison was killed; what is saved is found when it is started again
                before = now()
        finally:
            write_text(self.path, json.dumps(self.seconds))
        return trainer.outcome.finished


def choose_rate(task: Task, work: Path, stop: StopFlag) -> RateChoice | None:
    """The rate of the comparison's grid with the least loss of held-out images; None if ``stop`` asked to end.

    Raises:
        UserError: the data have no held-out part.
        RunError: no rate of the grid trains.
    """
    comparison = task.comparison
    steps = max(1, round(comparison.rate_share * task.steps))
    found = find_lr(
        task.run_in(work / "run"), comparison.rates, steps=steps, out=work / "rates", progress=False, stop=stop
    )
    if found is None:
        return None
    if found.best is None:
        told = "; ".join(f"{one.lr:g}: {one.trouble}" for one in found.tried)
        raise RunError(f"{task.title}: no rate of the grid trains ({told}); give lower ones")
    tried = tuple(RateTried(lr=one.lr, loss=one.loss) for one in found.tried)
    return RateChoice(lr=found.best.lr, steps=steps, tried=tried, edge=found.edge)


class Scored(Record):
    """What is kept of a score until the member is finished."""

    weights: str
    val_loss: float | None
    scores: dict[str, Score]
    evaluator: EvaluatorFacts
    images: str
    """A PNG in base64."""


def train_member(
    task: Task, work: Path, models: Path, evaluator: Evaluator, rate: RateChoice | None, stop: StopFlag
) -> Member | None:
    """Trains and scores a member, going on from what is in its folder; None if ``stop`` asked to end.

    Args:
        task: what it is.
        work: its folder, which may be removed afterwards.
        models: where its model folder goes.
        evaluator: prepared.
        rate: the choice of its learning rate; None takes the run's.
        stop: looked at between steps.

    Raises:
        UserError, RunError: it cannot be trained or scored.
    """
    base = task.run_in(work / "trunk")
    run = base.replace(training=base.training.replace(lr=rate.lr)) if rate else base
    clock = Clock.at(work / "seconds.json", dist.start(run.training.device).device.type)
    found: list[tuple[Stage, Scored]] = []
    parts = stages(task.comparison, task.steps)
    for number, stage in enumerate(parts):
        kept, branch = work / f"score-{number}.json", work / f"branch-{number}"
        if not kept.is_file():
            one = _scored(run, stage, branch, clock, evaluator, stop)
            if one is None:
                return None
            one.write(kept)
        found.append((stage, parse(Scored, json.loads(kept.read_text(encoding="utf-8")), where=kept)))
    ended = branch if parts[-1].branch < parts[-1].step else run.out
    with whole_folder(models / task.id, replace=True) as temporary:
        shutil.copytree(ended / "model", temporary, dirs_exist_ok=True)
    step, images = clock.step(), 3 * run.training.batch_size
    points = tuple(
        Point(
            fraction=stage.fraction,
            step=stage.step,
            macs=float(task.size.macs * images * stage.step),
            seconds=step * stage.step,
            val_loss=one.val_loss,
            weights=one.weights,
            scores=one.scores,
        )
        for stage, one in found
    )
    final = found[-1][1]
    return Member(
        comparison=task.comparison.name,
        system=task.size.system,
        seed=task.seed,
        size=task.size,
        lr=run.training.lr,
        rate=rate,
        steps=task.steps,
        batch_size=run.training.batch_size,
        step_seconds=step,
        clock=clock.kind,
        points=points,
        sample_ids_sha256=sample_ids(run),
        noise_sha256=noise(run),
        evaluator=final.evaluator,
        protocol=task.protocol,
        machine=f"{processor()}, {torch.get_num_threads()} thread(s)",
        versions=f"udit {udit.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        date=str(date.today()),
        model_folder=f"{models.name}/{task.id}",
        images=final.images,
    )


def _scored(run: Run, stage: Stage, branch: Path, clock: Clock, evaluator: Evaluator, stop: StopFlag) -> Scored | None:
    """Trains to a stage, along its branch, and scores it; None if ``stop`` asked to end."""
    if not clock.train(run.replace(training=run.training.replace(steps=stage.branch)), stop):
        return None
    folder = run.out
    if stage.branch < stage.step:
        folder = branch
        if not (branch / "run.yaml").is_file():
            decay = (stage.step - stage.branch) / stage.step
            changes = [f"training.steps={stage.step}", f"training.lr_schedule={{kind: wsd, decay: {decay!r}}}"]
            fork(run.out, branch, changes, checkpoint=stage.branch)
        if not clock.train(read_run_config(branch), stop):
            return None
    judged = evaluator.score(folder)
    shutil.rmtree(folder / "evaluation")
    sheet = grid(judged.images, columns=judged.columns, side=SIDE)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["val_loss"] for line in lines if line.get("val_loss") is not None]
    return Scored(
        weights=judged.weights,
        val_loss=losses[-1] if losses else None,
        scores=judged.scores,
        evaluator=judged.facts,
        images=base64.b64encode(png_bytes(sheet)).decode(),
    )


def sample_ids(run: Run) -> str:
    """sha256 of the numbers of a training's images in their order: of the first ``MOST_IDS``, and of the last step."""
    source = run.source()
    part = parts_of(source, run.data).train
    order = order_of(source, part, run.seed, run.training.batch_size)
    digest = hashlib.sha256()
    total, batch = run.training.steps * run.training.batch_size, run.training.batch_size
    for position in [*range(min(total, MOST_IDS)), *range(max(MOST_IDS, total - batch), total)]:
        digest.update(int(part[order[position]]).to_bytes(8, "little"))
    return digest.hexdigest()


def noise(run: Run) -> str:
    """sha256 of what the first and the last step of a training draw: times, noise and the first dropout number.

    Where each level of a network drops labels by itself it draws more of them, and so other noise than the others.
    """
    source = run.source()
    part = parts_of(source, run.data).train
    digest = hashlib.sha256()
    for start in sorted({0, run.training.steps - 1}):
        with contextlib.closing(batches_of(run, source, part, start)) as steps:
            for batch in next(steps):
                digest.update(repr(batch.ids).encode())
                for tensor in (batch.drawn["t"], batch.drawn["noise"], batch.drawn["uniform"][:, :1]):
                    digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
