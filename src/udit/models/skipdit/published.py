"""Key names of the Skip-DiT release: DiT's, then the skips'."""

from __future__ import annotations

from collections.abc import Iterator

from udit.models.dit.published import transformer_rows
from udit.models.fixed import Keys, Row, both
from udit.models.skipdit.config import SkipDiTConfig


def key_map(config: SkipDiTConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: SkipDiTConfig) -> Iterator[Row]:
    yield from transformer_rows(config, config.out_channels)
    for i in range(config.depth // 2):
        yield from both(f"skip_norms.{i}", f"joins.{i}.norm", (2 * config.width,))
    for i in range(config.depth // 2):
        yield from both(f"skip_linears.{i}.linear", f"joins.{i}.mix", (config.width, 2 * config.width))
