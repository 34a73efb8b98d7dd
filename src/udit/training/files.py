"""What rank 0 writes into the run folder while a run trains."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udit import __version__, ops
from udit.adapters import AdapterEMA
from udit.assemble import System
from udit.checkpoint import Checkpoint, CheckpointStore, DamagedError
from udit.data.sources import Parts, Source
from udit.errors import RunError, UserError, by_product
from udit.files import sweep, whole_folder
from udit.ops.operator import current_names
from udit.run.config import ROUNDING_ONLY, Run
from udit.run.scorable import warn_before_training
from udit.run.start import check_beginning
from udit.run.system import SystemConfig
from udit.store import read_config, save
from udit.training import folder, preview
from udit.training.alarms import Alarm, Alarms
from udit.training.learner import Learner
from udit.training.opening import run_beside
from udit.training.records import CLOCK, StepRecord
from udit.training.tracking import Trackers
from udit.training.watch import Watch

log = logging.getLogger(__name__)


class RunFiles:
    """The files of one training: lock, configuration, checkpoints, logs, sample grids and the finished model.

    Every rank has one; ``open`` and all that follows it are for rank 0 alone.
    """

    def __init__(self, run: Run, source: Source, parts: Parts, learner: Learner) -> None:
        """Takes what is written about; touches no file."""
        self.run, self.source, self.parts, self.learner = run, source, parts, learner
        self.store = CheckpointStore(run.out / "checkpoints", run.training.keep)
        self.watch = Watch()
        """Of the steps behind the weights, as the next."""
        self.alarms = Alarms()
        self._unlogged: tuple[Alarm, ...] = ()
        """Alarms since the last line of the logs, of which there may be one in many steps."""
        self._lock: folder.RunLock | None = None
        self._metrics: folder.MetricsLog | None = None
        self._trackers = Trackers(run)

    def open(self) -> None:
        """Makes or finds the folder, locks it, and checks that what it holds belongs to this run.

        Raises:
            UserError: the folder cannot be written, is in use, is too full, or holds another run.
        """
        self._lock = folder.open_folder(self.run, bytes_needed=self.learner.bytes() + 1_000_000)
        old = folder.read_run(self.run.out)
        if old is not None and folder.has_trained(self.run.out):
            folder.check_resumable(old, self.run.plain(), self.run.out / "run.yaml")
        elif old is not None:
            folder.clear_untrained(self.run.out, old, self.run.plain())
        folder.write_run(self.run)
        self.store.sweep()
        sweep(self.run.out)

    def check_seen(self) -> None:
        """For every rank that writes into the folder: refuses one that this rank does not see.

        Raises:
            UserError: the folder that rank 0 has opened is not here.
        """
        if not (self.run.out / "run.yaml").is_file():
            raise UserError(
                f"rank {self.learner.world.rank} does not see the run folder {self.run.out} that rank 0 has made; with "
                "training.parallel=fsdp it must be on a file system that all machines share: give another out=DIR"
            )

    def find(self) -> Checkpoint | None:
        """The newest whole checkpoint; None without one.

        Raises:
            UserError: the checkpoint belongs to another run or to other data.
        """
        found = self.store.newest()
        if found is None:
            log.info("new run in %s%s", self.run.out, run_beside(self.run))
            folder.write_names(self.run.out, self.source)
            warn_before_training(self.run, self.source.labels, self.parts)
            batch, count = self.run.training.batch_size, len(self.parts.train)
            if batch > count:
                log.warning(
                    "training.batch_size is %d and there are %d training images: each step sees all of them, some "
                    "twice; a smaller batch learns faster",
                    *(batch, count),
                )
            check_beginning(self.run)
            return None
        folder.check_resumable(found.manifest["run"], self.run.plain(), found.path / "manifest.json")
        if found.manifest["data"] != self.source.fingerprint:
            raise UserError(
                f"the data is not what {found.path} was trained on ({folder.what_changed(self.run.out, self.source)}); "
                "put it back, or start a new run with out=DIR"
            )
        return found

    def resumed(self, found: Checkpoint) -> None:
        """Tells of a checkpoint that has been loaded, and goes on watching from there."""
        log.info("resuming from step %d", found.step)
        self.watch = Watch.of(found.manifest.get("watch"))
        self.alarms = Alarms.of(found.manifest.get("alarms"))
        if self.watch.trouble is not None:
            log.warning("%s", self.trouble())
        before, now = found.manifest["machine"], self._machine()
        if "kernels" in before:
            before = before | {"kernels": current_names(before["kernels"])}
        trained = found.manifest["run"]["training"]
        for key in ROUNDING_ONLY:
            before |= {f"training.{key}": trained.get(key)} if key in trained else {}
            now |= {f"training.{key}": getattr(self.run.training, key)} if key in trained else {}
        for name in now:
            if before.get(name) != now[name]:
                log.warning(
                    "%s was %s and is %s now: samples and noise stay the same, weights are equal up to rounding",
                    *(name, before.get(name), now[name]),
                )

    def _machine(self) -> dict[str, Any]:
        """What rounding depends on."""
        world = self.learner.world
        facts = {"torch": torch.__version__, "ranks": world.size, "threads": torch.get_num_threads()}
        kernels = ops.describe(world.device)
        return facts | ({"kernels": kernels} if kernels else {})

    def open_logs(self, step: int) -> None:
        """Opens the logs for the steps after ``step``; what they hold of later steps is removed."""
        self._metrics = folder.MetricsLog(self.run.out / "metrics.jsonl", step)
        self._trackers.open(step, self._metrics.dropped)

    def watched(self, record: StepRecord, spike: Sequence[int] | None = None, done: str = "") -> StepRecord:
        """The record, with a warning if the training has gone wrong and its alarms; the log has them too, once.

        Args:
            record: of the newest step.
            spike: samples of its highest losses, where it is a spike.
            done: about that, in words.
        """
        if self.watch.see(record):
            log.warning("%s", self.trouble())
        if (trouble := self.watch.trouble) is not None:
            record = dataclasses.replace(record, warning=trouble.brief)
        names = None if spike is None else [str(self.source.names[i]) for i in spike]
        return self._told(record, self.alarms.step(record, names, done))

    def before(self, step: int) -> Checkpoint | None:
        """The last checkpoint before a step; None without one.

        It is one that was due, so that a run that was interrupted meanwhile goes back to the same.
        """
        older = sorted((s for s in self.store.steps() if s < step), reverse=True)
        due = [s for s in older if s % self.run.training.save_every == 0]
        for candidate in due or older:
            with contextlib.suppress(DamagedError):
                return self.store.at(candidate)
        return None

    def _told(self, record: StepRecord, alarms: Sequence[Alarm]) -> StepRecord:
        """The record with further alarms, which are on standard error now, and in the next line of the logs."""
        for alarm in alarms:
            log.warning("step %d: %s", record.step, alarm.text)
        self._unlogged = (*self._unlogged, *alarms)
        return dataclasses.replace(record, alarms=(*record.alarms, *alarms))

    def trouble(self) -> str | None:
        """What has gone wrong though all numbers are finite, and what to do; None if nothing has."""
        trouble = self.watch.trouble
        if trouble is None:
            return None
        kept = max((step for step in self.store.steps() if step <= trouble.since - 2), default=None)
        kept_too = f"the checkpoint of step {kept}, before it, is kept" if kept else "no checkpoint is from before it"
        clip = " or set training.clip_norm" if self.run.training.clip_norm is None else ""
        return (
            f"{trouble.told()}; weights and their average (EMA) are damaged since then, and {kept_too}; lower "
            f"training.lr{clip}, and start a new run with out=DIR"
        )

    def log(self, record: StepRecord) -> None:
        """Adds a step to ``metrics.jsonl`` and to what ``training.trackers`` names."""
        assert self._metrics is not None, "open_logs comes first"
        alarms, self._unlogged = self._unlogged, ()
        line = dataclasses.replace(record, alarms=alarms).line()
        self._metrics.write(line)
        scalars = {key: value for key, value in line.items() if isinstance(value, float) and key not in CLOCK}
        self._trackers.write(record.step, scalars, dict(alarms))

    def preview(self, record: StepRecord, averaged: nn.Module | None, trained: nn.Module | None) -> StepRecord:
        """Draws the sample grid of a step; returns its record with the validation loss, and with what looks wrong.

        What fails is a warning, and tried again at the next preview; so is a tracker that failed before.

        Args:
            record: of the step.
            averaged: the network with the averaged weights.
            trained: the same with the trained ones.
        """
        step, loss, excess = record.step, None, None
        self._trackers.open(step - 1)
        run, system = self.run, self._system(step, averaged)
        with by_product(f"the sample grid of step {step}"):
            prompts = preview.some_prompts(self.source, self.parts, run.seed) if run.text else ()
            path = run.out / "samples" / f"step-{step:08d}.png"
            condition = preview.some_condition(system, self.source, self.parts, run.seed)
            images = preview.save_grid(system, path, run.seed, condition, prompts)
            self._trackers.image(step, path)
            excess = preview.patch_grid(images, system, self.source, self.parts.train, run.seed)
        with by_product(f"the validation loss of step {step}"):
            loss = preview.validation_loss(system, self.source, self.parts.test, run.seed)
        assert trained is not None, "rank 0 has it"
        alarms = self.alarms.preview(step, loss, trained, system.backbone, excess)
        return self._told(dataclasses.replace(record, val_loss=loss), alarms)

    def snapshot(self, step: int, tensors: dict[str, Tensor] | None) -> None:
        """Writes the power-function averages of a step."""
        assert self.learner.posthoc is not None
        self.learner.posthoc.snapshot(self.run.out / "posthoc", step, tensors)

    def save(self, step: int, skipped_in_a_row: int) -> None:
        """Writes the checkpoint of a step, unless it is there; of weights that are split see ``ShardedSaves``."""
        self.store.save(step, self.learner.tensors(), self.facts(skipped_in_a_row), spare=self.watch.sound)

    def facts(self, skipped_in_a_row: int) -> dict[str, Any]:
        """What a checkpoint's manifest says beside step and files; the log is on disk then."""
        if self._metrics is not None:
            self._metrics.sync()
        return {
            "skipped_in_a_row": skipped_in_a_row,
            "watch": self.watch.state(),
            "alarms": self.alarms.state(),
            "data": self.source.fingerprint,
            "machine": self._machine(),
            "versions": {"udit": __version__, "python": platform.python_version()},
            "run": self.run.plain(),
        }

    def finish(self, step: int, averaged: nn.Module | None, trained: nn.Module | None) -> None:
        """Writes the model folder and the loss curve of a finished run.

        Args:
            step: steps done.
            averaged: the network with the averaged weights.
            trained: the network with the trained weights.
        """
        system, target = self._system(step, averaged), self.run.out / "model"
        if not (target / "config.json").is_file() or read_config(target / "config.json") != system.config:
            save(system, target, raw=trained)
        self._save_adapter()
        with by_product("the loss curve"):
            preview.save_curve(self.run.out / "metrics.jsonl", self.run.out / "loss.png")

    def _save_adapter(self) -> None:
        """Writes the averages of an adapter as peft's folder, beside the model folder that has it merged."""
        ema = self.learner.ema
        if isinstance(ema, AdapterEMA):
            with whole_folder(self.run.out / "adapter", replace=True) as temporary:
                ema.adapter.save(temporary, ema.averages, self.run.init_from or "")

    def _system(self, step: int, averaged: nn.Module | None) -> System:
        assert averaged is not None, "rank 0 has the averaged weights"
        codec = self.learner.codec
        config = SystemConfig.of(self.run, step).replace(codec=codec.config)
        texts = self.learner.texts
        encoder = None if texts is None else texts.of
        return System(config, averaged.to(self.learner.world.device), codec, text_encoder=encoder)

    def close(self) -> None:
        """Closes the logs and frees the lock."""
        if self._metrics is not None:
            self._metrics.close()
        self._trackers.close()
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
