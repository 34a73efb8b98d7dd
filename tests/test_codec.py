"""Pixels survive the way to the network and back."""

from __future__ import annotations

import torch

from udit.data.codec import Identity


def test_every_pixel_value_comes_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = Identity().encode(pixels)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(Identity().decode(x), pixels)


def test_decode_clamps_and_rounds_to_the_nearest() -> None:
    x = torch.tensor([-7.0, 7.0, 10.4 / 127.5 - 1, 10.6 / 127.5 - 1]).view(1, 1, 2, 2)
    assert Identity().decode(x).flatten().tolist() == [0, 255, 10, 11]
