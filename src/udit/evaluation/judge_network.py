"""The networks of judges, by the name of their version; older ones are kept so that files of them can be read."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_FEATURES = 32
MAP_SIDE, LAST_SIDE = 16, 4
"""Longest sides of the map that the first convolution makes, and of the one that is pooled."""


class Residual(nn.Module):
    """x + f(x), where f is two 3x3 convolutions, each followed by batch norm and ReLU."""

    def __init__(self, width: int) -> None:
        """Takes the number of channels."""
        super().__init__()
        self.first = convolution(width, width)
        self.second = convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        out: Tensor = x + self.second(self.first(x))
        return out


class JudgeNet(nn.Module):
    """A residual network: a map of at most 16x16, halved down to 4x4 with doubled width, its quadrants, 32 features.

    It has a residual block at each size (He et al. 2016, arXiv 1512.03385). The first map has 32 channels, or 16 where
    it is at most 8x8.
    """

    LAYOUT: ClassVar[torch.memory_format] = torch.channels_last
    """Of weights and maps: a quarter faster on a CPU, with other last bits."""

    def __init__(self, channels: int, side: int, num_classes: int) -> None:
        """Takes the images' channels and longer side, and the number of classes."""
        super().__init__()
        patch = -(-side // MAP_SIDE)
        side = -(-side // patch)
        width = 32 if side > MAP_SIDE // 2 else 16
        layers: list[nn.Module] = [convolution(channels, width, stride=patch, reach=patch), Residual(width)]
        while side > LAST_SIDE:
            layers += [convolution(width, 2 * width, stride=2), Residual(2 * width)]
            side, width = -(-side // 2), 2 * width
        self.body = nn.Sequential(*layers)
        self.features = nn.Linear(4 * width, NUM_FEATURES)
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Features [B, 32], at least 0, of x [B, C, H, W] in [-1, 1]."""
        return of_quadrants(self.features, self.body(x.contiguous(memory_format=self.LAYOUT)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of x [B, C, H, W] in [-1, 1]."""
        logits: Tensor = self.head(self.embed(x))
        return logits


def convolution(channels: int, width: int, *, stride: int = 1, reach: int = 1) -> nn.Sequential:
    """A convolution of ``2 * reach + 1`` squared without bias, batch norm, ReLU."""
    conv = nn.Conv2d(channels, width, 2 * reach + 1, stride, padding=reach, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def of_quadrants(linear: nn.Linear, x: Tensor) -> Tensor:
    """Features [B, F], at least 0, of a map [B, C, H, W].

    Of the mean of each quadrant: a single mean would be the same for a 6 and a 9, which have the same strokes.
    """
    return F.relu(linear(F.adaptive_avg_pool2d(x, 2).flatten(1)))


class PlainJudgeNet(nn.Module):
    """The network of ``udit-judge-2``: a convolution with group norm at each size, quadrants, 32 features."""

    LAYOUT: ClassVar[torch.memory_format] = torch.contiguous_format

    def __init__(self, channels: int, side: int, num_classes: int) -> None:
        """Takes the images' channels and longer side, and the number of classes."""
        super().__init__()
        patch = max(1, side // 16)
        strides = [patch]
        while side / math.prod(strides) > 4:
            strides.append(2)
        strides.append(1)
        reach = [patch] + [1] * (len(strides) - 1)
        widths = [channels, *(min(16 * 2**i, 64) for i in range(len(strides)))]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 2 * r + 1, stride, padding=r)
            for (a, b), stride, r in zip(pairwise(widths), strides, reach, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.features = nn.Linear(4 * widths[-1], NUM_FEATURES)
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Features [B, 32], at least 0, of x [B, C, H, W] in [-1, 1]."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return of_quadrants(self.features, x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of x [B, C, H, W] in [-1, 1]."""
        logits: Tensor = self.head(self.embed(x))
        return logits


Network = JudgeNet | PlainJudgeNet
NAME = "udit-judge-3"
"""Changes with the network or its training; scores of judges of different names must not be compared."""
NETWORKS: dict[str, type[Network]] = {NAME: JudgeNet, "udit-judge-2": PlainJudgeNet}
"""Of this version and of those whose files and scores are still read."""
