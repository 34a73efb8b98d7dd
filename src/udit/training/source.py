"""A run's data, checked before anything else is built; free of torch, so that a broken image is reported early."""

from __future__ import annotations

from typing import TYPE_CHECKING

from udit.progress import progress_shown

if TYPE_CHECKING:
    from udit.data.sources import Source
    from udit.run.config import Run


def verified_source(run: Run, progress: bool = True) -> Source:
    """The run's images, or the latent cache in their place, every one of them checked.

    Args:
        run: names the data.
        progress: shows how far the check is.

    Raises:
        UserError: there are none, or one of them cannot be read; names the first.
    """
    with progress_shown(progress):
        source = run.source()
        source.verify()
    return source
