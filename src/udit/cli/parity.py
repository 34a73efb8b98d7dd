"""``udit parity``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from udit.cli.output import say
from udit.errors import UserError


def parity(
    *files: Path,
    device: str = "cpu",
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32",
) -> int:
    """Check this machine's arithmetic against reference outputs of the official programs.

    Exit code 0 if every array of every file agrees, 1 if one does not, 2 if a file cannot be read or its system is
    unknown. docs/parity.md describes the format.

    Parameters
    ----------
    files
        Reference .npz files.
    device
        Where the networks run.
    dtype
        Of the networks; the limits are those of float32.
    """
    if not files:
        raise UserError("name one or more reference .npz files")
    from udit import dist
    from udit.parity import check_file

    where = dist.start(device).device
    code = 0
    for path in files:
        try:
            report = check_file(path, str(where), dtype)
        except UserError as error:
            say(f"ERROR  {error}")
            code = 2
            continue
        say(report)
        code = max(code, int(not report.ok))
    return code
