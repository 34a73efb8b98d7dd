"""HDiT (Crowson et al. 2024, arXiv 2401.11605), written out.

Axes: B batch, C input channels, H and W side lengths, D width of the level at hand, E length of the condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from udit.errors import UserError
from udit.models.hdit.config import HDiTConfig, HourglassLevel
from udit.nn import init
from udit.nn.axial import AxialAttention
from udit.nn.blocks import module_list, run
from udit.nn.conditioning import check_times, label_rows
from udit.nn.hourglass import (
    FourierFeatures,
    HourglassBlock,
    Join,
    Labels,
    MappingBlock,
    PatchMerge,
    PatchSplit,
    ScaledNorm,
)
from udit.ops import to_first, to_last

Scales = tuple[Tensor, Tensor]


class Conditioner(nn.Module):
    """Embeds noise level, label, augmentation and a free vector, and maps their sum to the condition [B, E]."""

    AUGMENTATIONS = 9

    def __init__(self, config: HDiTConfig) -> None:
        super().__init__()
        width = config.mapping.width
        self.time_features = FourierFeatures(1, width)
        self.time = nn.Linear(width, width, bias=False)
        self.augmentation_features = FourierFeatures(self.AUGMENTATIONS, width)
        self.augmentation = nn.Linear(width, width, bias=False)
        self.label = nn.Embedding(config.num_classes + 1, width) if config.num_classes else None
        self.vector = nn.Linear(config.vector_cond, width, bias=False) if config.vector_cond else None
        self.norm_in = ScaledNorm(width)
        self.blocks = nn.ModuleList(MappingBlock(width, config.mapping.hidden) for _ in range(config.mapping.depth))
        self.norm_out = ScaledNorm(width)

    def forward(self, sigma: Tensor, given: Labels) -> Tensor:
        """sigma [B] > 0 and what else is known -> [B, E]."""
        check_times(sigma)
        precise = torch.promote_types(self.time.weight.dtype, torch.float32)
        sigma = sigma.to(precise).clamp(min=torch.finfo(torch.float32).tiny)  # sigma 0 has no logarithm
        x = self.time(self.time_features(sigma.log()[:, None] / 4))
        augmentation = given.augmentation
        if augmentation is None:
            augmentation = sigma.new_zeros(sigma.shape[0], self.AUGMENTATIONS)
        x = x + self.augmentation(self.augmentation_features(augmentation))
        if self.label is not None:
            null = self.label.num_embeddings - 1
            x = x + label_rows(self.label, given.label, sigma, null)
        elif given.label is not None:
            raise UserError("the model is unconditional (num_classes 0) and takes no labels; pass y=None")
        if given.vector is not None:
            if self.vector is None:
                raise UserError("the model takes no condition vector (vector_cond 0); leave it out")
            x = x + self.vector(given.vector.to(x.dtype))
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x)


class Stage(nn.Module):
    """The blocks of one level on one side of the hourglass, all [B, H, W, width].

    Args:
        spec: the level.
        cond: E.
        halvings: how often the finest level's map is halved to this level's.
        start: index of the first block; blocks of odd index have shifted windows.
    """

    def __init__(self, spec: HourglassLevel, cond: int, halvings: int, start: int = 0) -> None:
        super().__init__()
        self.blocks = module_list(
            HourglassBlock(
                spec.attention.build(spec.width, spec.heads, i % 2 == 1, spec.dropout),
                *(spec.width, spec.hidden, cond, spec.dropout),
            )
            for i in range(start, start + spec.depth)
        )
        self.halvings = halvings
        self.checkpointing = False

    def condition(self, cond: Tensor) -> list[Scales]:
        """[B, E] -> what it does to every block."""
        return [block.condition(cond) for block in self.blocks]

    def forward(self, x: Tensor, scales: Sequence[Scales]) -> Tensor:
        """[B, H, W, width] -> [B, H, W, width]."""
        attention = cast(AxialAttention, self.blocks[0].attention)
        positions = attention.positions(x.shape[1], x.shape[2], x.device, self.halvings, x.dtype)
        for block, scale in zip(self.blocks, scales, strict=True):
            x = run(block, self.checkpointing, x, scale, positions)
        return x


class Conditions(NamedTuple):
    """All of the network that depends on sigma and the labels alone: by level, of every block."""

    encoder: list[list[Scales]]
    middle: list[Scales]
    decoder: list[list[Scales]]


class HDiT(nn.Module):
    """Backbone: x [B, C, H, W], sigma [B], y [B] int64, ``Labels`` or None (= null) -> [B, out_channels, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^patch_out\.|attention\.out\.|contract\.|_scale\.": init.constant(0.0),
        r"attention\.scale$": init.constant(10.0),
        r"^join\.\d+\.weight$": init.constant(0.5),
        r"norm(_in|_out)?\.weight$": init.constant(1.0),
        r"(_features|label)\.weight$": init.gaussian(1.0),
        r"": init.torch_default,
    }

    def __init__(self, config: HDiTConfig) -> None:
        super().__init__()
        self.config = config
        *outer, middle = config.stages
        cond, widths = config.mapping.width, [stage.width for stage in config.stages]
        self.conditioner = Conditioner(config)
        self.patch_in = PatchMerge(config.input_channels, widths[0], config.patch)
        self.encoder = module_list(Stage(spec, cond, level) for level, spec in enumerate(outer))
        self.merge = nn.ModuleList(PatchMerge(fine, coarse, 2) for fine, coarse in pairwise(widths))
        self.middle = Stage(middle, cond, len(outer))
        self.join = nn.ModuleList(Join(coarse, fine) for fine, coarse in pairwise(widths))
        self.decoder = module_list(Stage(spec, cond, level, spec.depth) for level, spec in enumerate(outer))
        self.norm_out = ScaledNorm(widths[0])
        self.patch_out = PatchSplit(widths[0], config.out_channels, config.patch)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | Labels | None = None) -> Tensor:
        """x [B, C, H, W], t [B] the noise level sigma, y as the class says -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skip = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skip, cond)

    def condition(self, t: Tensor, y: Tensor | Labels | None = None) -> Conditions:
        """Everything that sigma and the labels decide."""
        cond = self.conditioner(t, y if isinstance(y, Labels) else Labels(y))
        encoder, decoder = ([s.condition(cond) for s in side] for side in (self.encoder, self.decoder))
        return Conditions(encoder, self.middle.condition(cond), decoder)

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, Tensor | None]:
        """The finest level in: [B, C, H, W] -> the map [B, H / p, W / p, D] and its skip, if it has one."""
        self.config.check_size(*x.shape[2:])
        x = self.patch_in(to_last(x))
        if not len(self.encoder):
            return x, None
        x = self.encoder[0](x, cond.encoder[0])
        return x, x

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """All below the finest level, which step caching keeps: [B, H, W, D] -> the map one level down."""
        skips: list[Tensor] = []
        for level in range(1, len(self.encoder)):
            x = self.encoder[level](self.merge[level - 1](x), cond.encoder[level])
            skips.append(x)
        x = self.merge[-1](x) if len(self.merge) else x
        x = self.middle(x, cond.middle)
        for level in range(len(self.decoder) - 1, 0, -1):
            x = self.decoder[level](self.join[level](x, skips.pop()), cond.decoder[level])
        return x

    def leave(self, x: Tensor, skip: Tensor | None, cond: Conditions) -> Tensor:
        """The finest level out: the map from below and the skip -> [B, out_channels, H, W]."""
        if skip is not None:
            x = self.decoder[0](self.join[0](x, skip), cond.decoder[0])
        return to_first(self.patch_out(self.norm_out(x)))
