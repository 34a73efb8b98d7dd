"""How much memory a training step takes, estimated with fake tensors, which have shapes but no data."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from udit.assemble import denoiser_of, objective_of
from udit.data.batches import share_of
from udit.data.describe import describe
from udit.dist import find_device, launched, launched_here
from udit.errors import UserError
from udit.models.build import checkpoint_activations
from udit.nn.dropout import dropout_keys
from udit.optim.groups import choices_of
from udit.run.config import Run
from udit.run.system import SystemConfig
from udit.training.capacity import at_hand, shortage

LARGE = 64
"""Images per backward pass from which on the memory is extrapolated."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank. A VAE, the data and the memory of a device's libraries come on top."""

    batch: int
    """Images per backward pass."""
    weights: int
    gradients: int
    """Twice the weights' size where several ranks average them, as they are copied into the buffers that are sent."""
    optimizer: int
    averages: int
    """The EMA and those of ``posthoc_ema``; rank 0 alone keeps them."""
    activations: int
    """What a forward pass keeps for its backward pass."""
    total: int
    """Upper bound of what is allocated at once; less than the sum: activations are freed as gradients appear."""


def estimate(run: Run, ranks: int = 1) -> Memory:
    """Runs one step with fake tensors and counts what is allocated.

    A step of more than ``LARGE`` images is extrapolated from two smaller ones, for memory grows linearly and each image
    takes its time. Operators are those that run on a CPU, attention and compiled kernels among them. Scratch memory
    within an operator is not counted; ``torch.compile`` is not applied.

    Args:
        run: what would be trained.
        ranks: over how many processes.

    Raises:
        UserError: the batch does not split over so many.
    """
    batch = share_of(run.training.batch_size, run.training.accumulation, ranks)
    if batch <= LARGE:
        return _counted(run, ranks, batch)
    half, full = _counted(run, ranks, LARGE // 2), _counted(run, ranks, LARGE)

    def grown(small: int, large: int) -> int:
        return large + (large - small) * (batch - LARGE) // (LARGE // 2)

    activations, total = grown(half.activations, full.activations), grown(half.total, full.total)
    return dataclasses.replace(full, batch=batch, activations=activations, total=total)


def _counted(run: Run, ranks: int, batch: int) -> Memory:
    """What a step of ``batch`` images per backward pass allocates."""
    config = run.training
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = run.model.build()
        checkpoint_activations(model, config.checkpoint_activations)
        denoiser = denoiser_of(SystemConfig.of(run), model.train())
        x0 = torch.empty(batch, run.model.in_channels, *run.model.size)
        shape = run.model.condition_shape
        y = torch.zeros(batch, *shape) if shape else torch.zeros(batch, dtype=torch.int64)
        there = [*model.parameters(), *model.buffers(), x0, y]
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = config.optimizer.build(model, choices_of(model), config.betas).bytes
        if config.accumulation > 1:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
                there.append(parameter.grad)
        with dropout_keys(model, run.seed, range(batch)), _Living(there) as living:
            loss = objective_of(run)(denoiser, x0, y, range(batch)).loss.mean()
            activations = living.bytes
            loss.backward()
    weights, trained = _bytes(model.state_dict().values()), _bytes(parameters)
    kept = trained * ((ranks > 1) + (config.accumulation > 1))
    averages = weights + trained * len(config.posthoc_ema.sigma_rels if config.posthoc_ema else ())
    return Memory(
        batch=batch,
        weights=weights,
        gradients=trained * (1 + (ranks > 1)),
        optimizer=optimizer,
        averages=averages,
        activations=activations,
        total=weights + optimizer + averages + kept + living.most,
    )


@dataclass(frozen=True)
class DryRun:
    """What a training would need, found out without starting it."""

    memory: Memory
    """Of a step on one rank."""
    ranks: int
    """Processes that would share a batch."""
    missing_data: str | None
    """Why the data cannot be read yet; the model's own number of classes was taken then."""
    loads_vae: bool
    """Whether a VAE would be in memory too, because images are encoded while training."""
    shortage: str | None = None
    """Why a step would not fit into the memory at hand here, if it would not."""


def dry_run(run: Run, ranks: int | None = None) -> DryRun:
    """Looks for a run's data and estimates its memory.

    Args:
        run: what would be trained.
        ranks: over how many processes; as many as a launcher has started if None.

    Raises:
        UserError: the batch does not split over the ranks.
    """
    missing = None
    if run.latents is None:
        try:
            describe(run.data)
        except UserError as error:
            missing = str(error)
    ranks = launched() if ranks is None else ranks
    vae = run.codec.kind == "vae" and run.latents is None
    memory, limit = estimate(run, ranks), None
    with contextlib.suppress(UserError):  # the device may be another machine's
        limit = at_hand(find_device(run.training.device, 0), launched_here())
    short = shortage(run, memory, limit) if limit else None
    return DryRun(memory, ranks, missing_data=missing, loads_vae=vae, shortage=short)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Living(TorchDispatchMode):
    """Counts the bytes of tensors that are allocated within it and not freed yet."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        """Takes the tensors that exist already; views of them are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.most = 0
        self._known = {_storage(tensor)._cdata for tensor in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(_storage(tensor))
        return made

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.bytes += size
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()
