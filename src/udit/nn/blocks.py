"""Running blocks, with their activations stored for the backward pass or recomputed in it, and joining their outputs.

Axes: B batch, H and W side lengths, N tokens, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from udit import ops
from udit.nn.dropout import recomputed_with_keys
from udit.ops import surroundings

M_co = TypeVar("M_co", bound=nn.Module, covariant=True)
M = TypeVar("M", bound=nn.Module)

Recompute = bool | Literal["selective"]
"""Which activations of a block the backward pass recomputes: none, those that take little time, or all."""


@runtime_checkable
class Checkpointing(Protocol):
    """A module that runs blocks and lets their activations be recomputed."""

    checkpointing: Recompute


class Positioned(Protocol):
    """An attention of maps [B, H, W, D] that may rotate queries and keys by their positions."""

    def positions(self, height: int, width: int, device: torch.device) -> Tensor | None:
        """The rotary table of a map of height x width; None without one."""


@runtime_checkable
class Foldable(Protocol):
    """A part whose fused form has other parameters."""

    def folded(self) -> dict[str, Tensor]:
        """The state of the same part built from its spec's ``folded()``."""


class ModuleSequence(Protocol[M_co]):
    """A ``nn.ModuleList`` whose modules have a known type."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> M_co: ...
    def __iter__(self) -> Iterator[M_co]: ...


def module_list(modules: Iterable[M]) -> ModuleSequence[M]:
    """``nn.ModuleList(modules)``, which for a type checker keeps the modules' type."""
    return cast(ModuleSequence[M], nn.ModuleList(modules))


_residual: ContextVar[torch.dtype | None] = ContextVar("residual stream", default=None)
"""Element type of what blocks add to; None leaves it as it comes."""


@contextlib.contextmanager
def residual_stream(dtype: torch.dtype | None) -> Iterator[None]:
    """Context in which blocks get their map in an element type, in which they then add to it; None changes nothing."""
    token = _residual.set(dtype)
    try:
        yield
    finally:
        _residual.reset(token)


def run(block: nn.Module, recompute: Recompute, x: Tensor, *args: Any) -> Any:
    """``block(x, *args)``; in training its activations are stored for the backward pass or recomputed in it.

    Within transformations of ``torch.func`` and forward-mode derivatives, which a recomputation would run outside of,
    they are stored.
    """
    if (dtype := _residual.get()) is not None:
        x = x.to(dtype)
    if not recompute or not block.training or surroundings.transformed():
        return block(x, *args)
    if recompute == "selective":
        with ops.recomputing():
            return block(x, *args)
    return checkpoint(block, x, *args, use_reentrant=False, context_fn=recomputed_with_keys)


def recompute_when_compiled(block: nn.Module) -> None:
    """Has a compiler recompute what selective recomputation does; for a block that is compiled next.

    Its forward becomes a checkpoint that names operators, from which a graph with all of backward is made.
    """
    forward = block.forward

    def checkpointed(x: Tensor, *args: Any) -> Any:
        if not block.training or not torch.is_grad_enabled():
            return forward(x, *args)

        def bound(x: Tensor) -> Any:
            return forward(x, *args)

        return checkpoint(bound, x, use_reentrant=False, context_fn=ops.recomputed_in_graphs)

    block.forward = checkpointed


class PreNormBlock(nn.Module):
    """Attention and FFN on tokens, each behind a LayerNorm of its own (eps 1e-5); no modulation, as in ViT."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width)
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.attention(ops.recomputable(ops.normalize, self.norm1, x))
        return x + self.ffn(ops.recomputable(ops.normalize, self.norm2, x))


class NormedJoin(nn.Module):
    """A long skip's end: both maps side by side, normalised, mixed back to one width (Chen et al. 2024, Skip-DiT)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width, eps=1e-6)
        self.mix = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Two of [B, H, W, D] -> [B, H, W, D]."""
        both = torch.cat([x, skip], dim=-1)
        norm, precise = self.norm, torch.promote_types(both.dtype, torch.float32)  # half precision in float32, as in
        weight, bias = norm.weight.to(precise), norm.bias.to(precise)  # the release
        normed = ops.layer_norm(both.to(precise), weight, bias, norm.eps)
        return ops.apply(self.mix, normed.to(both.dtype))
