"""``udit pull``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from udit.cli.output import say


def pull(
    name: str,
    /,
    *,
    out: Path | None = None,
    raw: Annotated[bool, Parameter(negative="")] = False,
    vae: Annotated[bool, Parameter(negative="")] = False,
    revision: str | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    progress: bool = True,
) -> int:
    """Download a model from the Hugging Face hub into a folder, whole or not at all.

    Commands and `udit.load` take owner/name itself as well; a folder is for machines without the hub.

    Parameters
    ----------
    name
        owner/name, or owner/name@revision.
    out
        The folder; the repository's name if not given.
    raw
        Download the weights before averaging too.
    vae
        Download a VAE that the model names by its hub id too, so that the folder needs nothing else.
    revision
        A branch, tag or commit.
    overwrite
        Replace a model folder at the same place.
    progress
        Show progress bars, where standard error is a terminal.
    """
    from udit.publishing.pull import pull as pull_model

    found = pull_model(name, out, raw=raw, vae=vae, revision=revision, overwrite=overwrite, progress=progress)
    say(f"wrote {found.folder}: commit {found.commit[:12]}; next: udit sample {shlex.quote(str(found.folder))}")
    return 0
