"""Neighbourhood attention in tiles, against attention to all pixels under a mask that is written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import udit
from conftest import perturb
from udit.errors import UserError
from udit.models.hdit.config import HourglassLevel, Mapping
from udit.nn.axial import attend_all
from udit.nn.neighborhood import neighborhood_attention
from udit.nn.specs import AxialNeighborhood


def maps(height: int, width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, height, width, 2, 4, dtype=dtype, generator=generator) for _ in range(3)]


def neighbours(place: int, length: int, kernel: int) -> range:
    """Of one axis: the ``kernel`` places around ``place``, or the last ones before an end."""
    first = place - kernel // 2
    while first < 0:
        first += 1
    while first + kernel > length:
        first -= 1
    return range(first, first + kernel)


def masked(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    """The same by a mask over all pairs of pixels."""
    _, height, width, _, _ = q.shape
    mask = torch.zeros(height, width, height, width, dtype=torch.bool)
    for row in range(height):
        for column in range(width):
            for i in neighbours(row, height, kernel):
                for j in neighbours(column, width, kernel):
                    mask[row, column, i, j] = True
    assert (mask.flatten(2).sum(-1) == kernel**2).all()
    q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in (q, k, v))
    mask = mask.flatten(2).flatten(0, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).unflatten(1, (height, width))


@pytest.mark.parametrize(
    ("height", "width", "kernel"),
    [(7, 7, 7), (8, 8, 3), (9, 20, 5), (3, 30, 3), (16, 10, 7), (17, 7, 7), (5, 6, 1)],
)
def test_tiles_are_attention_under_the_mask_forward_and_backward(height: int, width: int, kernel: int) -> None:
    weights = torch.randn(2, height, width, 2, 4, dtype=torch.float64)
    results = []
    for way in (neighborhood_attention, masked):
        given = [part.requires_grad_() for part in maps(height, width)]
        out = way(*given, kernel)
        results.append([out, *torch.autograd.grad((out * weights).sum(), given)])
    for tiled, whole in zip(*results, strict=True):
        torch.testing.assert_close(tiled, whole, atol=1e-12, rtol=0)


def test_a_neighbourhood_as_large_as_the_map_is_global() -> None:
    given = maps(9, 9)
    torch.testing.assert_close(neighborhood_attention(*given, 9, scale=1.0), attend_all(*given), atol=1e-12, rtol=0)


def test_what_is_kept_for_backward_grows_with_the_pixels_alone() -> None:
    def kept(side: int) -> int:
        sizes = {}
        given = [part.requires_grad_() for part in maps(side, side, torch.float32)]

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            neighborhood_attention(*given, 7)
        return sum(sizes.values())

    assert kept(64) < 1.05 * 4 * kept(32)  # all pairs would keep 16 times as much


STAGES = (
    HourglassLevel(width=16, depth=2, head_channels=8, attention=AxialNeighborhood(kernel=3)),
    HourglassLevel(width=32, depth=1, head_channels=16),
)
TINY: dict[str, Any] = {
    "patch": 1,
    "stages": STAGES,
    "mapping": Mapping(depth=1, width=16),
    "in_channels": 1,
    "num_classes": 5,
    "input_size": 8,
}


GIVEN = torch.randn(3, 1, 8, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 1.0, 20.0])
LABELS = torch.tensor([0, 4, 2])


def test_an_hourglass_of_neighbourhoods_passes_gradients_to_every_parameter_of_a_rectangle() -> None:
    model = perturb(udit.build("HDiT-cifar10", **TINY))
    model(*GIVEN, LABELS).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.slow
@torch.no_grad()
def test_an_hourglass_of_neighbourhoods_exports_for_any_batch() -> None:
    model = perturb(udit.build("HDiT-cifar10", **TINY)).eval()
    (x, t), y = GIVEN, LABELS
    size = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (x, t, y), dynamic_shapes=({0: size},) * 3).module()
    out = model(x[:2], t[:2], y[:2])
    torch.testing.assert_close(program(x[:2], t[:2], y[:2]), out, atol=1e-5, rtol=1e-5)


def test_kernels_and_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel is 4; a neighbourhood around a pixel needs an odd side"):
        AxialNeighborhood(kernel=4)
    with pytest.raises(UserError, match="neighbourhoods of 3x3 do not fit a level's map of 2x8"):
        udit.build("HDiT-cifar10", device="meta", **TINY | {"input_size": (2, 8)})
