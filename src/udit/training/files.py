"""What rank 0 writes into the run folder while a run trains."""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from udit import __version__, ops
from udit.assemble import System
from udit.checkpoint import Checkpoint, CheckpointStore
from udit.data.sources import Parts, Source
from udit.errors import RunError, UserError
from udit.files import sweep
from udit.ops.operator import current_names
from udit.run.config import Run
from udit.run.scorable import warn_before_training
from udit.run.system import SystemConfig
from udit.store import read_config, save
from udit.training import folder, preview
from udit.training.learner import Learner
from udit.training.records import CLOCK, StepRecord

if TYPE_CHECKING:
    from udit.training.events import EventLog

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Logs:
    metrics: folder.MetricsLog
    events: EventLog

    def close(self) -> None:
        self.metrics.close()
        self.events.close()


class RunFiles:
    """The files of one training: lock, configuration, checkpoints, logs, sample grids and the finished model.

    Every rank has one; ``open`` and all that follows it are for rank 0 alone.
    """

    def __init__(self, run: Run, source: Source, parts: Parts, learner: Learner) -> None:
        """Takes what is written about; touches no file."""
        self.run, self.source, self.parts, self.learner = run, source, parts, learner
        self.store = CheckpointStore(run.out / "checkpoints", run.training.keep)
        self._lock: folder.RunLock | None = None
        self._logs: _Logs | None = None

    def open(self) -> None:
        """Makes or finds the folder, locks it, and checks that what it holds belongs to this run.

        Raises:
            UserError: the folder cannot be written, is in use, is too full, or holds another run.
        """
        self._lock = folder.open_folder(self.run, bytes_needed=self.learner.bytes() + 1_000_000)
        old = folder.read_run(self.run.out)
        if old is not None:
            folder.check_resumable(old, self.run.plain(), self.run.out / "run.yaml")
        folder.write_run(self.run)
        self.store.sweep()
        sweep(self.run.out)

    def resume(self) -> Checkpoint | None:
        """Loads the newest whole checkpoint into the learner; None, and the run's first weights, without one.

        Raises:
            UserError: the checkpoint belongs to another run or to other data.
        """
        found = self.store.newest()
        if found is None:
            folder.write_names(self.run.out, self.source)
            warn_before_training(self.run, self.source.labels, self.parts)
            if self.run.init_from is not None:
                self.learner.start_from_trained()
            return None
        folder.check_resumable(found.manifest["run"], self.run.plain(), found.path / "manifest.json")
        if found.manifest["data"] != self.source.fingerprint:
            raise UserError(
                f"the data is not what {found.path} was trained on ({folder.what_changed(self.run.out, self.source)}); "
                "put it back, or start a new run with out=DIR"
            )
        self.learner.restore(found)
        log.info("resuming from step %d", found.step)
        before, now = found.manifest["machine"], self._machine()
        if "kernels" in before:
            before = before | {"kernels": current_names(before["kernels"])}
        for name in now:
            if before.get(name) != now[name]:
                log.warning(
                    "%s was %s and is %s now: samples and noise stay the same, weights are equal up to rounding",
                    *(name, before.get(name), now[name]),
                )
        return found

    def _machine(self) -> dict[str, Any]:
        """What rounding depends on."""
        world = self.learner.world
        facts = {"torch": torch.__version__, "ranks": world.size, "threads": torch.get_num_threads()}
        kernels = ops.describe(world.device)
        return facts | ({"kernels": kernels} if kernels else {})

    def open_logs(self, step: int) -> None:
        """Opens the logs for the steps after ``step``; what they hold of later steps is removed."""
        from udit.training.events import EventLog

        metrics = folder.MetricsLog(self.run.out / "metrics.jsonl", step)
        try:
            self._logs = _Logs(metrics, EventLog(self.run.out / "tensorboard", step))
        except BaseException:
            metrics.close()
            raise

    def log(self, record: StepRecord) -> None:
        """Adds a step to ``metrics.jsonl`` and to TensorBoard's events."""
        assert self._logs is not None, "open_logs comes first"
        line = record.line()
        self._logs.metrics.write(line)
        scalars = {key: value for key, value in line.items() if isinstance(value, float) and key not in CLOCK}
        self._logs.events.write(record.step, scalars)

    def preview(self, step: int) -> float | None:
        """Draws the sample grid of a step and returns the validation loss, None without held-out images."""
        run, system = self.run, self._averaged(step)
        preview.save_grid(system, run.out / "samples" / f"step-{step:08d}.png", run.seed)
        return preview.validation_loss(system, self.source, self.parts.test, run.seed)

    def snapshot(self, step: int) -> None:
        """Writes the power-function averages of a step."""
        assert self.learner.posthoc is not None
        self.learner.posthoc.snapshot(self.run.out / "posthoc", step)

    def save(self, step: int, skipped_in_a_row: int) -> None:
        """Writes the checkpoint of a step, unless it is there."""
        facts = {
            "skipped_in_a_row": skipped_in_a_row,
            "data": self.source.fingerprint,
            "machine": self._machine(),
            "versions": {"udit": __version__, "python": platform.python_version()},
            "run": self.run.plain(),
        }
        if self._logs is not None:
            self._logs.metrics.sync()
        self.store.save(step, self.learner.tensors(), facts)

    def finish(self, step: int) -> None:
        """Writes the model folder and the loss curve of a finished run."""
        system, target = self._averaged(step), self.run.out / "model"
        if not (target / "config.json").is_file() or read_config(target / "config.json") != system.config:
            save(system, target, raw=self.learner.model)
        preview.save_curve(self.run.out / "metrics.jsonl", self.run.out / "loss.png")

    def _averaged(self, step: int) -> System:
        assert self.learner.ema is not None
        codec = self.learner.codec
        config = SystemConfig.of(self.run, step).replace(codec=codec.config)
        return System(config, self.learner.ema.model, codec)

    def close(self) -> None:
        """Closes the logs and frees the lock."""
        if self._logs is not None:
            self._logs.close()
        if self._lock is not None:
            self._lock.release()


@contextlib.contextmanager
def disk_errors_as_run_errors(out: Path) -> Iterator[None]:
    """Context in which an error of the disk is one line of the run's.

    Raises:
        RunError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        cause = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        raise RunError(f"cannot write to {out}: {cause}; fix that and run the same command again") from None
