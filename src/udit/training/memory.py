"""How much memory a training step takes, estimated with fake tensors, which have shapes but no data."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from udit.adapters import Adapter
from udit.data.batches import share_of
from udit.data.describe import describe
from udit.diffusion.beside import Beside
from udit.diffusion.objective import Draws
from udit.diffusion.schedule import Schedule
from udit.dist import find_device, launched, launched_here
from udit.errors import UserError
from udit.joint import denoiser_of, objective_of
from udit.models.build import bare, checkpoint_activations
from udit.nn.blocks import residual_stream
from udit.nn.dropout import name_layers, using_keys
from udit.optim.groups import choices_of
from udit.run.config import Run
from udit.run.system import SystemConfig
from udit.sharding import blocks_of
from udit.training.align import Alignment, chosen
from udit.training.capacity import at_hand, shortage
from udit.training.precision import decided
from udit.training.source import teacher_of

LARGE = 64
"""Images per backward pass from which on the memory is extrapolated."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank. A VAE, the data and the memory of a device's libraries come on top.

    With FSDP weights, gradients, optimiser and averages are this rank's part (the largest one).
    """

    batch: int
    """Images per backward pass."""
    weights: int
    gradients: int
    """Twice the weights' size where several ranks average them, as they are copied into the buffers that are sent."""
    optimizer: int
    averages: int
    """The EMA (of an adapter alone, where a run has one) and those of ``posthoc_ema``; rank 0 alone keeps them, with
    FSDP every rank its part."""
    activations: int
    """What a forward pass keeps for its backward pass."""
    total: int
    """Upper bound of what is allocated at once; less than the sum: activations are freed as gradients appear."""
    gathered: int = 0
    """With FSDP: whole weights of the blocks that run, and the whole gradients of one, which are there for a moment."""


def estimate(run: Run, ranks: int = 1, device: str | None = None) -> Memory:
    """Runs one step with fake tensors and counts what is allocated.

    A step of more than ``LARGE`` images is extrapolated from two smaller ones, for memory grows linearly and each image
    takes its time. Operators are those of the device: on a CPU attention and compiled kernels are among them, on CUDA
    autocast's copies. Scratch memory within an operator is not counted; ``torch.compile``, with which a GPU keeps about
    a third less, is not applied.

    Args:
        run: what would be trained.
        ranks: over how many processes.
        device: where, "cpu" or "cuda"; that of ``training.device`` if None. CUDA's operators are known without a GPU.

    Raises:
        UserError: the batch does not split over so many.
    """
    batch = share_of(run.training.batch_size, run.training.accumulation, ranks)
    where = device or kind_of(run.training.device)
    run = decided(run, torch.device(where))
    if batch <= LARGE:
        return _counted(run, ranks, batch, where)
    half, full = _counted(run, ranks, LARGE // 2, where), _counted(run, ranks, LARGE, where)

    def grown(small: int, large: int) -> int:
        return large + (large - small) * (batch - LARGE) // (LARGE // 2)

    activations, total = grown(half.activations, full.activations), grown(half.total, full.total)
    return dataclasses.replace(full, batch=batch, activations=activations, total=total)


def kind_of(device: str) -> str:
    """Whose operators a training on a device of this name runs: "cuda", or "cpu" for all others."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if device.startswith("cuda") else "cpu"


def _counted(run: Run, ranks: int, batch: int, device: str) -> Memory:
    """What a step of ``batch`` images per backward pass allocates."""
    config = run.training
    shards = (config.shards or ranks) if config.parallel == "fsdp" else 1
    aligned = None if config.align is None else (teacher_of(run), *chosen(config.align, run.model))
    adapted = _adapted(run) if config.adapter else None
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        model = bare(run.model) if adapted is None else adapted.to_empty(device=device)
        checkpoint_activations(model, config.checkpoint_activations)
        alignment = aligned and Alignment(run, model.train(), *aligned, filled=False)
        whole = alignment.joined if alignment else model.train()
        backbone = alignment.backbone(whole) if alignment else whole
        denoiser = denoiser_of(SystemConfig.of(run), backbone)
        size = max(run.sizes, key=math.prod)
        x0 = torch.empty(batch, *run.model.input_shape(size))
        if run.model.condition_channels:
            beside = torch.empty(batch, run.model.condition_channels, *size)
            denoiser = denoiser.with_network(lambda network: Beside(network, beside))
        shape = run.model.condition_shape
        y = torch.zeros(batch, *shape) if shape else torch.zeros(batch, dtype=torch.int64)
        there = [*whole.parameters(), *model.buffers(), x0, y]
        parameters = [p for p in whole.parameters() if p.requires_grad]
        optimizer = config.optimizer.build(model, choices_of(model), config.betas).bytes
        optimizer += alignment.optimizer.bytes if alignment and alignment.optimizer else 0
        if config.accumulation > 1:
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
                there.append(parameter.grad)
        if shards > 1:  # a gradient is sent at once, and only a part of it stays
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(_forget_gradient)
        keys = torch.zeros(batch, dtype=torch.int64)
        objective = objective_of(run)
        draws = _draws(denoiser.schedule, x0, objective.levels)
        name_layers(model)
        wide = config.precision == "bfloat16" and config.residual == "float32"
        stream = residual_stream(torch.float32 if wide else None)
        with using_keys(keys), stream, _Living([*there, keys, draws.t, draws.noise, draws.uniform]) as living:
            with _autocast(device, config.precision == "bfloat16"), _FusedAttention():
                loss = objective.losses(denoiser, x0, y, draws).loss.mean()
                if alignment and aligned:
                    loss = loss + alignment.losses(torch.empty(batch, *aligned[0].shape)).mean()
            activations = living.bytes
            if device == "cpu":
                loss.backward()
            else:  # autograd asks for a GPU that may not be there; gradients appear as activations are freed
                living.most += max(0, _bytes(parameters) - activations) if shards == 1 else 0
    if shards > 1:
        return _split(run, model, batch, shards, activations, living.most)
    averaged, trained = _bytes(model.state_dict().values()), _bytes(parameters)
    weights = _bytes(whole.state_dict().values())
    kept = trained * ((ranks > 1) + (config.accumulation > 1))
    averages = (trained if config.adapter else averaged) + trained * len(
        config.posthoc_ema.sigma_rels if config.posthoc_ema else ()
    )
    return Memory(
        batch=batch,
        weights=weights,
        gradients=trained * (1 + (ranks > 1)),
        optimizer=optimizer,
        averages=averages,
        activations=activations,
        total=weights + optimizer + averages + kept + living.most,
    )


def _adapted(run: Run) -> nn.Module:
    """A run's network with its adapter, on the meta device: peft refuses fake tensors.

    Raises:
        UserError: peft is not installed, or a target is no layer.
    """
    assert run.training.adapter is not None
    with torch.device("meta"):
        model = bare(run.model)
    Adapter(model, run.training.adapter, run.seed, "meta")
    return model


@contextlib.contextmanager
def _autocast(device: str, enabled: bool) -> Iterator[None]:
    """As ``torch.autocast`` to bfloat16, which refuses CUDA where there is no GPU."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, enabled)
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


class _FusedAttention(TorchFunctionMode):
    """Takes a fused attention of CUDA's, which torch chooses on a GPU alone; elsewhere it would keep whole matrices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or args[0].device.type != "cuda":
            return func(*args, **kwargs)
        q, k, v = args
        mask, scale = kwargs.get("attn_mask"), kwargs.get("scale")
        if mask is None and q.dtype in (torch.bfloat16, torch.float16):
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, scale=scale)[0]


def _draws(schedule: Schedule, x0: Tensor, levels: int) -> Draws:
    """Random numbers of a batch, of which the shapes count."""
    shape = (len(x0), 2) if schedule.process.two_times else (len(x0),)
    t = torch.zeros(shape, dtype=torch.int64 if schedule.time == "index" else torch.float32)
    return Draws(t, torch.empty_like(x0), torch.zeros(len(x0), levels))


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _split(run: Run, model: nn.Module, batch: int, shards: int, activations: int, most: int) -> Memory:
    """A step of a network that is split.

    Args:
        run: what would be trained.
        model: its network.
        batch: images per backward pass.
        shards: ranks among which weights are split.
        activations: bytes after a forward pass.
        most: bytes at one time in a step, without weights, gradients and optimiser.
    """
    whole = _bytes(model.parameters())
    part = _bytes(p.detach()[: -(-p.shape[0] // shards)] for p in model.parameters())
    blocks = [_bytes(block.parameters()) for block in blocks_of(model)]
    buffers = _bytes(model.state_dict().values()) - whole
    root, largest = whole - sum(blocks), max(blocks, default=0)
    half = 2 if run.training.precision == "bfloat16" else 1
    gathered = root + 2 * largest // half + largest  # of one block the weights are gathered while another one runs
    averages = buffers + part * (1 + len(run.training.posthoc_ema.sigma_rels if run.training.posthoc_ema else ()))
    return Memory(
        batch=batch,
        weights=part + buffers,
        gradients=part,
        optimizer=2 * part,
        averages=averages,
        activations=activations,
        total=part + buffers + part + 2 * part + averages + gathered + most,
        gathered=gathered,
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
    vae = run.codec.kind == "vae" and not run.encoded
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
