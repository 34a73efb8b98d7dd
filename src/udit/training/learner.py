"""Network, optimiser and averaged weights of a run, and the training step that changes them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from udit import sharding
from udit.adapters import Adapter, AdapterEMA
from udit.checkpoint import Checkpoint
from udit.data.batches import Batch
from udit.diffusion.beside import Beside
from udit.diffusion.objective import Draws, Losses
from udit.dist import World
from udit.errors import UserError
from udit.joint import denoiser_of, objective_of
from udit.models.build import build, checkpoint_activations, compile_blocks
from udit.nn.blocks import residual_stream
from udit.nn.dropout import keys_of, name_layers, using_keys
from udit.optim.groups import choices_of
from udit.run.config import Run
from udit.run.system import SystemConfig
from udit.text.cache import Texts
from udit.training.alarms import Bounds
from udit.training.align import alignment_of
from udit.training.ema import EMA, decay_at
from udit.training.graphs import graphed_of
from udit.training.parallel import parallel_of
from udit.training.posthoc import PowerAverages
from udit.training.precision import decided
from udit.training.records import StepReport
from udit.training.signals import flags_of, signal_of
from udit.training.start import start_from
from udit.training.unread import Unread

log = logging.getLogger(__name__)
NAMED = 8
"""Samples of a spike that are named, those with the highest losses."""
_NONE = Bounds()


class Learner:
    """The weights of a run on this rank. Its state is the network's, the optimiser's and the averages'.

    With DDP rank 0 alone has averages; with FSDP every rank has a part of everything.
    """

    def __init__(self, run: Run, world: World, texts: Texts | None = None) -> None:
        """Builds all, with the weights of step 0. Steps belong into ``precision.set_up``; ``texts`` are of captions."""
        device = world.device
        run = decided(run, device)
        config = run.training
        self.run, self.world, self.texts = run, world, texts
        self.codec = run.codec.build()
        self.objective = objective_of(run)
        self.condition = run.data.condition.build() if run.data.condition else None
        self.parallel = parallel_of(run, world)
        self.model = self.parallel.build(run.model, run.seed)
        checkpoint_activations(self.model, config.checkpoint_activations)
        self.adapter = Adapter(self.model, config.adapter, run.seed, device) if config.adapter else None
        """What alone is trained, where a run has one."""
        choices = choices_of(self.model, config.groups, config.lr_layer_decay, config.weight_decay)
        self.optimizer = config.optimizer.build(self.model, choices, config.betas)
        self.ema = self._new_ema() if self.parallel.averages else None
        posthoc = config.posthoc_ema if self.parallel.averages else None
        self.posthoc = PowerAverages(self.model, posthoc) if posthoc else None
        if config.compile:
            compile_blocks(self.model)
        self.alignment = alignment_of(run, self.model)
        joined = self.alignment.joined if self.alignment else self.model
        self.network = self.parallel.network(joined)
        """The model, with the projector of an alignment, or what averages their gradients over ranks."""
        backbone = self.alignment.backbone(self.network) if self.alignment else self.network
        self.denoiser = denoiser_of(SystemConfig.of(run), backbone)
        self.parameters = list(joined.parameters())
        self.graphed = graphed_of(self._gradients, self.parameters, config, world)
        """What runs a micro-batch's passes as a CUDA graph, where a training asks for it."""
        self.drops = name_layers(self.model)
        wide = config.precision == "bfloat16" and config.residual == "float32"
        self.stream = torch.float32 if wide else None
        self.defers = device.type == "cuda" and self.optimizer.gated
        """Whether what a step found is read while the next one runs, see ``begin``."""
        self.pins = device.type == "cuda"
        """Whether batches should lie in pinned memory."""
        self._unread: Unread | None = None
        self.steps_done: int | None = 0
        """Steps that weights, optimiser and averages have behind them; None while a step changes them."""

    def _new_ema(self) -> EMA | AdapterEMA:
        return EMA(self.model) if self.adapter is None else AdapterEMA(self.adapter)

    def bytes(self) -> int:
        """Size of a checkpoint: weights, EMA, the optimiser's state, other averages, an adapter, a projector."""
        posthoc = self.run.training.posthoc_ema
        copies = 2 + (self.adapter is not None) + len(posthoc.sigma_rels if posthoc else ())
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return copies * weights + self.optimizer.bytes + (self.alignment.bytes if self.alignment else 0)

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
            if isinstance(self.ema, AdapterEMA):
                self.ema.adapter.load(found.tensors("model"), found.tensors("adapter"), self.ema.averages)
            else:
                self.model.load_state_dict(found.tensors("model"), strict=True)
                self.ema.load(found.tensors("ema"))
            if self.posthoc is not None:
                self.posthoc.load(found.tensors("posthoc"))
            if self.alignment is not None and self.alignment.projector is not None:
                self.alignment.restore(found.tensors("projector"), found.tensors("projector-optim"))
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
        """Initialises the weights from ``run.init_from``; with DDP on rank 0 alone, and ``share`` sends them on.

        Raises:
            UserError: see ``start_from``.
        """
        split = self.parallel.splits
        model = build(self.run.model, seed=self.run.seed) if split else self.model
        new = model.state_dict() if self.adapter is None else self.adapter.frozen()
        for line in start_from(new, self.run):
            if self.world.is_main:
                log.info("%s", line)
        if split:
            for name, tensor in self.model.state_dict().items():
                with torch.no_grad():
                    sharding.put(tensor, new[name])
        self.ema = self._new_ema()

    def share(self, step: int) -> None:
        """Sends rank 0's state to every rank, unless each has its own, and makes the network ready to train.

        Args:
            step: steps done; the same on every rank.
        """
        if not self.parallel.splits:
            self.world.broadcast(self.model.state_dict().values())
            if step and self.world.size > 1:
                self.optimizer.share(self.world)
            if self.alignment is not None:
                self.alignment.share(self.world, step)
        self.steps_done, self._unread = step, None
        self.network.train()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint holds; with DDP on rank 0 only, with FSDP this rank's part of it."""
        assert self.ema is not None
        averages = self.ema.model.state_dict()
        tensors = {"model": self.plain().state_dict(), "ema": averages, "optim": self.optimizer.tensors()}
        if isinstance(self.ema, AdapterEMA):
            tensors["adapter"] = self.ema.adapter.tensors(self.ema.averages)
        tensors |= {"posthoc": self.posthoc.tensors()} if self.posthoc is not None else {}
        return tensors | (self.alignment.tensors() if self.alignment is not None else {})

    def plain(self) -> nn.Module:
        """The trained network without averaging; one with an adapter is copied, with the adapter merged."""
        return self.model if self.adapter is None else self.adapter.plain()

    def learning_rate(self, step: int) -> float:
        """Learning rate of the step after the first ``step`` ones."""
        config = self.run.training
        return config.lr * config.lr_schedule.factor(step, config.steps, config.lr_warmup)

    def encode(self, batch: Batch) -> Tensor:
        """What the network learns of one micro-batch, float32 [B, c, h, w]: its images, or cached latents, encoded."""
        x = batch.x.to(self.world.device)
        raw = x if self.run.encoded else self.codec.raw(x)
        keys = [(self.run.seed, position) for position in batch.positions]
        return self.codec.normalise(raw, keys, batch.drawn.get("posterior"))

    def losses(self, batch: Batch) -> Losses:
        """Per-sample losses of one micro-batch: encodes it, sets the dropout masks, and asks the network.

        Every random number is keyed by (seed, position in the run), and drawn here unless it comes with the batch.
        """
        batch = batch.on(self.world.device)
        x0, drawn = self.encode(batch), batch.drawn
        keys = drawn["dropout"] if drawn else keys_of(self.run.seed, batch.positions).to(x0.device)
        draws = Draws(drawn["t"], drawn["noise"], drawn["uniform"]) if drawn else None
        denoiser = self.denoiser
        if self.condition is not None:
            before = None if batch.before is None else self.codec.normalise(batch.before)
            beside = self.condition(x0, before, [(self.run.seed, position) for position in batch.positions])
            denoiser = denoiser.with_network(lambda network: Beside(network, beside))
        y, null = (self.texts.of(batch.texts), self.texts.null) if self.texts else (batch.y, None)
        with using_keys(keys) if self.drops else contextlib.nullcontext(), residual_stream(self.stream):
            losses = self.objective(denoiser, x0, y, batch.positions, draws, null)
        if self.alignment is None:
            return losses
        assert batch.features is not None, "batches of a run that aligns"
        return replace(losses, align=self.alignment.losses(batch.features))

    def step(self, step: int, micro_batches: list[Batch], stop_signal: int = 0, bounds: Bounds = _NONE) -> StepReport:
        """One optimiser step; skipped on every rank if a loss or gradient of any rank is not finite.

        Args:
            step: steps done before it.
            micro_batches: this rank's.
            stop_signal: the signal this rank received, or 0.
            bounds: what makes the step a spike, which ``training.on_spike`` may skip; those of rank 0 count.
        """
        self.begin(step, micro_batches, stop_signal, bounds)
        report = self.settle()
        assert report is not None, "a step has just begun"
        return report

    def begin(
        self, step: int, micro_batches: list[Batch], stop_signal: int = 0, bounds: Bounds = _NONE
    ) -> StepReport | None:
        """Begins an optimiser step; ``settle`` ends it. Arguments are those of ``step``.

        Where the learner ``defers``, the host does not wait for the device: the check for finite numbers is done there,
        and what it found is read, and the averages updated, after the backward pass of the next step is on its way.

        Returns:
            The report of the step before, if it was not settled yet.
        """
        losses = [self._backward(batch, batch is micro_batches[-1]) for batch in micro_batches]
        before = self.settle()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = sharding.whole(torch.nn.utils.get_total_norm(gradients))
        per_sample = torch.cat([part.total for part in losses])
        numbers = self._numbers(losses, norm, per_sample, stop_signal, bounds)
        unread = Unread(step, numbers, micro_batches, per_sample, losses[0].vb is not None)
        skips = self.run.training.on_spike != "warn"
        taken = self.defers or not (unread.bad or (skips and unread.high))
        found_inf = None
        if self.defers:
            high = (numbers[3] > numbers[7]) | (numbers[9] > numbers[8])
            found_inf = ((numbers[0] > 0) | high if skips else numbers[0] > 0).to(norm.dtype)
            unread = unread.on_its_way()
        self.steps_done = None
        if taken:
            if self.run.training.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.run.training.clip_norm, norm)
            self.optimizer.step(self.learning_rate(step), found_inf)
            if self.alignment is not None and self.alignment.optimizer is not None:
                self.alignment.optimizer.step(self.learning_rate(step), found_inf)
        if self.posthoc is not None:
            self.posthoc.update(self.model, step + 1)
        self._unread = unread
        if not self.defers:
            self._average()
        self.steps_done = step + 1
        self.network.zero_grad()
        return before

    def settle(self, alone: bool = False) -> StepReport | None:
        """Ends the step that ``begin`` began: reads what it found and updates the averages.

        Args:
            alone: whether the other ranks do not call it; then samples of theirs are not named.

        Returns:
            The step's report; None if there is none to settle.
        """
        unread = self._unread
        if unread is None:
            return None
        if self.defers:
            done, self.steps_done = self.steps_done, None
            self._average()
            self.steps_done = done
        self._unread = None
        norm, bad, *shared = unread.values
        asked = signal_of(shared[:2])
        bad_samples = self._bad_samples(unread, alone) if bad else None
        spike = self._worst(unread, alone) if unread.high and not bad else None
        loss, mse, vb, align = (total / self.run.training.batch_size for total in shared[2:6])
        terms = {"vb": vb if unread.has_vb else None, "align": None if self.alignment is None else align}
        return StepReport(loss, mse, grad_norm=norm, bad_samples=bad_samples, signal=asked, spike=spike, **terms)

    def _average(self) -> None:
        """Takes the step's weights into the averages; a skipped step changes none."""
        unread = self._unread
        assert unread is not None
        skipped = unread.bad or (unread.high and self.run.training.on_spike != "warn")
        if self.ema is None or skipped:
            return
        if self.optimizer.average is not None:
            self.ema.take(self.model, self.optimizer.average)
        else:
            self.ema.update(self.model, decay_at(unread.step + 1, self.run.training.ema_decay))

    def _numbers(
        self, losses: Sequence[Losses], norm: Tensor, per_sample: Tensor, stop_signal: int, bounds: Bounds
    ) -> Tensor:
        """All that is read of a step in one float64 tensor.

        Its entries: ranks with a loss or gradient that is not finite; ranks that each signal stops; sums over all
        samples of loss, mean squared error, variational bound and alignment; what makes that loss and the norm of the
        gradients a spike, of rank 0; and that norm, which is the same on all ranks.
        """
        parts = [[p.loss for p in losses], [p.mse for p in losses], [p.vb for p in losses if p.vb is not None]]
        parts.append([p.align for p in losses if p.align is not None])
        zero = torch.zeros((), dtype=torch.float64, device=norm.device)
        totals = [sum((part.double().sum() for part in of_all), zero) for of_all in parts]
        bad = ~(norm.isfinite() & per_sample.isfinite().all())
        stops = [torch.full_like(zero, stop) for stop in flags_of(stop_signal)]
        most = (bounds.loss * self.run.training.batch_size, bounds.grad_norm) if self.world.is_main else (0.0, 0.0)
        limits = [torch.full_like(zero, limit) for limit in most]
        shared = torch.stack([bad.double(), *stops, *(torch.where(t.isfinite(), t, 0.0) for t in totals), *limits])
        return torch.cat([self.world.summed(shared), norm.double()[None]])

    def agree_on_signal(self, stop_signal: int) -> int:
        """The signal that asked any rank to stop, or 0; ``stop_signal`` is this rank's."""
        return signal_of(self.world.sum(flags_of(stop_signal)))

    def _backward(self, batch: Batch, last: bool) -> Losses:
        if self.graphed is not None:
            return self.graphed(batch.on(self.world.device))
        with self.parallel.backward_of(self.network, last):
            return self._gradients(batch)

    def _gradients(self, batch: Batch) -> Losses:
        """Losses of one of the step's micro-batches; their gradients are added to the others'."""
        losses = self.losses(batch)
        (losses.total.mean() / self.run.training.accumulation).backward()
        return losses.mapped(Tensor.detach)

    def _bad_samples(self, unread: Unread, alone: bool) -> tuple[int, ...]:
        """Indices, over all ranks, of samples with a non-finite loss; of the whole batch where only gradients are."""
        ids = torch.tensor([i for batch in unread.micro_batches for i in batch.ids])
        finite = torch.isfinite(unread.per_sample).cpu().to(torch.int64)
        if not alone:
            ids, finite = (self.world.gather(part).flatten() for part in (ids, finite))
        named = ids[finite == 0] if int((finite == 0).sum()) else ids
        return tuple(sorted(int(i) for i in named))

    def _worst(self, unread: Unread, alone: bool) -> tuple[int, ...]:
        """Indices, over all ranks, of the samples with the highest losses."""
        ids = torch.tensor([i for batch in unread.micro_batches for i in batch.ids])
        losses = unread.per_sample.double().cpu()
        if not alone:
            ids, losses = (self.world.gather(part).flatten() for part in (ids, losses))
        return tuple(ids[losses.topk(min(NAMED, len(losses))).indices].tolist())

    def averaged(self) -> nn.Module | None:
        """The network with the averaged weights, on rank 0; all ranks must call it."""
        return self.parallel.whole(None if self.ema is None else self.ema.model)

    def trained(self) -> nn.Module | None:
        """The network with the trained weights, on rank 0 at least; all ranks must call it."""
        return self.parallel.whole(self.plain())

    def power_averages(self) -> dict[str, Tensor] | None:
        """The averages of ``posthoc_ema``, on rank 0; all ranks must call it."""
        return self.parallel.gathered(self.posthoc.tensors()) if self.posthoc is not None else None
