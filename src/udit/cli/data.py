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


SHOWN = 20
"""Classes that a check shows, if there are more than twice as many."""


def _tell(contents: Contents) -> None:
    classes = list(contents.classes.items())
    all_of = ("all", sum(count for _, (count, _) in classes), sum(bad for _, (_, bad) in classes))
    more = len(classes) - SHOWN if len(classes) > 2 * SHOWN else 0
    shown = classes[:SHOWN] if more else classes
    rows = [(name if name.isprintable() else repr(name), count, bad) for name, (count, bad) in shown]
    if more:
        rest = classes[SHOWN:]
        rows.append((f"{more:,} more", sum(count for _, (count, _) in rest), sum(bad for _, (_, bad) in rest)))
    say(table(("class", "images", "bad"), [*rows, all_of]))
    if contents.formats:
        say("formats: " + ", ".join(f"{count} {name}" for name, count in contents.formats.most_common()))
    if contents.sizes:
        sizes = [f"{count} of {width}x{height}" for (width, height), count in contents.sizes.most_common(5)]
        shorter = [min(size) for size in contents.sizes]
        others = f" and {len(contents.sizes) - 5} more" if len(contents.sizes) > 5 else ""
        say(f"sizes: {', '.join(sizes)}{others}; shorter sides {min(shorter)} to {max(shorter)}")
    for note in contents.notes:
        say(f"note: {note}")
    say(f"{contents.bad} bad" if contents.bad else "no problems found")
