"""What a training step takes of a device's memory, without taking it: tensors have shapes there and no contents."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from udit.assemble import denoiser_of, loss_of
from udit.data.batches import share_of
from udit.models.build import checkpoint_activations
from udit.nn.dropout import dropout_keys
from udit.run.config import Run
from udit.run.system import SystemConfig
from udit.training.learner import losses_of


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank. A VAE, the data and what a device's libraries need come on top."""

    batch: int
    """Pictures of one backward pass."""
    weights: int
    gradients: int
    """Where several ranks sum them, twice: once in what they send."""
    optimizer: int
    averages: int
    """The moving average, and those for later; rank 0 alone keeps them."""
    activations: int
    """What a forward pass keeps for its backward pass."""
    total: int
    """All that lives at once, at most; less than the sum, for gradients come as activations go."""


def estimate(run: Run, ranks: int = 1) -> Memory:
    """Takes one step with tensors without contents and counts what lives.

    Operators are those that a CPU would run, attention and compiled kernels among them. Their own scratch memory is not
    seen; ``torch.compile`` is not applied.

    Args:
        run: what would be trained.
        ranks: over how many processes.

    Raises:
        UserError: the batch does not split over so many.
    """
    config = run.training
    batch = share_of(config.batch_size, config.accumulation, ranks)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = run.model.build()
        checkpoint_activations(model, config.checkpoint_activations)
        denoiser = denoiser_of(SystemConfig.of(run), model.train())
        x0 = torch.empty(batch, run.model.in_channels, *run.model.size)
        y = torch.zeros(batch, dtype=torch.int64)
        there = [*model.parameters(), *model.buffers(), x0, y]
        parameters = [p for p in model.parameters() if p.requires_grad]
        if config.accumulation > 1:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
                there.append(parameter.grad)
        with dropout_keys(model, run.seed, range(batch)), _Living(there) as living:
            loss = losses_of(run, loss_of(run.diffusion), denoiser, x0, y, range(batch)).loss.mean()
            activations = living.bytes
            loss.backward()
    weights, trained = _bytes(model.state_dict().values()), _bytes(parameters)
    kept = trained * ((ranks > 1) + (config.accumulation > 1))
    averages = weights + trained * len(config.posthoc_ema.sigma_rels if config.posthoc_ema else ())
    return Memory(
        batch=batch,
        weights=weights,
        gradients=trained * (1 + (ranks > 1)),
        optimizer=2 * trained,
        averages=averages,
        activations=activations,
        total=weights + 2 * trained + averages + kept + living.most,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Living(TorchDispatchMode):
    """Counts the bytes of tensors that come into being within it and have not gone again."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        """Takes the tensors that were there before, whose views are nothing new."""
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
