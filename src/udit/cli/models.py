"""``udit models``."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from udit.cli.output import say, table

HEADER = ("model", "input", "parameters", "inference", "MACs", "paper", "weights")


def models(
    *names: str,
    markdown: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """List the catalogue with parameters and MACs, counted now.

    "inference" is the fused form; MACs are its multiply-accumulates (matrix products, convolutions, attention) for one
    input. Papers of this field print the same number as "FLOPs".

    Parameters
    ----------
    names
        Only these models.
    markdown
        As a Markdown table.
    as_json
        As JSON, one object a model.
    """
    from udit.config.catalog import CATALOG, find

    for name in names:
        find(name)

    from udit.analysis import cost

    rows = []
    for name in names or CATALOG:
        entry = find(name)
        counted = cost(entry.config)
        size = "x".join(map(str, (entry.config.in_channels, *entry.config.size)))
        rows.append(
            (name, size, counted.parameters, counted.inference_parameters, counted.macs, entry.paper, entry.weights)
        )
    if as_json:
        say(json.dumps([dict(zip(HEADER, row, strict=True)) for row in rows], indent=1))
        return 0
    shown = [(name, size, *(f"{n:,}" for n in counts), paper, weights) for name, size, *counts, paper, weights in rows]
    say(table(HEADER, shown, markdown))
    return 0
