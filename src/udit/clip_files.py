"""Writes the clips of a ``Generation`` to files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from udit.clips import FRAMES_PER_SECOND, film, require_av, save_gif, save_mp4
from udit.errors import UserError
from udit.evaluation.sets import GRID
from udit.generation import MAX_STRIP, Generation
from udit.images import grid, save_png
from udit.target import make_room, prepare


def save_clips(
    generation: Generation,
    folder: str | Path,
    kind: Literal["gif", "mp4"] = "gif",
    progress: bool = False,
    *,
    overwrite: bool = False,
    rate: int = FRAMES_PER_SECOND,
) -> None:
    """Writes 000000.gif (or .mp4), 000001.gif ... and grid.png, a row of frames for each of the first clips.

    Each file carries what it depends on, as the PNGs of images do.

    Args:
        generation: of a model that draws clips.
        folder: as of ``Generation.save_pngs``.
        kind: of the files; MP4 needs PyAV.
        progress: shows a progress bar.
        overwrite: removes the files that an earlier call wrote there, and nothing else.
        rate: frames a second.

    Raises:
        UserError: the model draws images, PyAV is missing, or as of ``save_pngs``.
        RunError: as of ``save_pngs``.
    """
    frames, world = generation.frames, generation.world
    if frames is None:
        raise UserError(f"output is {kind} and the model draws images; take png or npz")
    if kind == "mp4":
        require_av()
    out, common = Path(folder), generation.settings()
    prepare(out)
    with world.together():
        world.on_main(make_room, out, overwrite)
    save, shown = save_gif if kind == "gif" else save_mp4, []
    for batch in generation.batches(progress):
        for i, clip in zip(batch.indices, batch.images, strict=True):
            save(clip, out / f"{i:06d}.{kind}", common | generation.settings_of(i), rate)
            if i < MAX_STRIP:
                shown.append(clip)
    count = min(len(generation), MAX_STRIP)
    with world.together():
        clips = generation.in_order(torch.stack(shown) if shown else None, count)
    if world.is_main:
        titles = [text for title in generation.titles(count)[0] for text in (title, *[""] * (frames - 1))]
        save_png(grid(film(clips), titles, frames), out / GRID, common)
