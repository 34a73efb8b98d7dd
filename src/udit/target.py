"""The folder that generated images are written to: made, tried, and cleared of earlier ones."""

from __future__ import annotations

import re
from pathlib import Path

from udit.clips import has_settings as clip_has_settings
from udit.data.listing import is_image
from udit.errors import UserError
from udit.evaluation.sets import GRID
from udit.files import check_writable
from udit.images import has_settings


def make_room(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that holds images already, or removes those that an earlier call wrote, before the first one.

    Which ones these are their names and text chunks say.

    Raises:
        UserError: there are images, and they were written by something else or are not to be removed.
    """
    try:
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}; give a readable folder with --out") from None
    found = [entry for entry in visible if (is_image(entry.name) or entry.suffix == ".mp4") and entry.is_file()]
    own = [entry for entry in found if _is_ours(entry)]
    if foreign := sorted(set(found) - set(own)):
        raise UserError(
            f"{folder} holds images that `udit sample` did not write, e.g. {foreign[0].name}, and a score would mix "
            "them with new ones; give another folder with --out"
        )
    if own and not overwrite:
        count = sum(entry.name != GRID for entry in own)
        raise UserError(
            f"{folder} holds {count} images of an earlier `udit sample`; give another folder with --out, or "
            "--overwrite to replace them"
        )
    for entry in own:
        entry.unlink()


def _is_ours(path: Path) -> bool:
    """Whether a file is one that ``udit sample`` writes: by its name, and by the settings that it carries."""
    if path.name != GRID and re.fullmatch(r"\d{6,}\.(png|gif|mp4)", path.name) is None:
        return False
    try:
        return not path.is_symlink() and (has_settings if path.suffix == ".png" else clip_has_settings)(path)
    except OSError:
        return False


def prepare(folder: Path) -> None:
    """Makes a folder and checks that it can be written to, before the first image is sampled."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; give a writable folder with --out") from None
