"""The training loop: a run is a pure function of its configuration, cut anywhere and continued to the same bits."""

from __future__ import annotations

import contextlib
import logging
import platform
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from udit import __version__, dist
from udit.assemble import System, denoiser_of
from udit.checkpoint import Checkpoint, CheckpointStore
from udit.config.diffusion import FlowConfig
from udit.config.run import Run
from udit.config.system import SystemConfig
from udit.data.batches import Batch, batches
from udit.data.codec import Identity
from udit.data.sources import Source, split
from udit.diffusion.objective import Losses, draw, drop_labels, flow_loss, hybrid_loss
from udit.errors import RunError, UserError
from udit.models.build import build, checkpoint_activations
from udit.store import read_config, save
from udit.training import folder, preview
from udit.training.ema import EMA, decay_at
from udit.training.signals import StopFlag

log = logging.getLogger(__name__)
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
class StepReport:
    """What one step did, the same on every rank."""

    loss: float
    mse: float
    vb: float | None
    grad_norm: float
    bad_samples: tuple[int, ...] | None
    """Samples of a skipped step, as indices into the source; None for a step that was taken."""
    signal: int


class Trainer:
    """Trains the model of a run. ``fit`` starts, resumes, or finds that there is nothing left to do."""

    def __init__(self, run: Run, world: dist.World | None = None) -> None:
        """Takes the run; joins the peers of ``torchrun`` unless a world is given."""
        self.run = run
        self.world = world or dist.start(run.training.device, run.training.timeout)
        self.system_config = SystemConfig.of(run)
        self.loss = flow_loss if isinstance(run.diffusion, FlowConfig) else hybrid_loss
        self.codec = Identity()
        self.skipped = 0

    def fit(self, progress: bool = True) -> Outcome:
        """Trains to the run's last step.

        Args:
            progress: shows a bar on rank 0.

        Raises:
            UserError: the run folder, the data or the configuration cannot be used.
            RunError: the disk refuses a checkpoint, a rank was lost, or losses stay non-finite.
        """
        run, world = self.run, self.world
        self.source: Source = run.data.build()
        self.source.verify()
        self.parts = split(self.source.labels, self.source.names, run.data.judge_share, run.data.test_share)
        self._build()
        lock = self._on_main(self._open)
        try:
            start = self._resume()
            if start >= run.training.steps:
                self._on_main(self._finish)
                return Outcome(start)
            return self._loop(start, progress and world.is_main)
        finally:
            if lock:
                lock.release()

    # -- setting up -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        config, device = self.run.training, self.world.device
        self.model = build(self.run.model, seed=self.run.seed, device=device)
        checkpoint_activations(self.model, config.checkpoint_activations)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True if device.type == "cuda" else None,
        )
        self.ema = EMA(self.model) if self.world.is_main else None
        if config.deterministic and device.type == "cuda":
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False

    def _open(self) -> folder.RunLock:
        """Rank 0: the folder is ours, and what it holds belongs to this run."""
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        lock = folder.open_folder(self.run, bytes_needed=4 * weights + 1_000_000)
        try:
            old = folder.read_run(self.run.out)
            if old is not None:
                folder.check_resumable(old, self.run.plain(), self.run.out / "run.yaml")
            folder.write_run(self.run)
            self.store = CheckpointStore(self.run.out / "checkpoints", self.run.training.keep)
            self.store.sweep()
        except BaseException:
            lock.release()
            raise
        return lock

    def _resume(self) -> int:
        """Loads the newest whole checkpoint on rank 0 and gives it to all; returns the step to go on from."""
        found: Checkpoint | None = self._on_main(self._newest)
        step = self.world.agree(found.step if found else 0)
        if found:
            self.model.load_state_dict(found.tensors("model"), strict=True)
            assert self.ema is not None
            self.ema.load(found.tensors("ema"))
            self.skipped = int(found.manifest["skipped_in_a_row"])
            log.info("resuming from step %d", step)
        if step:
            self._load_optimizer(found)
            self.skipped = self.world.agree(self.skipped)
        self.world.broadcast(self.model.state_dict().values())
        self.network: nn.Module = self.model
        if self.run.training.compile:
            self.model.compile()
        if self.world.size > 1:
            # Searching for unused parameters keeps DDP from rebuilding its buckets after the first backward pass: the
            # order of summation would differ between an unbroken and a resumed run.
            warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            self.network = DistributedDataParallel(
                self.model,
                device_ids=[self.world.device.index] if self.world.device.type == "cuda" else None,
                find_unused_parameters=True,
            )
        self.denoiser = denoiser_of(self.system_config, self.network)
        return step

    def _newest(self) -> Checkpoint | None:
        found = self.store.newest()
        if found:
            self._check_facts(found)
        return found

    def _check_facts(self, found: Checkpoint) -> None:
        facts = found.manifest
        if facts["data"] != self.source.fingerprint:
            raise UserError(
                f"the data is not what {found.path} was trained on (pictures were added, removed or altered); put it back, or "
                "start anew with out=DIR"
            )
        for name, now in self._machine().items():
            if facts["machine"].get(name) != now:
                log.warning(
                    "%s was %s and is %s now: the run goes on with the same samples and noise, its weights equal to rounding "
                    "only", name, facts["machine"].get(name), now,
                )

    def _machine(self) -> dict[str, Any]:
        return {"torch": torch.__version__, "ranks": self.world.size, "threads": torch.get_num_threads()}

    def _load_optimizer(self, found: Checkpoint | None) -> None:
        """Rank 0's moments, by parameter name, on every rank."""
        saved = found.tensors("optim") if found else {}
        for name, parameter in self.model.named_parameters():
            state: dict[str, Tensor] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                blank = torch.zeros(()) if key == "step" else torch.zeros_like(parameter)
                if found:
                    # A parameter that never had a finite gradient has no state yet.
                    blank.copy_(saved[f"{key}.{name}"]) if f"{key}.{name}" in saved else None
                self.world.broadcast([blank])
                state[key] = blank.to(self.world.device) if key == "step" and self.world.device.type == "cuda" else blank
            if float(state["step"]):
                self.optimizer.state[parameter] = state

    def _on_main(self, action: Any) -> Any:
        """Runs ``action`` on rank 0; an error there is an error everywhere, so that no rank waits for a dead one."""
        result, error = None, None
        if self.world.is_main:
            try:
                result = action()
            except (UserError, RunError) as caught:
                error = caught
        if self.world.agree(int(error is not None)):
            raise error or PeerError("rank 0 gave up; its message says why")
        return result

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _loop(self, start: int, progress: bool) -> Outcome:
        run, config = self.run, self.run.training
        stream = batches(
            self.source,
            self.parts.train,
            seed=run.seed,
            start=start,
            stop=config.steps,
            global_batch=config.batch_size,
            rank=self.world.rank,
            world=self.world.size,
            accumulation=config.accumulation,
            flip=bool(getattr(run.data, "flip", False)),
            workers=config.workers,
        )
        self.network.train()
        step = start
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(StopFlag())
            self._open_logs(stack, start)
            bar = stack.enter_context(
                tqdm(total=config.steps, initial=start, desc="train", unit="step", disable=None if progress else True)
            )
            for micro_batches in stream:
                began = time.perf_counter()
                report = self.step(step, micro_batches, stop.signal)
                step += 1
                rate = config.batch_size / (time.perf_counter() - began)
                bar.update()
                bar.set_postfix(loss=f"{report.loss:.4f}", images_s=f"{rate:.0f}", refresh=False)
                self._after(step, report, rate)
                if report.signal:
                    break
        if not report.signal:
            self._on_main(self._finish)
        return Outcome(step, report.signal)

    def step(self, step: int, micro_batches: list[Batch], stop_signal: int = 0) -> StepReport:
        """One optimiser step, or none where any rank's loss or gradient is not finite.

        Args:
            step: steps done before it.
            micro_batches: this rank's.
            stop_signal: the signal this rank received, or 0.
        """
        config = self.run.training
        losses = [self._backward(batch, len(micro_batches), last=batch is micro_batches[-1]) for batch in micro_batches]
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        per_sample = torch.cat([part.loss for part in losses])
        sums = torch.stack([_total(part.loss for part in losses), _total(part.mse for part in losses), _total(part.vb for part in losses)])
        grad_norm, *totals = [float(v) for v in (norm, *sums)]
        finite = bool(torch.isfinite(per_sample).all()) and _is_finite(grad_norm)
        shared = self.world.sum(
            [not finite, stop_signal == signal.SIGINT, stop_signal == signal.SIGTERM, *(v if _is_finite(v) else 0.0 for v in totals)]
        )
        bad, interrupted, terminated = (count > 0 for count in shared[:3])
        bad_samples = self._bad_samples(micro_batches, per_sample) if bad else None
        if not bad:
            if config.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(step)
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.model, decay_at(step + 1, config.ema_decay))
        self.optimizer.zero_grad(set_to_none=True)
        loss, mse, vb = (total / config.batch_size for total in shared[3:])
        asked = signal.SIGINT if interrupted else signal.SIGTERM if terminated else 0
        has_vb = losses[0].vb is not None
        return StepReport(loss, mse, vb if has_vb else None, grad_norm, bad_samples, int(asked))

    def learning_rate(self, step: int) -> float:
        """Of the step after ``step`` done: linear warm-up, then constant."""
        config = self.run.training
        return config.lr * min(1.0, (step + 1) / config.lr_warmup) if config.lr_warmup else config.lr

    def losses(self, batch: Batch) -> Losses:
        """Per-sample losses of one micro-batch; every random number is keyed by (seed, position in the run)."""
        config, model, device = self.run.training, self.run.model, self.world.device
        x0 = self.codec.encode(batch.x)
        levels = getattr(model, "levels", 1) if config.independent_level_dropout else 1
        draws = draw(self.denoiser.schedule, x0.shape[1:], self.run.seed, "train", [(p,) for p in batch.positions], levels)
        y = None
        if model.num_classes:
            y = batch.y
            if model.null_label is not None and config.label_dropout:
                y = drop_labels(y, model.null_label, config.label_dropout, draws.uniform)
            y = y.to(device)
        half = config.precision == "bfloat16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            return self.loss(self.denoiser, x0.to(device), draws.t.to(device), draws.noise.to(device), y)

    def _backward(self, batch: Batch, parts: int, last: bool) -> Losses:
        waiting = isinstance(self.network, DistributedDataParallel) and not last
        with self.network.no_sync() if waiting else contextlib.nullcontext():  # type: ignore[operator, union-attr]
            losses = self.losses(batch)
            (losses.loss.mean() / parts).backward()
        return Losses(losses.loss.detach(), losses.mse.detach(), None if losses.vb is None else losses.vb.detach())

    def _bad_samples(self, micro_batches: list[Batch], per_sample: Tensor) -> tuple[int, ...]:
        """Indices, over all ranks, of samples with a non-finite loss; of the whole batch where only gradients are."""
        ids = torch.tensor([i for batch in micro_batches for i in batch.ids])
        every = self.world.gather(ids).flatten()
        finite = self.world.gather(torch.isfinite(per_sample).cpu().to(torch.int64)).flatten()
        named = every[finite == 0] if int((finite == 0).sum()) else every
        return tuple(sorted(int(i) for i in named))

    def _after(self, step: int, report: StepReport, rate: float) -> None:
        """What follows a step: log, pictures, checkpoint; and the end, if losses stay non-finite."""
        config = self.run.training
        last = step == config.steps
        shows = step % config.sample_every == 0 or last
        self.skipped = self.skipped + 1 if report.bad_samples is not None else 0
        hopeless = self.skipped >= MAX_SKIPPED
        if report.bad_samples is not None and self.world.is_main:
            log.warning("step %d skipped: no finite loss or gradient with samples %s", step, self._names(report.bad_samples))
        values = self._on_main(lambda: self._show(step)) if shows and not hopeless else None
        if self.world.is_main and (shows or step % config.log_every == 0 or report.bad_samples is not None):
            self._log(step, report, rate, values or {})
        if step % config.check_every == 0:
            self._check_ranks(step)
        if step % config.save_every == 0 or last or report.signal or hopeless:
            self._on_main(lambda: self._save(step))
        if hopeless:
            raise RunError(
                f"stopped after step {step}: {self.skipped} steps in a row had no finite loss or gradient, the last with samples "
                f"{self._names(report.bad_samples or ())}; the weights are untouched and saved; lower training.lr, or look at "
                "these samples"
            )

    def _names(self, ids: tuple[int, ...]) -> str:
        shown = ", ".join(str(self.source.names[i]) for i in ids[:8])
        return shown + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")

    def _check_ranks(self, step: int) -> None:
        """Compares all ranks' weights."""
        with torch.no_grad():
            total = torch.stack([p.double().sum() for p in self.model.parameters()]).sum().cpu()
        sums = self.world.gather(total[None]).flatten()
        if not bool((sums == sums[0]).all()):
            raise RunError(f"weights differ between ranks after step {step}; resume from the last checkpoint")

    # -- rank 0 writes ----------------------------------------------------------------------------------------------

    def _open_logs(self, stack: contextlib.ExitStack, start: int) -> None:
        if not self.world.is_main:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.metrics = folder.MetricsLog(self.run.out / "metrics.jsonl", start)
        stack.callback(self.metrics.close)
        self.board = SummaryWriter(self.run.out / "tensorboard", purge_step=start + 1)
        stack.callback(self.board.close)

    def _log(self, step: int, report: StepReport, rate: float, values: dict[str, Any]) -> None:
        line: dict[str, Any] = {"step": step, "lr": self.learning_rate(step - 1)}
        if report.bad_samples is None:
            line |= {"loss": report.loss, "mse": report.mse, "grad_norm": report.grad_norm}
            line |= {"vb": report.vb} if report.vb is not None else {}
        else:
            line["skipped_samples"] = [str(self.source.names[i]) for i in report.bad_samples]
        line |= values
        for key, value in line.items():
            if isinstance(value, float):
                self.board.add_scalar(key, value, step)
        self.metrics.write(line | {"images_per_second": round(rate, 1)})

    def _averaged(self) -> System:
        assert self.ema is not None
        return System(self.system_config, self.ema.model)

    def _show(self, step: int) -> dict[str, Any]:
        system = self._averaged()
        preview.save_grid(system, self.run.out / "samples" / f"step-{step:08d}.png", self.run.seed)
        loss = preview.validation_loss(system, self.loss, self.source, self.parts.test)
        return {} if loss is None else {"val_loss": loss}

    def _save(self, step: int) -> None:
        assert self.ema is not None
        moments = {
            f"{key}.{name}": self.optimizer.state[parameter][key]
            for name, parameter in self.model.named_parameters()
            for key in self.optimizer.state.get(parameter, {})
        }
        facts = {
            "skipped_in_a_row": self.skipped,
            "data": self.source.fingerprint,
            "machine": self._machine(),
            "versions": {"udit": __version__, "python": platform.python_version()},
            "run": self.run.plain(),
        }
        self.metrics.sync()
        tensors = {"model": self.model.state_dict(), "ema": self.ema.model.state_dict(), "optim": moments}
        self.store.save(step, tensors, facts)

    def _finish(self) -> None:
        """The model folder and the curve of a finished run."""
        config = self.system_config.model_copy(update={"steps": self.run.training.steps})
        target = self.run.out / "model"
        if not (target / "config.json").is_file() or read_config(target / "config.json") != config:
            assert self.ema is not None
            save(System(config, self.ema.model), target, raw=self.model)
        preview.save_curve(self.run.out / "metrics.jsonl", self.run.out / "loss.png")


class PeerError(RunError):
    """Another rank has told the user why."""


def _is_finite(value: float) -> bool:
    return value - value == 0


def _total(parts: Iterator[Tensor | None]) -> Tensor:
    found = [part.double().sum() for part in parts if part is not None]
    return torch.stack(found).sum() if found else torch.zeros((), dtype=torch.float64)
