"""``udit data``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from udit.cli.output import say, table
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.data.check import Contents

data = App(name="data", help="Check data before training on it.", help_format="plaintext")


@data.command
def check(
    path: Path,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=False)],
    size: int = 64,
    bits: int = 16,
) -> int:
    """List everything in a data set that training would refuse, one line each, and count what it holds.

    Every image is decoded as training would decode it. Exit code 1 where something is bad. A folder that passes is not
    decoded again before a run at this size while its files do not change.

    Parameters
    ----------
    path
        A folder of images, with one folder per class or without labels; a folder of IDX files; an .npz file or a folder
        of some; a zip or folder with dataset.json; .tar shards of webdataset; LMDBs of LSUN; or a folder of clips
        (data.kind=clips where they are GIFs or folders of frames).
    overrides
        data.KEY=VALUE, as in a recipe: what the path does not say, e.g. data.labels=labels.csv or data.size=[48,64]
    size
        Side of the squares that training would crop images to.
    bits
        As data.bits: depth of grey in files of 16 bits, 8 to 16, e.g. 12 where a camera or scanner put 12 bits there.
    """
    from udit.data.check import Contents
    from udit.data.check import check as lines_of

    if not 8 <= bits <= 16:
        raise UserError(f"--bits is {bits}; it must be 8 to 16")
    contents = Contents()
    for line in lines_of(path.expanduser(), size, contents, bits, _keys(overrides)):
        say(line)
    _tell(contents)
    return 1 if contents.bad else 0


def _keys(overrides: Sequence[str]) -> dict[str, Any]:
    """The keys of the data section that overrides name."""
    from udit.run.recipes import parse_overrides

    values = parse_overrides(list(overrides))
    if other := next((key for key in values if key != "data"), None):
        raise UserError(f"{other} is given and a check reads data alone; give data.KEY=VALUE")
    return dict(values.get("data", {}))


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
    if contents.captions:
        say(f"captions: {contents.captions}")
    for note in contents.notes:
        say(f"note: {note}")
    notes = len(contents.notes)
    if contents.bad:
        say(f"{contents.bad} bad")
    elif notes:
        say(f"no bad images; see the {f'{notes} notes' if notes > 1 else 'note'}")
    else:
        say("no problems found")
