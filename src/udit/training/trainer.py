"""The training run: a pure function of its configuration, cut anywhere and continued to the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Generator
from typing import NoReturn, ParamSpec, TypeVar

from udit import dist
from udit.data.sources import Source, parts_of
from udit.errors import RunError, require_type
from udit.progress import progress_bar, progress_shown
from udit.run.config import Run
from udit.training.batches import batches_of
from udit.training.capacity import check_memory, memory_errors_as_run_errors
from udit.training.files import RunFiles, disk_errors_as_run_errors
from udit.training.learner import Learner
from udit.training.opening import describe_training
from udit.training.records import Outcome, StepRecord, StepReport, Timing
from udit.training.signals import StopFlag
from udit.training.source import verified_source
from udit.training.texts import texts_of

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
MAX_SKIPPED = 3
"""Steps without a finite loss or gradient, one after another, that stop a run."""


def train(run: Run, *, progress: bool = True, stop: StopFlag | None = None) -> Outcome:
    """Trains a run to its last step; called again, it resumes from the newest checkpoint.

    Started by ``torchrun`` or ``accelerate launch``, every process calls it. It installs no signal handler: Ctrl-C is
    Python's KeyboardInterrupt, which saves a checkpoint wherever the weights are those of a whole step. On a CPU,
    ``udit.dist.keep_freed_memory()`` beforehand makes steps up to a third faster, as the command ``udit train`` does.

    Args:
        run: what is trained, e.g. of ``udit.load_run("digits")``.
        progress: shows a bar on rank 0; a plain line now and then where standard error is no terminal.
        stop: looked at between steps; a request saves a checkpoint and ends the training.

    Returns:
        The outcome: steps done, whether the run is finished, its folder.

    Raises:
        UserError: the run folder, the data or the configuration cannot be used.
        RunError: the disk refuses a checkpoint, memory runs out, a rank was lost, or losses stay non-finite.
    """
    with progress_shown(progress):
        return Trainer(run).train(progress=progress, stop=stop)


class Trainer:
    """Trains the model of a run, step by step.

    ``for record in Trainer(run).steps():`` yields after each step. Leaving the loop, by ``break`` or an exception,
    saves a checkpoint and frees the run folder's lock; another loop, of this or of another trainer, resumes there.
    """

    def __init__(self, run: Run, world: dist.World | None = None, source: Source | None = None) -> None:
        """Reads the data and builds the model; touches no file of the run folder.

        Args:
            run: what is trained.
            world: this process's place among its peers; joins those of ``torchrun`` if not given.
            source: the run's data, of ``verified_source``; read and checked here if not given.

        Raises:
            UserError: the data or the configuration cannot be used, or a step takes more memory than there is.
            RunError: memory runs out.
        """
        require_type("run", run, Run, "give a Run, e.g. udit.load_run('digits')")
        self.run = run
        self.world = world or dist.start(run.training.device, run.training.timeout)
        self.source = source or verified_source(run)
        self.parts = parts_of(self.source, run.data)
        self.world.on_main(check_memory, run, self.world.size, self.world.device, dist.launched_here())
        self.texts = texts_of(run, self.source, self.world)
        self.learner = self._new_learner()
        self.outcome = Outcome(step=0, finished=False, out=run.out)
        """How far the training has come; changes with every step."""
        self.skipped = 0
        """Skipped steps, the latest ones in a row."""
        self._started = False

    def _new_learner(self) -> Learner:
        with self.world.together(), memory_errors_as_run_errors(self.run):
            return Learner(self.run, self.world, self.texts)

    def train(self, *, progress: bool = True, stop: StopFlag | None = None) -> Outcome:
        """Takes all steps that are left; see ``train``, the function.

        Raises:
            UserError, RunError: as ``steps``.
        """
        for _ in self.steps(progress=progress, stop=stop):
            pass
        return self.outcome

    def steps(self, *, progress: bool = False, stop: StopFlag | None = None) -> Generator[StepRecord]:
        """Resumes, or begins, and yields after each step; the model folder is written after the last one.

        A step is logged, and its checkpoint saved where one is due, before it is yielded. Leaving the loop saves a
        checkpoint of that step; so does a KeyboardInterrupt within a step, unless the weights are being changed at that
        moment. Any other error within a step leaves the checkpoints as they are. A generator that is bound to a name is
        left when it is closed (``contextlib.closing``). With several ranks, all of them must leave at the same step;
        a ``stop`` request of one of them reaches all.

        Args:
            progress: shows a bar on rank 0; a plain line now and then where standard error is no terminal.
            stop: looked at between steps; a request saves a checkpoint and ends the loop.

        Yields:
            The record of each step.

        Raises:
            UserError: the run folder or the data cannot be used.
            RunError: the disk refuses a checkpoint, memory runs out, a rank was lost, or losses stay non-finite.
        """
        if self._started:  # the state on disk counts, not what an earlier loop has left here
            self.learner = self._new_learner()
        self._started = True
        files = RunFiles(self.run, self.source, self.parts, self.learner)
        with self.world.together(), contextlib.closing(files), memory_errors_as_run_errors(self.run):
            start = self._resume(files)
            if start < self.run.training.steps:
                yield from self._loop(files, start, progress, stop or StopFlag())
            self.outcome = dataclasses.replace(self.outcome, warning=files.trouble())
            if self.outcome.signal is None:
                self._on_main(files.finish, self.outcome.step)
                self.outcome = dataclasses.replace(self.outcome, finished=True)

    def _resume(self, files: RunFiles) -> int:
        """Opens the run folder and gives every rank the state to go on from; returns the steps done."""
        self._on_main(files.open)
        found = self._on_main(files.resume)
        start = self.world.agree(found.step if found else 0)
        self.skipped = self.world.agree(int(found.manifest["skipped_in_a_row"]) if found else 0)
        self.learner.share(start)
        self.outcome = Outcome(step=start, finished=False, out=self.run.out)
        return start

    def _loop(self, files: RunFiles, start: int, progress: bool, stop: StopFlag) -> Generator[StepRecord]:
        """Steps ``start`` and on, until the last one or a signal."""
        config, world = self.run.training, self.world
        if asked := self.learner.agree_on_signal(stop.signal):  # while the checkpoint was read
            self.outcome = dataclasses.replace(self.outcome, signal=asked)
            return
        self._on_main(files.open_logs, start)
        if world.is_main:
            log.info("%s", describe_training(self.learner, self.source, len(self.parts.train)))
        reading = batches_of(self.run, self.source, self.parts.train, start, world.rank, world.size)
        with (
            contextlib.closing(reading) as stream,
            progress_bar(config.steps, "train", "step", initial=start, show=progress and world.is_main) as bar,
        ):
            began = time.perf_counter()
            try:
                for step, micro_batches in enumerate(stream, start=start + 1):
                    read = time.perf_counter()
                    report = self.learner.step(step - 1, micro_batches, stop.signal, files.alarms.bounds())
                    timing = Timing(read - began, time.perf_counter() - began)
                    lr = self.learner.learning_rate(step - 1)
                    record = StepRecord.of(step, lr, report, self.source.names, config.batch_size, timing)
                    told = {"loss": f"{record.loss:.4g}", "images/s": f"{record.images_per_second:.0f}"}
                    bar.set_postfix(told, refresh=False)
                    bar.update()
                    record = self._follow_up(files, record, report)
                    self.outcome = dataclasses.replace(self.outcome, step=step, signal=report.signal or None)
                    yield record
                    if report.signal:
                        return
                    began = time.perf_counter()
            except (GeneratorExit, KeyboardInterrupt):
                # Without the other ranks, which may be anywhere, and only where weights and log are those of one step.
                done = self.outcome.step
                if world.is_main and self.learner.steps_done == done > start:
                    with disk_errors_as_run_errors(self.run.out):
                        files.save(done, self.skipped)
                raise

    def _follow_up(self, files: RunFiles, record: StepRecord, report: StepReport) -> StepRecord:
        """Logs a step, draws and saves where that is due, and ends the run if losses stay non-finite.

        Returns:
            The record, with the validation loss where one was taken.
        """
        done = self._after_spike(files, record.step) if report.spike else ""
        config, step = self.run.training, record.step
        last = step == config.steps
        if self.world.is_main:
            record = files.watched(record, report.spike, done)
        self.skipped = self.skipped + 1 if record.skipped else 0
        hopeless = self.skipped >= MAX_SKIPPED
        shows = (step % config.sample_every == 0 or last) and not hopeless
        if record.skipped and self.world.is_main:
            log.warning("step %d skipped: no finite loss or gradient with samples %s", step, _listed(record))
        if shows:
            record = self._on_main(files.preview, record) or record
        if shows or record.skipped or report.spike or step % config.log_every == 0:
            self._on_main(files.log, record)
        if step % config.check_every == 0:
            self._check_ranks(step)
        if config.posthoc_ema and (step % config.posthoc_ema.every == 0 or last):
            self._on_main(files.snapshot, step)
        if step % config.save_every == 0 or last or report.signal or hopeless:
            self._on_main(files.save, step, self.skipped)
        if hopeless:
            self._on_main(self._give_up, record)
        return record

    def _after_spike(self, files: RunFiles, step: int) -> str:
        """Does what ``training.on_spike`` says about a step that was a spike; returns that in words."""
        if self.run.training.on_spike == "warn":
            return ""
        if self.run.training.on_spike == "skip":
            return "; the weights stay as they were"
        back = self._on_main(files.go_back, step)
        self.learner.share(step)
        return (
            f"; back to the weights of step {back}"
            if back
            else "; the weights stay as they were, no checkpoint is older"
        )

    def _give_up(self, record: StepRecord) -> NoReturn:
        raise RunError(
            f"stopped after step {record.step}: {self.skipped} steps in a row had no finite loss or gradient, the last "
            f"with samples {_listed(record)}; the weights are untouched and saved; lower training.lr, or look at these "
            "samples"
        )

    def _check_ranks(self, step: int) -> None:
        sums = self.world.gather(self.learner.weight_sum())
        if not bool((sums == sums[0]).all()):
            raise RunError(f"weights differ between ranks after step {step}; resume from the last checkpoint")

    def _on_main(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """``World.on_main``, where an error of the disk is one line."""
        with disk_errors_as_run_errors(self.run.out):
            return self.world.on_main(action, *args, **kwargs)


def _listed(record: StepRecord) -> str:
    """The first names of a skipped step's samples."""
    names = record.skipped_samples
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
