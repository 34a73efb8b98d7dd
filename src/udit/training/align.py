"""Alignment of a block's features with those of a vision model (REPA, Yu et al. 2025; U-REPA, Tian et al. 2025).

The vision model's features come from the latent cache, so that it never runs here. A projector maps those of a block to
them; it belongs to the training alone, unless the network has projectors of its own.

Axes: B batch, D channels of the block, Z channels of the vision model, h and w sides of the block's map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit.data.cache_config import TeacherFacts
from udit.diffusion.alignment import alignment_loss, manifold_loss
from udit.diffusion.denoiser import Backbone
from udit.dist import World
from udit.errors import UserError
from udit.models.build import build
from udit.models.config import ModelConfig
from udit.nn.init import fill
from udit.nn.projection import INIT, projector
from udit.optim.adamw import adamw
from udit.optim.groups import choices_of
from udit.optim.optimizer import Optimizer
from udit.run.config import AlignConfig, Run
from udit.training.source import teacher_of

HIDDEN = 2048
"""Channels between a projector's matrices, as in REPA."""


@dataclass(frozen=True)
class Block:
    """A block of a network, and the map that it returns."""

    name: str
    """Of the module."""
    width: int
    """D."""
    grid: tuple[int, int]
    """(h, w)"""


def blocks_of(config: ModelConfig) -> list[Block]:
    """The blocks of a network in the order in which they run, found by running it on the meta device."""
    model = build(config, device="meta").eval()
    names = {
        id(block): f"{name}.blocks.{i}".lstrip(".")
        for name, module in model.named_modules()
        for i, block in enumerate(getattr(module, "blocks", ()))
    }
    found: list[Block] = []

    def see(module: nn.Module, _inputs: Any, output: Any) -> None:
        x = _first(output)
        if x.ndim > 2:  # others make the condition
            tokens = _tokens(x)[:, config.leading_tokens :]
            found.append(Block(names[id(module)], x.shape[-1], _grid(x, tokens.shape[1], config.size)))

    for module in model.modules():
        if id(module) in names:
            module.register_forward_hook(see)
    shape = config.condition_shape
    dtype = torch.float32 if shape else torch.long
    y = None if shape is None else torch.zeros(1, *shape, dtype=dtype, device="meta")
    with torch.no_grad():
        model(torch.empty(1, config.input_channels, *config.size, device="meta"), torch.zeros(1, device="meta"), y)
    return found


def chosen(config: AlignConfig, model: ModelConfig) -> tuple[Block, int]:
    """The block that a run aligns, and the factor by which its projected features are enlarged.

    Raises:
        UserError: the network has fewer blocks, or says itself what it aligns.
    """
    model.refuse_clips("training.align")
    blocks, after = blocks_of(model), config.after_block
    if model.aligned_widths is not None:
        for key in ("after_block", "hidden"):
            if getattr(config, key) is not None:
                raise UserError(
                    f"training.align.{key} is {getattr(config, key)} and {model.family} has projectors of its own; set "
                    f"model.projectors.{key}"
                )
        after = cast(Any, model).projectors.after_block
    after = len(blocks) // 2 if after is None else after
    if not 1 <= after <= len(blocks):
        raise UserError(
            f"training.align.after_block is {after} and the network has {len(blocks)} blocks; it is at most their "
            "number"
        )
    block, full = blocks[after - 1], max(math.prod(each.grid) for each in blocks)
    return block, config.upsample or (2 if math.prod(block.grid) < full else 1)


class Joined(nn.Module):
    """A network and the projector behind one of its blocks: x, t, y -> what the network returns, and [B, h, w, Z]."""

    def __init__(self, model: nn.Module, block: Block, projector: nn.Module | None) -> None:
        super().__init__()
        self.model, self.grid, self.projector = model, block.grid, projector
        self.leading = cast(ModelConfig, model.config).leading_tokens
        self.block = block.name
        self.taken: Tensor | None = None
        """What the block has returned."""

    def _take(self, _block: nn.Module, _inputs: Any, output: Any) -> None:
        self.taken = _first(output)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See the class; a network with projectors of its own makes the features itself."""
        if self.projector is None:
            out, (projected,) = cast(Any, self.model).aligned(x, t, y)
            return out, projected.unflatten(1, self.grid)
        # for this pass alone: the model may be copied
        hook = self.model.get_submodule(self.block).register_forward_hook(self._take)
        try:
            out = self.model(x, t, y)
        finally:
            hook.remove()
        assert self.taken is not None, "the block has run"
        tokens, self.taken = _tokens(self.taken)[:, self.leading :], None
        return out, self.projector(tokens).unflatten(1, self.grid)


class Alignment:
    """The projector of a run with its optimiser, and the loss of its features."""

    def __init__(
        self, run: Run, model: nn.Module, teacher: TeacherFacts, block: Block, upsample: int, *, filled: bool = True
    ) -> None:
        """Builds the projector on the model's device, with the weights of step 0.

        Args:
            run: says how features are aligned.
            model: the network in training.
            teacher: the vision model.
            block: of ``chosen``.
            upsample: of ``chosen``.
            filled: draws the projector's weights; its shapes need none.
        """
        assert run.training.align is not None, "a run that aligns"
        self.config, self.run, self.upsample = run.training.align, run, upsample
        own = run.model.aligned_widths is not None
        device = next(model.parameters()).device
        self.projector: nn.Module | None = None
        self.optimizer: Optimizer | None = None
        if not own:
            with torch.device("meta" if filled else device):
                empty = projector(block.width, self.config.hidden or HIDDEN, teacher.shape[0])
            self.projector = fill(empty, INIT, run.seed, device) if filled else empty
            choices = choices_of(self.projector, weight_decay=run.training.weight_decay)
            self.optimizer = adamw(self.projector, choices, run.training.betas)
        self.joined = Joined(model, block, self.projector)
        self.projected: Tensor | None = None
        """Of the latest forward pass."""

    def backbone(self, network: nn.Module) -> Backbone:
        """``joined``, or what averages its gradients over ranks, as a network alone; keeps what it projected."""

        def run(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            out, self.projected = network(x, t, y)
            return out

        return run

    def losses(self, features: Tensor) -> Tensor:
        """Per-sample losses [B] of the latest forward pass, weighted, against features [B, Z, h', w']."""
        assert self.projected is not None, "the network has run"
        predicted, self.projected = self.projected.float().permute(0, 3, 1, 2), None
        if self.upsample > 1:
            predicted = F.interpolate(predicted, scale_factor=self.upsample, mode="bilinear")
        wanted = resampled(features.to(predicted), predicted.shape[2:])
        pair = predicted.flatten(2).transpose(1, 2), wanted.flatten(2).transpose(1, 2)
        loss = alignment_loss(*pair)
        if self.config.manifold:
            loss = loss + self.config.manifold * manifold_loss(*pair, scope=self.config.scope)
        return self.config.weight * loss

    @property
    def bytes(self) -> int:
        """Size of what a checkpoint holds of it."""
        if self.projector is None or self.optimizer is None:
            return 0
        return sum(p.numel() * p.element_size() for p in self.projector.parameters()) + self.optimizer.bytes

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds of it."""
        if self.projector is None or self.optimizer is None:
            return {}
        return {"projector": self.projector.state_dict(), "projector-optim": self.optimizer.tensors()}

    def restore(self, projector: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """Takes the state of a checkpoint."""
        assert self.projector is not None and self.optimizer is not None, "a projector of the training's"
        self.projector.load_state_dict(projector, strict=True)
        self.optimizer.load(optimizer)

    def share(self, world: World, step: int) -> None:
        """Sends rank 0's state to every rank."""
        if self.projector is None or self.optimizer is None:
            return
        world.broadcast(self.projector.state_dict().values())
        if step and world.size > 1:
            self.optimizer.share(world)


def alignment_of(run: Run, model: nn.Module) -> Alignment | None:
    """The alignment of a run's network; None of a run that has none.

    Raises:
        UserError: the latent cache holds no vision model's features, or the network has no such block.
    """
    if run.training.align is None:
        return None
    return Alignment(run, model, teacher_of(run), *chosen(run.training.align, run.model))


def resampled(features: Tensor, grid: tuple[int, int] | torch.Size) -> Tensor:
    """A vision model's map [B, Z, h', w'] on another grid (h, w): bilinear, averaged where it shrinks."""
    if tuple(features.shape[2:]) == tuple(grid):
        return features
    return F.interpolate(features, size=tuple(grid), mode="bilinear", antialias=True)


def _first(output: Any) -> Tensor:
    """The map of a block that returns further tensors behind it."""
    return output if isinstance(output, Tensor) else output[0]


def _tokens(x: Tensor) -> Tensor:
    """[B, h, w, D] or [B, N, D] -> [B, N, D]."""
    return x.flatten(1, 2) if x.ndim == 4 else x


def _grid(x: Tensor, count: int, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a block's output: that of its map, or of so many tokens of an input of this size."""
    if x.ndim == 4 and x.shape[1] * x.shape[2] == count and x.shape[1] > 1:
        return x.shape[1], x.shape[2]
    patch = round((size[0] * size[1] / count) ** 0.5)
    return size[0] // patch, size[1] // patch
