"""Key names of the Latte release: DiT's, and a table of times."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from udit.models.dit.published import transformer_rows
from udit.models.fixed import Fixed, Keys, Row
from udit.models.latte.config import LatteConfig
from udit.nn.tokens import sincos_axis


def key_map(config: LatteConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: LatteConfig) -> Iterator[Row]:
    places, *rest = transformer_rows(config, config.out_channels)
    yield places
    times = Fixed(lambda: sincos_axis(torch.arange(config.frames), config.width), parameter=True)
    yield "temp_embed", times, (1, config.frames, config.width)
    yield from rest
