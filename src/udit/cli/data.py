"""``udit data``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from udit.cli.output import say, table

if TYPE_CHECKING:
    from udit.data.check import Contents

data = App(name="data", help="Check data before training on it.", help_format="plaintext")


@data.command
def check(path: Path, /, *, size: int = 64) -> int:
    """List everything in a data set that training would refuse, one line each, and count what it holds.

    Every image is decoded as training would decode it. Exit code 1 where something is bad. A folder that passes is not
    decoded again before a run at this size while its files do not change.

    Parameters
    ----------
    path
        A folder that holds one folder of images per class, a folder of IDX files, or an .npz file.
    size
        Side of the squares that training would crop the images of a folder to.
    """
    from udit.data.check import Contents
    from udit.data.check import check as lines_of

    contents = Contents()
    for line in lines_of(path.expanduser(), size, contents):
        say(line)
    _tell(contents)
    return 1 if contents.bad else 0


def _tell(contents: Contents) -> None:
    rows = [(name if name.isprintable() else repr(name), count, bad) for name, (count, bad) in contents.classes.items()]
    rows.append(("all", sum(count for _, count, _ in rows), sum(bad for _, _, bad in rows)))
    say(table(("class", "images", "bad"), rows))
    if contents.formats:
        say("formats: " + ", ".join(f"{count} {name}" for name, count in contents.formats.most_common()))
    if contents.sizes:
        shown = [f"{count} of {width}x{height}" for (width, height), count in contents.sizes.most_common(5)]
        shorter = [min(size) for size in contents.sizes]
        more = f" and {len(contents.sizes) - 5} more" if len(contents.sizes) > 5 else ""
        say(f"sizes: {', '.join(shown)}{more}; shorter sides {min(shorter)} to {max(shorter)}")
    for what, (count, first) in contents.notes.items():
        say(f"note: {what} ({count} file{'s' if count != 1 else ''}, e.g. {first})")
    say(f"{contents.bad} bad" if contents.bad else "no problems found")
