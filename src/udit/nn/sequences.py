"""Images of any sizes as rows of tokens, several in one row, and back.

Axes: B rows, C channels, N tokens of the longest row, p patch side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from udit.errors import UserError
from udit.nn.tokens import patchify


class Packed(NamedTuple):
    """Rows of tokens, as ``FiT.sequence`` takes them."""

    tokens: Tensor
    """[B, N, C p p], zero at padding."""
    grid: Tensor
    """[B, 2, N] int64: the token's column, and its row."""
    mask: Tensor
    """[B, N] int64: the number of the token's image within the row, from 1; 0 is padding."""


def pack(rows: Sequence[Sequence[Tensor]], patch: int) -> Packed:
    """Lays images [C, H, W] one behind the other in rows, each of which shares t and label.

    Raises:
        UserError: a side is no multiple of ``patch``.
    """
    packed = []
    for images in rows:
        parts = [_tokens(image, patch) for image in images]
        tokens = torch.cat([tokens for tokens, _ in parts])
        grid = torch.cat([grid for _, grid in parts], dim=1)
        numbers = [torch.full((len(part),), i, device=part.device) for i, (part, _) in enumerate(parts, start=1)]
        packed.append((tokens, grid, torch.cat(numbers)))
    longest = max(len(tokens) for tokens, _, _ in packed)
    return Packed(
        torch.stack([F.pad(tokens, (0, 0, 0, longest - len(tokens))) for tokens, _, _ in packed]),
        torch.stack([F.pad(grid, (0, longest - grid.shape[1])) for _, grid, _ in packed]),
        torch.stack([F.pad(mask, (0, longest - len(mask))) for _, _, mask in packed]),
    )


def unpack(tokens: Tensor, packed: Packed, patch: int) -> list[list[Tensor]]:
    """The images [C', H, W] of rows of tokens [B, N, C' p p] that are laid out as ``packed``."""
    return [
        [_image(row[mask == i], grid[:, mask == i], patch) for i in range(1, int(mask.max()) + 1)]
        for row, grid, mask in zip(tokens, packed.grid, packed.mask, strict=True)
    ]


def check_sequence(x: Tensor, grid: Tensor, mask: Tensor, channels: int) -> None:
    """Refuses rows of tokens whose parts do not fit.

    Raises:
        UserError: shapes differ from [B, N, channels], [B, 2, N] and [B, N].
    """
    batch, tokens = x.shape[0], x.shape[1]
    shapes = [list(part.shape) for part in (x, grid, mask)]
    wanted = [[batch, tokens, channels], [batch, 2, tokens], [batch, tokens]]
    if shapes != wanted:
        raise UserError(
            f"tokens, grid and mask are {shapes[0]}, {shapes[1]} and {shapes[2]}; they must be {wanted[0]}, "
            f"{wanted[1]} and {wanted[2]}"
        )


def _tokens(image: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """[C, H, W] -> tokens [n, C p p], grid [2, n]."""
    height, width = image.shape[1:]
    if height % patch or width % patch:
        raise UserError(
            f"an image of {height}x{width} does not split into {patch}x{patch} patches; its sides must be multiples of "
            f"{patch}"
        )
    patches = patchify(image[None], patch)[0]
    rows, columns = (torch.arange(side, device=image.device) for side in patches.shape[:2])
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return patches.flatten(0, 1), torch.stack([column.flatten(), row.flatten()])


def _image(tokens: Tensor, grid: Tensor, patch: int) -> Tensor:
    """Tokens [n, C p p], grid [2, n] -> [C, H, W]."""
    width, height = (int(side) + 1 for side in grid.amax(dim=1))
    return F.pixel_shuffle(tokens.T.unflatten(1, (height, width)), patch)
