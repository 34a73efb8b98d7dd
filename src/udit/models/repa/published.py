"""Key names of the REPA release: SiT's, and those of the projectors before the head."""

from __future__ import annotations

from collections.abc import Iterator

from udit.models.dit.published import transformer_rows
from udit.models.fixed import Keys, Row, both
from udit.models.repa.config import REPAConfig


def key_map(config: REPAConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: REPAConfig) -> Iterator[Row]:
    rows = list(transformer_rows(config, config.out_channels))
    head = next(i for i, (key, _, _) in enumerate(rows) if key.startswith("final_layer."))
    yield from rows[:head]
    hidden = config.projectors.hidden
    for i, width in enumerate(config.projectors.widths):
        for layer, shape in ((0, (hidden, config.width)), (2, (hidden, hidden)), (4, (width, hidden))):
            yield from both(f"projectors.{i}.{layer}", f"projectors.{i}.{layer}", shape)
    yield from rows[head:]
