"""The progress bar of every job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(
    total: int | None, task: str, unit: str, *, initial: int = 0, show: bool = True, leave: bool = True
) -> tqdm[Any]:
    """A bar on standard error; it stays hidden where that is no terminal.

    Args:
        total: how many units there are; None where that is not known.
        task: what is done, in a word.
        unit: what is counted, in a word.
        initial: how many of them are done already.
        show: False hides it everywhere.
        leave: whether it stays when it is full.
    """
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=task, unit=unit, initial=initial, leave=leave, disable=None if show else True)
