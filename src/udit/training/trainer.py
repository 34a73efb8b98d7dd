"""The training run: a pure function of its configuration, cut anywhere and continued to the same bits."""

from __future__ import annotations

import contextlib
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
from tqdm.auto import tqdm

from udit import __version__, dist, ops
from udit.assemble import System
from udit.checkpoint import Checkpoint, CheckpointStore
from udit.data.sources import Source, parts_of
from udit.errors import PeerError, RunError, UserError
from udit.files import sweep
from udit.ops.operator import current_names
from udit.run.config import Run
from udit.run.system import SystemConfig
from udit.store import read_config, save
from udit.training import folder, preview
from udit.training.batches import batches_of
from udit.training.learner import Learner, StepReport
from udit.training.signals import StopFlag

log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_SKIPPED = 3
"""Steps without a finite loss or gradient, one after another, that stop a run."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    step: int
    """Optimiser steps done, in all."""
    signal: int = 0
    """The signal that asked to stop, or 0: the run is finished."""


@dataclass(frozen=True)
class Pace:
    """How fast a step was on this rank."""

    rate: float
    """Pictures a second over all ranks, waiting for them included."""
    waited: float
    """Share of the step's time that passed before its pictures were there."""

    @classmethod
    def of(cls, count: int, began: float, read: float, ended: float) -> Pace:
        """Of ``count`` pictures and the seconds of a clock when they were asked for, there, and learnt from."""
        return cls(count / (ended - began), (read - began) / (ended - began))


class Trainer:
    """Trains the model of a run. ``fit`` starts, resumes, or finds that there is nothing left to do."""

    def __init__(self, run: Run, world: dist.World | None = None, source: Source | None = None) -> None:
        """Takes the run; joins the peers of ``torchrun`` unless a world is given.

        Args:
            run: what is trained.
            world: this process's place among its peers.
            source: the run's data, verified; built and verified by ``fit`` if not given.
        """
        self.run = run
        self.given = source
        self.world = world or dist.start(run.training.device, run.training.timeout)
        self.skipped = 0

    def fit(self, progress: bool = True) -> Outcome:
        """Trains to the run's last step.

        Args:
            progress: shows a bar on rank 0.

        Raises:
            UserError: the run folder, the data or the configuration cannot be used.
            RunError: the disk refuses a checkpoint, a rank was lost, or losses stay non-finite.
        """
        with self.world.together():
            return self._fit(progress)

    def _fit(self, progress: bool) -> Outcome:
        run, world = self.run, self.world
        self.source: Source = self.given or run.source()
        if self.given is None:
            self.source.verify()
        self.parts = parts_of(self.source, run.data)
        self.learner = Learner(run, world)
        lock = self._on_main(self._open)
        try:
            found = self._on_main(self._resume)
            start = world.agree(found.step if found else 0)
            self.skipped = world.agree(int(found.manifest["skipped_in_a_row"]) if found else 0)
            self.learner.share(start)
            if start >= run.training.steps:
                self._on_main(lambda: self._finish(start))
                return Outcome(start)
            return self._loop(start, progress and world.is_main)
        finally:
            if lock:
                lock.release()

    # -- setting up -------------------------------------------------------------------------------------------------

    def _open(self) -> folder.RunLock:
        """Rank 0: the folder is ours, and what it holds belongs to this run."""
        lock = folder.open_folder(self.run, bytes_needed=self.learner.bytes() + 1_000_000)
        try:
            old = folder.read_run(self.run.out)
            if old is not None:
                folder.check_resumable(old, self.run.plain(), self.run.out / "run.yaml")
            folder.write_run(self.run)
            self.store = CheckpointStore(self.run.out / "checkpoints", self.run.training.keep)
            self.store.sweep()
            sweep(self.run.out)
        except BaseException:
            lock.release()
            raise
        return lock

    def _resume(self) -> Checkpoint | None:
        """Rank 0: takes the newest whole checkpoint, if it belongs to this run and its data."""
        found = self.store.newest()
        if found is None:
            folder.write_pictures(self.run.out, self.source)
            if self.run.init_from is not None:
                self.learner.start_from_trained()
            return None
        folder.check_resumable(found.manifest["run"], self.run.plain(), found.path / "manifest.json")
        if found.manifest["data"] != self.source.fingerprint:
            raise UserError(
                f"the data is not what {found.path} was trained on ({folder.what_changed(self.run.out, self.source)}); "
                "put it back, or start anew with out=DIR"
            )
        self.learner.restore(found)
        log.info("resuming from step %d", found.step)
        before, now = found.manifest["machine"], self._machine()
        if "kernels" in before:
            before = before | {"kernels": current_names(before["kernels"])}
        for name in now:
            if before.get(name) != now[name]:
                log.warning(
                    "%s was %s and is %s now: samples and noise stay the same, weights are equal to rounding only",
                    *(name, before.get(name), now[name]),
                )
        return found

    def _machine(self) -> dict[str, Any]:
        facts = {"torch": torch.__version__, "ranks": self.world.size, "threads": torch.get_num_threads()}
        kernels = ops.describe(self.world.device)
        return facts | ({"kernels": kernels} if kernels else {})

    def _on_main(self, action: Callable[[], T]) -> T | None:
        """Runs ``action`` on rank 0; an error there is an error everywhere, so that no rank waits for a dead one."""
        result, error = None, None
        if self.world.is_main:
            try:
                result = action()
            except (UserError, RunError) as caught:
                error = caught
            except OSError as caught:
                cause = f"{caught.strerror or caught}" + (f" ({caught.filename})" if caught.filename else "")
                error = RunError(f"cannot write to {self.run.out}: {cause}; mend that and run the same command again")
        if self.world.agree(int(error is not None)):
            raise error or PeerError("rank 0 gave up; its message says why")
        return result

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _loop(self, start: int, progress: bool) -> Outcome:
        run, config, world = self.run, self.run.training, self.world
        stream = batches_of(run, self.source, self.parts.train, start, world.rank, world.size)
        step = start
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(StopFlag())
            self._on_main(lambda: self._open_logs(stack, start))
            off = None if progress else True
            bar = stack.enter_context(tqdm(total=config.steps, initial=start, desc="train", unit="step", disable=off))
            began = time.perf_counter()
            for micro_batches in stream:
                read = time.perf_counter()
                report = self.learner.step(step, micro_batches, stop.signal)
                step += 1
                pace = Pace.of(config.batch_size, began, read, time.perf_counter())
                bar.set_postfix(loss=f"{report.loss:.4f}", images_s=f"{pace.rate:.0f}", refresh=False)
                bar.update()
                self._after(step, report, pace)
                if report.signal:
                    return Outcome(step, report.signal)
                began = time.perf_counter()
        self._on_main(lambda: self._finish(step))
        return Outcome(step)

    def _after(self, step: int, report: StepReport, pace: Pace) -> None:
        """What follows a step: log, pictures, checkpoint; and the end, if losses stay non-finite."""
        config = self.run.training
        last = step == config.steps
        skipped = report.bad_samples is not None
        self.skipped = self.skipped + 1 if skipped else 0
        hopeless = self.skipped >= MAX_SKIPPED
        shows = (step % config.sample_every == 0 or last) and not hopeless
        if skipped and self.world.is_main:
            log.warning("step %d skipped: no finite loss or gradient with samples %s", step, self._names(report))
        values = self._on_main(lambda: self._show(step)) if shows else None
        if shows or skipped or step % config.log_every == 0:
            self._on_main(lambda: self._log(step, report, pace, values or {}))
        if step % config.check_every == 0:
            self._check_ranks(step)
        if config.posthoc_ema and (step % config.posthoc_ema.every == 0 or last):
            self._on_main(lambda: self._snapshot(step))
        if step % config.save_every == 0 or last or report.signal or hopeless:
            self._on_main(lambda: self._save(step))
        if hopeless:
            self._on_main(lambda: self._give_up(step, report))

    def _give_up(self, step: int, report: StepReport) -> NoReturn:
        raise RunError(
            f"stopped after step {step}: {self.skipped} steps in a row had no finite loss or gradient, the last with "
            f"samples {self._names(report)}; the weights are untouched and saved; lower training.lr, or look at these "
            "samples"
        )

    def _names(self, report: StepReport) -> str:
        ids = report.bad_samples or ()
        shown = ", ".join(str(self.source.names[i]) for i in ids[:8])
        return shown + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")

    def _check_ranks(self, step: int) -> None:
        sums = self.world.gather(self.learner.weight_sum())
        if not bool((sums == sums[0]).all()):
            raise RunError(f"weights differ between ranks after step {step}; resume from the last checkpoint")

    # -- rank 0 writes ----------------------------------------------------------------------------------------------

    def _open_logs(self, stack: contextlib.ExitStack, start: int) -> None:
        from udit.training.events import EventLog

        self.metrics = folder.MetricsLog(self.run.out / "metrics.jsonl", start)
        stack.callback(self.metrics.close)
        self.events = EventLog(self.run.out / "tensorboard", start)
        stack.callback(self.events.close)

    def _log(self, step: int, report: StepReport, pace: Pace, values: dict[str, Any]) -> None:
        line: dict[str, Any] = {"step": step, "lr": self.learner.learning_rate(step - 1)}
        if report.bad_samples is None:
            line |= {"loss": report.loss, "mse": report.mse, "grad_norm": report.grad_norm}
            line |= {"vb": report.vb} if report.vb is not None else {}
        else:
            line["skipped_samples"] = [str(self.source.names[i]) for i in report.bad_samples]
        line |= values
        self.metrics.write(line | {"images_per_second": round(pace.rate, 1), "waited": round(pace.waited, 4)})
        self.events.write(step, {key: value for key, value in line.items() if isinstance(value, float)})

    def _averaged(self, step: int) -> System:
        assert self.learner.ema is not None
        codec = self.learner.codec
        config = SystemConfig.of(self.run, step).replace(codec=codec.config)
        return System(config, self.learner.ema.model, codec)

    def _show(self, step: int) -> dict[str, Any]:
        run, system = self.run, self._averaged(step)
        preview.save_grid(system, run.out / "samples" / f"step-{step:08d}.png", run.seed)
        loss = preview.validation_loss(system, self.learner.loss, self.source, self.parts.test, run.seed)
        return {} if loss is None else {"val_loss": loss}

    def _snapshot(self, step: int) -> None:
        assert self.learner.posthoc is not None
        self.learner.posthoc.snapshot(self.run.out / "posthoc", step)

    def _save(self, step: int) -> None:
        facts = {
            "skipped_in_a_row": self.skipped,
            "data": self.source.fingerprint,
            "machine": self._machine(),
            "versions": {"udit": __version__, "python": platform.python_version()},
            "run": self.run.plain(),
        }
        self.metrics.sync()
        self.store.save(step, self.learner.tensors(), facts)

    def _finish(self, step: int) -> None:
        """The model folder and the curve of a finished run."""
        system, target = self._averaged(step), self.run.out / "model"
        if not (target / "config.json").is_file() or read_config(target / "config.json") != system.config:
            save(system, target, raw=self.learner.model)
        preview.save_curve(self.run.out / "metrics.jsonl", self.run.out / "loss.png")
