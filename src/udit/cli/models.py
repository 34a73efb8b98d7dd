"""``udit models``."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from udit.cli.output import say, table

SIZES = ("model", "input", "parameters", "inference", "MACs", "paper", "weights")
SYSTEMS = ("models", "paper", "attention", "FFN", "skips", "code", "what is exact")
PAGE = """# Systems

Written by `make docs`. Parameters and MACs are counted on the meta device from the networks of this library.
"Inference" counts the parameters of the fused network. MACs are those of one forward of it at batch 1: matrix products,
convolutions and attention (papers print them as "FLOPs"). "Code" is the licence of the official program; none of its
code is in this library. Rows whose names end in -tiny are ours, at the size of the digits.

{systems}

{sizes}"""


def models(
    *names: str,
    markdown: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """List the catalogue with parameters and MACs.

    "inference" counts the parameters of the fused network; MACs are its multiply-accumulates (matrix products,
    convolutions, attention) for one input, which papers of this field print as "FLOPs". If names are given, a second
    table lists the parts of these models, and what is checked against the official programs.

    Parameters
    ----------
    names
        Only these models.
    markdown
        As a Markdown table.
    as_json
        As JSON, one object for each model.
    """
    from udit.models.catalog import find

    for name in names:
        find(name)

    from udit.analysis import costs

    rows: list[tuple[str, str, tuple[int, int, int], str, str]] = []
    systems: dict[tuple[str, ...], list[str]] = {}
    for counted in costs(names, progress=True):
        name, entry, about = counted.name, counted.entry, counted.entry.about
        weights = entry.weights + (f" [unverified: {entry.unverified}]" if entry.unverified else "")
        size = "x".join(map(str, entry.config.input_shape()))
        numbers = (counted.cost.parameters, counted.cost.inference_parameters, counted.cost.macs)
        rows.append((name, size, numbers, about.paper, weights))
        parts = (about.paper, about.attention, about.ffn, about.skips, about.code, about.exact)
        systems.setdefault(parts, []).append(name)
    if as_json:
        facts = {
            name: dict(zip(SYSTEMS[2:], parts[1:], strict=True)) for parts, many in systems.items() for name in many
        }
        plain = [
            dict(zip(SIZES, (name, size, *counts, *where), strict=True)) | facts[name]
            for name, size, counts, *where in rows
        ]
        say(json.dumps(plain, indent=1))
        return 0
    shown = [(name, size, *(f"{n:,}" for n in counts), *where) for name, size, counts, *where in rows]
    sizes = table(SIZES, shown, markdown)
    made = table(SYSTEMS, [(", ".join(many), *parts) for parts, many in systems.items()], markdown)
    say(PAGE.format(systems=made, sizes=sizes) if markdown else f"{sizes}\n\n{made}" if names else sizes)
    return 0
