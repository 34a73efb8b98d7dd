"""A run's data, checked before anything else is built; free of torch, so that a broken image is reported early."""

from __future__ import annotations

from typing import TYPE_CHECKING

from udit.errors import UserError
from udit.progress import progress_shown

if TYPE_CHECKING:
    from udit.data.cache_config import TeacherFacts
    from udit.data.sources import Source
    from udit.run.config import Run


def verified_source(run: Run, progress: bool = True) -> Source:
    """The run's images, or the latent cache in their place, every one of them checked.

    Args:
        run: names the data.
        progress: shows how far the check is.

    Raises:
        UserError: there are none, or one of them cannot be read; names the first. A vision model's features are asked
            for, and there are none, or the network predicts those of another.
    """
    if run.training.align is not None:
        check_teacher(run)
    with progress_shown(progress):
        source = run.source()
        source.verify()
    return source


def teacher_of(run: Run) -> TeacherFacts:
    """The vision model whose features the latent cache of a run holds.

    Raises:
        UserError: there is no cache, or it has no such features.
    """
    from udit.data.latents import read_manifest

    found = None if run.latents is None else read_manifest(run.latents).plan.teacher
    if found is None:
        where = "latents is not given" if run.latents is None else f"the latent cache {str(run.latents)!r} has none"
        raise UserError(
            f"training.align needs a vision model's features, and {where}; write them with `udit encode RECIPE "
            "--teacher efficientnet-lite0 --out FOLDER` and give latents=FOLDER"
        )
    return found


def check_teacher(run: Run) -> None:
    """Refuses a run that aligns without features, or with those of another width than a network's own projectors.

    Raises:
        UserError: it does.
    """
    teacher, widths = teacher_of(run), run.model.aligned_widths
    if widths not in (None, teacher.shape[:1]):
        raise UserError(
            f"model.projectors.widths is {list(widths or ())} and the features of {teacher.name} in the latent cache "
            f"have {teacher.shape[0]} channels; set model.projectors.widths=[{teacher.shape[0]}]"
        )
