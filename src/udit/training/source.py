"""A run's data, checked before anything else is built; free of torch, so that a broken image is reported early."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from udit.data.sources import Source
    from udit.run.config import Run


def verified_source(run: Run) -> Source:
    """The run's images, or the latent cache in their place, every one of them checked.

    Raises:
        UserError: there are none, or one of them cannot be read; names the first.
    """
    source = run.source()
    source.verify()
    return source
