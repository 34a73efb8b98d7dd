"""The hidden states of a run's captions: written once, then read, so that no step runs the language model."""

from __future__ import annotations

import logging
from pathlib import Path

from udit.data.captions import captions_of
from udit.data.sources import Source
from udit.dist import World
from udit.errors import UserError
from udit.progress import progress_bar
from udit.run.config import Run
from udit.text.cache import Texts, folder_for, with_empty, write

log = logging.getLogger(__name__)
FOLDER = "texts"
"""In a latent cache."""


def texts_of(run: Run, source: Source, world: World, root: Path | None = None, progress: bool = True) -> Texts | None:
    """The conditions of a run's captions; None for a run without texts.

    They are kept in the latent cache that ``udit encode`` wrote, or in the user's cache, where another run finds them.

    Args:
        run: names the language model.
        source: of its images.
        world: this process's place among its peers; each writes its share of what is missing.
        root: the folder to write to, in place of those.
        progress: shows a bar while the language model runs.

    Raises:
        UserError: the images have no captions, or the language model cannot be loaded.
        RunError: the disk refuses it.
    """
    if run.text is None:
        return None
    captions = captions_of(source)
    if captions is None:
        raise UserError(
            "the model takes texts and the images have no captions; encode the latent cache again, or set data.captions"
        )
    known = with_empty(captions.distinct())
    if root is None:
        encoded = run.latents.expanduser() / FOLDER if run.latents else None
        root = encoded if encoded is not None and encoded.is_dir() else folder_for(run.text, known)
    share = -(-len(known) // world.size)
    with progress_bar(share, "captions", "text", show=progress and world.is_main, leave=False) as bar:
        if write(root, run.text, known, world, bar.update):
            log.info("the hidden states of %s captions are in %s", f"{len(known):,}", root)
    shape = run.model.condition_shape
    assert shape, "the run's rules refuse a text for a model that takes none"
    return Texts(root, run.text, known, shape)
