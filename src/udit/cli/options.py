"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from udit.diffusion.samplers import SAMPLERS, listed

SamplerOption = Annotated[
    str | None,
    Parameter(help=f"{listed(SAMPLERS)}, whichever fits the model; its own setting if not given."),
]
"""A name of the table of samplers, which the config of sampling checks."""
