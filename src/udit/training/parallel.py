"""How the ranks of a training share its weights: each has all of them (DDP), or a part (FSDP)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from udit import sharding
from udit.dist import World
from udit.models.build import build, rebuild
from udit.models.config import ModelConfig
from udit.nn.init import fill
from udit.run.config import Run


class Replicated:
    """Every rank has all weights and the optimiser's state; rank 0 alone keeps averages and writes."""

    splits = False
    """Whether a rank has only a part of the state, so that all of them read and write checkpoints."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.averages = world.is_main
        """Whether this rank keeps averages of the weights."""

    def build(self, config: ModelConfig, seed: int) -> nn.Module:
        """A network with the weights of step 0."""
        return build(config, seed=seed, device=self.world.device)

    def network(self, model: nn.Module) -> nn.Module:
        """What is called in training in the model's place: it averages gradients over ranks."""
        if self.world.size == 1:
            return model
        # Searching for unused parameters keeps DDP from rebuilding its buckets after the first backward pass: the order
        # of summation would differ between an unbroken and a resumed run of three ranks or more. Gradients are no views
        # of the buckets: with that, biases that share a gradient did not move as they do on one rank.
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        devices = [self.world.device.index] if self.world.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)

    def backward_of(self, network: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Context of the backward pass of one accumulated part; gradients are exchanged in that of the ``last``."""
        waits = isinstance(network, DistributedDataParallel) and not last
        return network.no_sync() if waits else contextlib.nullcontext()  # type: ignore[operator]

    def whole(self, model: nn.Module | None) -> nn.Module | None:
        """A model of this rank with all its weights, None where rank 0 alone has it."""
        return model

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Tensors with all their parts, on rank 0."""
        return tensors if self.world.is_main else None

    def differs(self, model: nn.Module) -> bool:
        """Whether ranks that must have the same weights do not."""
        sums = self.world.gather(_sum_of(list(model.parameters())))
        return not bool((sums == sums[0]).all())


class Split(Replicated):
    """Every rank has a part of weights, averages and optimiser state, by torch's FSDP2; a single process has it all."""

    splits = True

    def __init__(self, world: World, shards: int | None, timeout: float, half: bool) -> None:
        """Takes the ranks among which the weights are split; see ``sharding.mesh_of`` and ``sharding.shard``."""
        super().__init__(world)
        self.averages = True
        self.half = half
        self.mesh = sharding.mesh_of(world, shards, timeout) if world.size > 1 else None

    def build(self, config: ModelConfig, seed: int) -> nn.Module:
        """A network with the weights of step 0; a rank never holds more than its part and one whole tensor."""
        if self.mesh is None:
            return super().build(config, seed)
        with torch.device("meta"):
            network = config.build()
        sharding.shard(network, self.mesh, half=self.half)
        return fill(network, network.INIT, seed, self.world.device, sharding.put)  # type: ignore[arg-type]

    def network(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def backward_of(self, network: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Nothing: gradients are exchanged in every part, since whole ones of all weights would not fit."""
        return contextlib.nullcontext()

    def whole(self, model: nn.Module | None) -> nn.Module | None:
        """A copy on rank 0's device; the model itself where there is one process. All ranks must call it."""
        if self.mesh is None or model is None:
            return model
        state = self.gathered(model.state_dict())
        return None if state is None else rebuild(model.config, state).eval().to(self.world.device)  # type: ignore[arg-type]

    def gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Tensors with all their parts, on rank 0's CPU; all ranks must call it."""
        return tensors if self.mesh is None else sharding.gathered(tensors, self.world)

    def differs(self, model: nn.Module) -> bool:
        """Whether replicas, of which each has all parts, do not have the same weights."""
        sums = self.world.gather(_sum_of([sharding.local(p) for p in model.parameters()])).flatten()
        shards = self.world.size if self.mesh is None else self.mesh.size(-1)
        replicas = sums.view(-1, shards)
        return not bool((replicas == replicas[0]).all())


def parallel_of(run: Run, world: World) -> Replicated:
    """How a run's ranks share its weights.

    Raises:
        UserError: the ranks do not split into ``training.shards``.
    """
    config = run.training
    if config.parallel == "ddp":
        return Replicated(world)
    return Split(world, config.shards, config.timeout, config.precision == "bfloat16")


def _sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """[1] float64 on the CPU: equal where all tensors are."""
    with torch.no_grad():
        return torch.stack([tensor.double().sum() for tensor in tensors]).sum()[None].cpu()
