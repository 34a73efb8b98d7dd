"""Network, optimiser and averaged weights of a run, and the training step that changes them."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from udit import sharding
from udit.assemble import denoiser_of, objective_of
from udit.checkpoint import Checkpoint
from udit.data.batches import Batch
from udit.diffusion.objective import Losses
from udit.dist import World
from udit.errors import UserError
from udit.models.build import build, checkpoint_activations, compile_blocks
from udit.nn.dropout import dropout_keys
from udit.optim.groups import choices_of
from udit.run.config import Run
from udit.run.system import SystemConfig
from udit.training.alarms import Bounds
from udit.training.ema import EMA, decay_at
from udit.training.parallel import parallel_of
from udit.training.posthoc import PowerAverages
from udit.training.records import StepReport
from udit.training.start import start_from

log = logging.getLogger(__name__)
NAMED = 8
"""Samples of a spike that are named, those with the highest losses."""
_NONE = Bounds()


class Learner:
    """The weights of a run on this rank. Its state is the network's, the optimiser's and the averages'.

    With DDP rank 0 alone has averages; with FSDP every rank has a part of everything.
    """

    def __init__(self, run: Run, world: World) -> None:
        """Builds everything with the weights of step 0; ``share`` comes before the first step."""
        config, device = run.training, world.device
        self.run, self.world = run, world
        self.codec = run.codec.build()
        self.objective = objective_of(run)
        self.parallel = parallel_of(run, world)
        self.model = self.parallel.build(run.model, run.seed)
        checkpoint_activations(self.model, config.checkpoint_activations)
        choices = choices_of(self.model, config.groups, config.lr_layer_decay, config.weight_decay)
        self.optimizer = config.optimizer.build(self.model, choices, config.betas)
        self.ema = EMA(self.model) if self.parallel.averages else None
        posthoc = config.posthoc_ema if self.parallel.averages else None
        self.posthoc = PowerAverages(self.model, posthoc) if posthoc else None
        if config.deterministic and device.type == "cuda":
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
        if config.compile:
            compile_blocks(self.model)
        self.network = self.parallel.network(self.model)
        """The model, or what averages its gradients over ranks; both hold the same weights."""
        self.denoiser = denoiser_of(SystemConfig.of(run), self.network)
        self.steps_done: int | None = 0
        """Steps that weights, optimiser and averages have behind them; None while a step changes them."""

    def bytes(self) -> int:
        """Size of a checkpoint: weights, EMA, the optimiser's state, and the averages of ``posthoc_ema``."""
        posthoc = self.run.training.posthoc_ema
        copies = 2 + len(posthoc.sigma_rels if posthoc else ())
        return copies * sum(p.numel() * p.element_size() for p in self.model.parameters()) + self.optimizer.bytes

    def load(self, found: Checkpoint | None) -> None:
        """Loads a checkpoint, or the weights that a new run starts from; with DDP on rank 0 only.

        Raises:
            UserError: as ``restore`` and ``start_from_trained``.
        """
        if found is not None:
            self.restore(found)
        elif self.run.init_from is not None:
            self.start_from_trained()

    def restore(self, found: Checkpoint) -> None:
        """Loads a checkpoint; with DDP on rank 0 only, as ``share`` sends it to the others.

        Raises:
            UserError: the checkpoint holds another model.
        """
        assert self.ema is not None
        try:
            if self.parallel.splits:
                self._restore_parts(found)
                return
            self.model.load_state_dict(found.tensors("model"), strict=True)
            self.ema.load(found.tensors("ema"))
            if self.posthoc is not None:
                self.posthoc.load(found.tensors("posthoc"))
        except RuntimeError as error:
            if isinstance(error, torch.distributed.DistError):
                raise
            detail = " ".join(str(error).split())[:200]
            raise UserError(
                f"{found.path} holds another model than this run's ({detail}); remove it, or start a new run with "
                "out=DIR"
            ) from None
        self.optimizer.load(found.tensors("optim"))

    def _restore_parts(self, found: Checkpoint) -> None:
        """Loads this rank's part of a checkpoint; all ranks must call it.

        Raises:
            RuntimeError: the checkpoint holds another model.
        """
        state = {part: dict(tensors) for part, tensors in self.tensors().items() if part != "optim"}
        for part, tensors in state.items():
            if strange := found.names(part) ^ tensors.keys():
                raise RuntimeError(f"{part} differs in {', '.join(sorted(strange)[:3])}")
        there = found.names("optim")
        moments = {name: tensor for name, tensor in self.optimizer.blank().items() if name in there}
        found.read_into(state | {"optim": moments}, self.world)
        self.optimizer.load(moments)

    def start_from_trained(self) -> None:
        """Initialises the weights from ``run.init_from``; with DDP on rank 0 only, as ``share`` sends them on.

        Raises:
            UserError: see ``start_from``.
        """
        split = self.parallel.splits
        model = build(self.run.model, seed=self.run.seed) if split else self.model
        for line in start_from(model, self.run):
            if self.world.is_main:
                log.info("%s", line)
        if split:
            values = model.state_dict()
            for name, tensor in self.model.state_dict().items():
                with torch.no_grad():
                    sharding.put(tensor, values[name])
        self.ema = EMA(self.model)

    def share(self, step: int) -> None:
        """Sends rank 0's state to every rank, unless each has its own, and makes the network ready to train.

        Args:
            step: steps done; the same on every rank.
        """
        if not self.parallel.splits:
            self.world.broadcast(self.model.state_dict().values())
            if step and self.world.size > 1:
                self.optimizer.share(self.world)
        self.steps_done = step
        self.network.train()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint holds; with DDP on rank 0 only, with FSDP this rank's part of it."""
        assert self.ema is not None
        averages = self.ema.model.state_dict()
        tensors = {"model": self.model.state_dict(), "ema": averages, "optim": self.optimizer.tensors()}
        return tensors | ({"posthoc": self.posthoc.tensors()} if self.posthoc is not None else {})

    def learning_rate(self, step: int) -> float:
        """Learning rate of the step after the first ``step`` ones."""
        config = self.run.training
        return config.lr * config.lr_schedule.factor(step, config.steps, config.lr_warmup)

    def encode(self, batch: Batch) -> Tensor:
        """What the network learns of one micro-batch, float32 [B, c, h, w]: its images, or cached latents, encoded."""
        x = batch.x.to(self.world.device)
        raw = x if self.run.latents else self.codec.raw(x)
        return self.codec.normalise(raw, [(self.run.seed, position) for position in batch.positions])

    def losses(self, batch: Batch) -> Losses:
        """Per-sample losses of one micro-batch: encodes it, sets the dropout masks, and asks the network.

        Every random number is keyed by (seed, position in the run).
        """
        x0 = self.encode(batch)
        with dropout_keys(self.model, self.run.seed, batch.positions):
            return self.objective(self.denoiser, x0, batch.y, batch.positions)

    def step(self, step: int, micro_batches: list[Batch], stop_signal: int = 0, bounds: Bounds = _NONE) -> StepReport:
        """One optimiser step; skipped on every rank if a loss or gradient of any rank is not finite.

        Args:
            step: steps done before it.
            micro_batches: this rank's.
            stop_signal: the signal this rank received, or 0.
            bounds: what makes the step a spike, which ``training.on_spike`` may skip; those of rank 0 count.
        """
        config = self.run.training
        losses = [self._backward(batch, len(micro_batches), batch is micro_batches[-1]) for batch in micro_batches]
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = sharding.whole(torch.nn.utils.get_total_norm(gradients))
        per_sample = torch.cat([part.loss for part in losses])
        totals = [_total(part.loss for part in losses), _total(part.mse for part in losses)]
        has_vb = losses[0].vb is not None
        totals.append(_total(part.vb for part in losses if part.vb is not None))
        finite = math.isfinite(grad_norm := float(norm)) and bool(torch.isfinite(per_sample).all())
        limits = bounds if self.world.is_main else (0.0, 0.0)
        shared = self.world.sum(
            [not finite, *_stops(stop_signal), *(v if math.isfinite(v) else 0.0 for v in totals), *limits]
        )
        loss, mse, vb = (total / config.batch_size for total in shared[3:6])
        bad, asked = shared[0] > 0, _signal_of(shared[1:3])
        bad_samples = self._bad_samples(micro_batches, per_sample) if bad else None
        high = not bad and (loss > shared[6] or grad_norm > shared[7])
        spike = self._worst(micro_batches, per_sample) if high else None
        self.steps_done = None
        if not bad and (spike is None or config.on_spike == "warn"):
            if config.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), config.clip_norm, norm)
            self.optimizer.step(self.learning_rate(step))
            if self.ema is not None and self.optimizer.average is not None:
                self.ema.take(self.model, self.optimizer.average)
            elif self.ema is not None:
                self.ema.update(self.model, decay_at(step + 1, config.ema_decay))
        if self.posthoc is not None:
            self.posthoc.update(self.model, step + 1)
        self.steps_done = step + 1
        self.optimizer.zero_grad()
        return StepReport(loss, mse, vb if has_vb else None, grad_norm, bad_samples, asked, spike)

    def agree_on_signal(self, stop_signal: int) -> int:
        """The signal that asked any rank to stop, or 0; ``stop_signal`` is this rank's."""
        return _signal_of(self.world.sum(_stops(stop_signal)))

    def _backward(self, batch: Batch, parts: int, last: bool) -> Losses:
        with self.parallel.backward_of(self.network, last):
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

    def _worst(self, micro_batches: list[Batch], per_sample: Tensor) -> tuple[int, ...]:
        """Indices, over all ranks, of the samples with the highest losses."""
        ids = torch.tensor([i for batch in micro_batches for i in batch.ids])
        every = self.world.gather(ids).flatten()
        losses = self.world.gather(per_sample.double().cpu()).flatten()
        return tuple(every[losses.topk(min(NAMED, len(losses))).indices].tolist())

    def averaged(self) -> nn.Module | None:
        """The network with the averaged weights, on rank 0; all ranks must call it."""
        return self.parallel.whole(None if self.ema is None else self.ema.model)

    def trained(self) -> nn.Module | None:
        """The network with the trained weights, on rank 0 at least; all ranks must call it."""
        return self.parallel.whole(self.model)

    def power_averages(self) -> dict[str, Tensor] | None:
        """The averages of ``posthoc_ema``, on rank 0; all ranks must call it."""
        return self.parallel.gathered(self.posthoc.tensors()) if self.posthoc is not None else None


def _stops(number: int) -> tuple[bool, bool]:
    """A signal as flags that can be summed over ranks."""
    return number == signal.SIGINT, number == signal.SIGTERM


def _signal_of(counts: Sequence[float]) -> int:
    """The signal of summed flags, or 0; SIGINT where both were received."""
    interrupted, terminated = (count > 0 for count in counts)
    return int(signal.SIGINT if interrupted else signal.SIGTERM if terminated else 0)


def _total(parts: Iterable[Tensor]) -> float:
    return float(sum(part.double().sum() for part in parts))
