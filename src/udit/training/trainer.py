"""The training run: a pure function of its configuration, cut anywhere and continued to the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Generator, Iterator
from typing import NoReturn, ParamSpec, TypeVar

from udit import dist
from udit.checkpoint import Checkpoint
from udit.data.batches import Batch
from udit.data.sources import Source, parts_of
from udit.errors import RunError, require_type
from udit.progress import progress_bar, progress_shown
from udit.run.config import Run
from udit.training.alarms import Bounds
from udit.training.batches import batches_of
from udit.training.capacity import check_memory, memory_errors_as_run_errors
from udit.training.files import RunFiles, disk_errors_as_run_errors
from udit.training.learner import Learner
from udit.training.opening import describe_training
from udit.training.precision import kernel_errors_as_run_errors, set_up
from udit.training.records import Outcome, StepRecord, StepReport, Timing
from udit.training.saving import ShardedSaves
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
        self._saves: ShardedSaves | None = None
        """Of a run whose weights are split, while it trains."""

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
        a ``stop`` request of one of them reaches all. On a CUDA GPU a step after which nothing is due is yielded while
        the next one runs, and leaving the loop then saves that one. Where weights are split (``parallel=fsdp``), no
        rank can save alone: a ``stop`` request saves, leaving the loop does not.

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
        with (
            self.world.together(),
            contextlib.closing(files),
            memory_errors_as_run_errors(self.run),
            self._saving(files),
            set_up(self.learner.run.training, self.world.device),
        ):
            start = self._resume(files)
            if start < self.run.training.steps:
                yield from self._loop(files, start, progress, stop or StopFlag())
            self.outcome = dataclasses.replace(self.outcome, warning=files.trouble())
            if self.outcome.signal is None:
                averaged, trained = self.learner.averaged(), self.learner.trained()
                self._on_main(files.finish, self.outcome.step, averaged, trained)
                self.outcome = dataclasses.replace(self.outcome, finished=True)

    def _resume(self, files: RunFiles) -> int:
        """Opens the run folder and gives every rank the state to go on from; returns the steps done."""
        self._on_main(files.open)
        if self.learner.parallel.splits:
            self.world.everywhere(files.check_seen)
        found = self._on_main(files.find)
        start = self.world.agree(found.step if found else 0)
        self.skipped = self.world.agree(int(found.manifest["skipped_in_a_row"]) if found else 0)
        self._load(files, found, start)
        if found is not None:
            files.resumed(found)
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
        reading = batches_of(self.run, self.source, self.parts.train, start, world.rank, world.size, self.learner.pins)
        with (
            contextlib.closing(reading) as stream,
            progress_bar(config.steps, "train", "step", initial=start, show=progress and world.is_main) as bar,
        ):
            began = time.perf_counter()
            try:
                for step, micro_batches in enumerate(stream, start=start + 1):
                    read = time.perf_counter()
                    for done, report in self._reports(step, micro_batches, stop.signal, files.alarms.bounds(step)):
                        timing = Timing(read - began, time.perf_counter() - began)
                        lr = self.learner.learning_rate(done - 1)
                        record = StepRecord.of(done, lr, report, self.source.names, config.batch_size, timing)
                        told = {"loss": f"{record.loss:.4g}", "images/s": f"{record.images_per_second:.0f}"}
                        bar.set_postfix(told, refresh=False)
                        bar.update()
                        leaves = bool(report.signal) and done == step
                        record = self._follow_up(files, record, report, leaves)
                        self.outcome = dataclasses.replace(self.outcome, step=done, signal=report.signal or None)
                        yield record
                        if leaves:
                            return
                    began = time.perf_counter()
            except (GeneratorExit, KeyboardInterrupt):
                # Without the other ranks, which may be anywhere, and only where weights and log are those of one step.
                alone = world.size == 1 or (world.is_main and not self.learner.parallel.splits)
                if alone and self.learner.steps_done is not None:
                    self._leave(files, start)
                raise

    def _reports(
        self, step: int, micro_batches: list[Batch], stop_signal: int, bounds: Bounds
    ) -> list[tuple[int, StepReport]]:
        """Takes step number ``step`` and returns the reports that are there, with their steps' numbers.

        On a GPU what a step found is read with the next one, unless something is due after this step, or that of the
        one before is out of the ordinary.
        """
        with kernel_errors_as_run_errors():
            before = self.learner.begin(step - 1, micro_batches, stop_signal, bounds)
        reports = [] if before is None else [(step - 1, before)]
        odd = before is not None and (before.bad_samples is not None or before.spike or before.signal)
        if not self.learner.defers or odd or self._due(step):
            report = self.learner.settle()
            assert report is not None, "a step has just begun"
            asked = report.signal or (before.signal if before else 0)
            reports.append((step, dataclasses.replace(report, signal=asked)))
        return reports

    def _due(self, step: int) -> bool:
        """Whether something is to be written or compared after a step."""
        config = self.run.training
        each = [config.log_every, config.save_every, config.sample_every, config.check_every]
        each += [config.posthoc_ema.every] if config.posthoc_ema else []
        return step == config.steps or any(step % every == 0 for every in each)

    def _leave(self, files: RunFiles, start: int) -> None:
        """Saves the steps that are whole, without the other ranks; one that is not reported yet is whole as well."""
        late = self.learner.settle(alone=True) if self.learner.defers else None
        done = self.learner.steps_done
        if late is not None and done == self.outcome.step + 1 and not self._due(done):
            self.skipped = self.skipped + 1 if late.bad_samples is not None else 0
            self.outcome = dataclasses.replace(self.outcome, step=done)
        if done == self.outcome.step > start:
            with disk_errors_as_run_errors(self.run.out):
                self._save_alone(files, done)

    def _follow_up(self, files: RunFiles, record: StepRecord, report: StepReport, leaves: bool) -> StepRecord:
        """Logs a step, draws and saves where that is due, and ends the run if losses stay non-finite.

        Returns:
            The record, with the validation loss where one was taken.
        """
        done = self._after_spike(files, record.step) if report.spike else ""
        config, step = self.run.training, record.step
        last = step == config.steps
        if self._saves is not None:
            self._saves.poll()
        if self.world.is_main:
            record = files.watched(record, report.spike, done)
        self.skipped = self.skipped + 1 if record.skipped else 0
        hopeless = self.skipped >= MAX_SKIPPED
        shows = (step % config.sample_every == 0 or last) and not hopeless
        if record.skipped and self.world.is_main:
            log.warning("step %d skipped: no finite loss or gradient with samples %s", step, _listed(record))
        if shows:
            averaged, trained = self.learner.averaged(), self.learner.trained()
            record = self._on_main(files.preview, record, averaged, trained) or record
        if shows or record.skipped or report.spike or step % config.log_every == 0:
            self._on_main(files.log, record)
        if step % config.check_every == 0:
            self._check_ranks(step)
        if config.posthoc_ema and (step % config.posthoc_ema.every == 0 or last):
            self._on_main(files.snapshot, step, self.learner.power_averages())
        if step % config.save_every == 0 or last or leaves or hopeless:
            self._save(files, self.learner.steps_done or step, wait=last or leaves or hopeless)
        if hopeless:
            self._on_main(self._give_up, record)
        return record

    def _after_spike(self, files: RunFiles, step: int) -> str:
        """Does what ``training.on_spike`` says about a step that was a spike; returns that in words."""
        if self.run.training.on_spike == "warn":
            return ""
        stays = "; the weights stay as they were"
        if self.run.training.on_spike == "skip":
            return stays
        if self._saves is not None:
            self._saves.finish()
        found = self._on_main(files.before, step)
        back = self.world.agree(found.step if found else 0)
        if not back:
            return f"{stays}, no checkpoint is older"
        self._load(files, found, back)
        self.learner.share(self.learner.steps_done or step)
        return f"; back to the weights of step {back}"

    def _load(self, files: RunFiles, found: Checkpoint | None, step: int) -> None:
        """Loads the checkpoint of a step that rank 0 has found; where weights are split, each rank its part."""
        if not self.learner.parallel.splits:
            self._on_main(self.learner.load, found)
            return
        with disk_errors_as_run_errors(self.run.out):
            here = self.world.everywhere(files.store.opened, step) if step else None
            self.world.everywhere(self.learner.load, here)

    def _save(self, files: RunFiles, step: int, wait: bool) -> None:
        """Writes a checkpoint; of weights that are split only begins to, unless it is to ``wait`` for its end."""
        if self._saves is None:
            self._on_main(files.save, step, self.skipped)
            return
        self._saves.begin(step, self.learner.tensors(), lambda: files.facts(self.skipped), files.watch.sound)
        if wait:
            self._saves.finish()

    def _save_alone(self, files: RunFiles, step: int) -> None:
        """Writes a checkpoint without the other ranks."""
        if self._saves is None:
            files.save(step, self.skipped)
        else:
            self._save(files, step, wait=True)

    @contextlib.contextmanager
    def _saving(self, files: RunFiles) -> Iterator[None]:
        """Context in which ``_save`` may be called; a checkpoint that is not complete at its end is removed."""
        splits, timeout = self.learner.parallel.splits, self.run.training.timeout
        self._saves = ShardedSaves(files.store, self.world, timeout) if splits else None
        try:
            yield
        finally:
            if self._saves is not None:
                self._saves.close()

    def _give_up(self, record: StepRecord) -> NoReturn:
        raise RunError(
            f"stopped after step {record.step}: {self.skipped} steps in a row had no finite loss or gradient, the last "
            f"with samples {_listed(record)}; the weights are untouched and saved; lower training.lr, or look at these "
            "samples"
        )

    def _check_ranks(self, step: int) -> None:
        if self.learner.parallel.differs(self.learner.model):
            raise RunError(f"weights differ between ranks after step {step}; resume from the last checkpoint")

    def _on_main(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """``World.on_main``, where an error of the disk is one line."""
        with disk_errors_as_run_errors(self.run.out):
            return self.world.on_main(action, *args, **kwargs)


def _listed(record: StepRecord) -> str:
    """The first names of a skipped step's samples."""
    names = record.skipped_samples
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
