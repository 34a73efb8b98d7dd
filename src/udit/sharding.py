"""Tensors split over ranks (FSDP2): how a network is split, filled and gathered, and how its shards lie on disk.

Each rank keeps a part of every weight, a ``DTensor``. A block's weights are gathered while the block runs; gradients
are summed and split again. Files are safetensors, one for each rank, of ``torch.distributed.checkpoint``: any number
of ranks reads what any other number wrote, and no file can execute code.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from udit.dist import World
from udit.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.device_mesh import DeviceMesh

State = dict[str, dict[str, Tensor]]
"""{part: {name: tensor}}, e.g. of parts ``model``, ``ema`` and ``optim``; a tensor may be split."""


def mesh_of(world: World, shards: int | None, timeout: float) -> DeviceMesh:
    """The ranks as a mesh ("replicate", "shard"), or ("shard",) where there is one replica.

    Neighbouring ranks share a replica, so that with as many shards as a machine has GPUs only gradients travel between
    machines (hybrid sharding, HSDP).

    Args:
        world: several ranks.
        shards: ranks that split the weights among them; all if None.
        timeout: seconds after which a silent peer is an error.

    Raises:
        UserError: the ranks do not split into so many.
    """
    from torch.distributed.device_mesh import DeviceMesh

    shards = shards or world.size
    if world.size % shards:
        raise UserError(
            f"training.shards is {shards} and there are {world.size} ranks, which it must divide; leave it out to "
            "split the weights over all ranks"
        )
    kind = world.device.type
    if shards == world.size:
        group = dist.group.WORLD
        assert group is not None
        return DeviceMesh.from_group(group, kind, mesh_dim_names=("shard",))
    ranks = torch.arange(world.size).view(-1, shards)

    def own_of(lists: list[list[int]]) -> dist.ProcessGroup:
        # not init_device_mesh, whose groups wait for half an hour whatever the timeout is
        groups = [(dist.new_group(some, timeout=timedelta(seconds=timeout)), some) for some in lists]
        return next(cast("dist.ProcessGroup", group) for group, some in groups if world.rank in some)

    groups = [own_of(ranks.T.tolist()), own_of(ranks.tolist())]
    return DeviceMesh.from_group(groups, kind, mesh=ranks, mesh_dim_names=("replicate", "shard"))


def shard(network: nn.Module, mesh: DeviceMesh, *, half: bool = False) -> None:
    """Splits a network's weights over a mesh, in place: each block by itself, and all else together.

    Args:
        network: of the catalogue, on the meta device or any other.
        mesh: of ``mesh_of``.
        half: gathers the weights of blocks in bfloat16; gradients are summed in float32 all the same. Meant for
            autocast, which rounds what products take to bfloat16 anyway.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    # of in-place operations on what a block returns, which networks here do not have
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in blocks_of(network):
        fully_shard(block, mesh=mesh, mp_policy=policy)
        if hasattr(block, "condition"):  # runs before the block's forward
            register_fsdp_forward_method(block, "condition")
    fully_shard(network, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network of the catalogue."""
    return [block for module in network.modules() for block in getattr(module, "blocks", ())]


def put(target: Tensor, whole: Tensor) -> None:
    """Copies a whole tensor, which every rank has, into one that may be split; nothing is sent."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(target, DTensor):
        whole = whole.to(target.dtype).to(target.to_local().device)
        target.copy_(distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None))
    else:
        target.copy_(whole)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, on every rank; all of them must call it."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(state: Mapping[str, Tensor], world: World) -> dict[str, Tensor] | None:
    """The whole tensors on the CPU of rank 0, None on the others; one at a time, and all ranks must call it."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        full = whole(tensor.detach())
        if world.is_main:
            found[name] = full.cpu()
    return found if world.is_main else None


_ALONE = "torch.distributed is disabled, unavailable or uninitialized"
"""Of ``torch.distributed.checkpoint`` in a single process."""


# ---- on disk ---------------------------------------------------------------------------------------------------------


def file_of(rank: int) -> str:
    """The name of a rank's file."""
    return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


def writer_of(folder: Path) -> Any:
    """What ``torch.distributed.checkpoint`` writes into a folder with: one safetensors file for each rank."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    logging.getLogger("torch.distributed.checkpoint.hf_storage").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=_ALONE)
    return HuggingFaceStorageWriter(str(folder), save_distributed=True)


def flat(state: State) -> dict[str, Tensor]:
    """One dictionary of all parts, with names ``part/name``."""
    return {f"{part}/{name}": tensor for part, tensors in state.items() for name, tensor in tensors.items()}


def names_in(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of every whole tensor in a folder of shards, by ``part/name``."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {name: cast("TensorStorageMetadata", facts) for name, facts in found.items()}
    return {name: (facts.size, facts.properties.dtype) for name, facts in tensors.items()}


def read_into(folder: Path, state: dict[str, Tensor], world: World | None = None) -> None:
    """Fills tensors, split or whole, from a folder of shards that any number of ranks wrote.

    Args:
        folder: what ``writer_of`` wrote.
        state: by ``part/name``; changed in place.
        world: the ranks that all call it; None reads in this process alone.

    Raises:
        RuntimeError: a tensor is missing or has another shape.
    """
    import torch.distributed.checkpoint as dcp

    warnings.filterwarnings("ignore", message=_ALONE)
    alone = world is None or world.size == 1
    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        dcp.load(state, storage_reader=reader, no_dist=alone)
    except dcp.CheckpointException as error:
        raise RuntimeError(" ".join(str(error).split())) from None
