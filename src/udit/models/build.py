"""From a name or a config to a network with weights, and from a network to its fused form.

Unfused, re-parameterised parts hold several weights whose composition is linear; fused, each such composition is stored
as one weight, which takes less time in inference.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from udit import ops
from udit.errors import UserError
from udit.models.catalog import find
from udit.models.config import ModelConfig
from udit.nn.blocks import Checkpointing, Foldable, Recompute, recompute_when_compiled
from udit.nn.conditioning import TwoTimes
from udit.nn.init import Fill, constant, fill, gaussian
from udit.ops.operator import NO_KERNELS

SECOND_TIME: dict[str, Fill] = {
    r"\bsecond_time\.contract\.|\bsecond_time\.expand\.bias$": constant(0.0),
    r"\bsecond_time\.": gaussian(0.02),
}
"""How the second time's embedding begins: it adds nothing."""


def configure(model: str | ModelConfig, **overrides: Any) -> ModelConfig:
    """The config of a catalogue name (or a config itself) with overrides checked against its fields.

    Raises:
        UserError: unknown name or field, with the nearest one; or a value its field refuses.
    """
    config = find(model).config if isinstance(model, str) else model
    return config.replace(**overrides) if overrides else config


def build(
    model: str | ModelConfig, *, seed: int = 0, device: torch.device | str | None = None, **overrides: Any
) -> nn.Module:
    """The bare network ``m(x, t, y)`` with freshly initialised weights.

    Args:
        model: a catalogue name such as ``"U-DiT-S"``, or a config.
        seed: every parameter is drawn from a generator keyed by (seed, its name): the same on any device and rank.
        device: where the weights go; ``"meta"`` allocates nothing, for ``load_state_dict(..., assign=True)``: all
            buffers are in the state. None is the device that torch's own modules go to here (``with torch.device``,
            ``torch.set_default_device``), or the CPU.
        overrides: fields of the config, e.g. ``in_channels=1, num_classes=10, input_size=8``.

    Raises:
        UserError: see ``configure``.
    """
    config = configure(model, **overrides)
    device = torch.get_default_device() if device is None else torch.device(device)
    with torch.device("meta"):
        network = bare(config)
    if device.type == "meta":
        return network
    return fill(network, SECOND_TIME | network.INIT, seed, device)  # type: ignore[operator]


def rebuild(config: ModelConfig, state: dict[str, Tensor]) -> nn.Module:
    """The network of ``config`` around the given tensors (not copied); keys must match exactly."""
    with torch.device("meta"):
        network = bare(config)
    network.load_state_dict(state, strict=True, assign=True)
    return network


def bare(config: ModelConfig) -> nn.Module:
    """The network with uninitialised weights on the current default device, of two times where the config says so.

    Raises:
        UserError: it has no place for a second time.
    """
    network = config.build()
    if config.second_time:
        conditioners = [part for part in network.modules() if isinstance(part, TwoTimes)]
        if not conditioners:
            raise UserError(f"model.second_time is true and {config.family} takes one time; choose another model")
        for conditioner in conditioners:
            conditioner.take_second_time()
    return network


def fuse(model: nn.Module) -> nn.Module:
    """The fused form of a network: compositions of linear maps are stored as single weights, which are parameters.

    Returns:
        A new module in eval mode, of the same device and dtype; the argument is left bit-identical. Fusing a fused
        network copies it.
    """
    config = cast(ModelConfig, model.config)
    state = dict(model.state_dict())
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, Foldable):
                kept = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
                state = kept | {f"{name}.{key}": value for key, value in module.folded().items()}
    return rebuild(config.folded(), {key: value.detach().clone() for key, value in state.items()}).eval()


def lowered(model: nn.Module) -> nn.Module:
    """A copy whose matrices and convolutions are in bfloat16, as autocast would take them at every call."""
    made = copy.deepcopy(model)
    for layer in made.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(torch.bfloat16)
    return made


def checkpoint_activations(model: nn.Module, recompute: Recompute = True) -> None:
    """Recomputes activations in the backward pass in place of storing them.

    Args:
        model: a network of the catalogue.
        recompute: false stores all; selective recomputes norms, modulation, GELU and what else takes little time, which
            saves a third of a U-DiT's activations for a few hundredths more time; true recomputes whole blocks, which
            takes the least memory and a third more time.
    """
    for module in model.modules():
        if isinstance(module, Checkpointing):
            module.checkpointing = recompute


SELECTIVE_BUDGET = 0.8
"""Share of its activations that a compiled block without kernels keeps under selective recomputation: what is computed
a second time is what costs least, as long as it adds hundredths to the bytes that are moved
(docs/performance/gpu-count.json)."""


def compile_options(model: nn.Module) -> dict[str, bool] | None:
    """Inductor's options: a block makes its weights of a dozen small tensors, for which a GPU can share launches."""
    return {"combo_kernels": True} if any(x.is_cuda for x in model.parameters()) else None


def compile_blocks(model: nn.Module) -> nn.Module:
    """Compiles a network's repeated blocks in place, each shape once: seconds, where the whole network takes minutes.

    Activations are recomputed as ``checkpoint_activations`` says, which comes first.

    Returns:
        The network itself; its weights and their names stay as they are.
    """
    from torch._dynamo import config as dynamo  # takes a second to import

    ops.describe()  # tracing takes the kernels that are loaded
    # Blocks share their code: each shape of a block at each batch size is one compilation of it.
    dynamo.recompile_limit = max(dynamo.recompile_limit, 128)
    options = compile_options(model)
    selective = [m for m in model.modules() if isinstance(m, Checkpointing) and m.checkpointing == "selective"]
    recompute_in_graphs([block for module in selective for block in getattr(module, "blocks", ())])
    for chosen in selective:
        chosen.checkpointing = False  # hooks on saved tensors would break the graphs
    for module in model.modules():
        for block in getattr(module, "blocks", ()):
            block.compile(fullgraph=True, dynamic=False, options=options)
    return model


def recompute_in_graphs(blocks: Sequence[nn.Module]) -> None:
    """Selective recomputation of blocks that are compiled next; none of other blocks.

    Kernels are operators of which the compiler knows nothing and is told which to compute a second time. Where torch's
    own run, it decides itself, within ``SELECTIVE_BUDGET``.
    """
    from torch._functorch import config as functorch

    device = next((x.device for block in blocks for x in block.parameters()), "cpu")
    kernels = ops.describe(device) not in (None, NO_KERNELS)
    functorch.activation_memory_budget = SELECTIVE_BUDGET if blocks and not kernels else 1.0
    for block in blocks if kernels else ():
        recompute_when_compiled(block)
