"""``udit models``."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import Parameter

from udit.cli.output import say, table

SIZES = ("model", "input", "parameters", "inference", "MACs", "paper", "weights")
SYSTEMS = ("models", "paper", "attention", "FFN", "skips", "code", "what is exact")
PAGE = """# Systems

Made by `make docs`. Parameters and MACs are counted on the meta device from the networks of this library.
"Inference" is the fused form, whose MACs (matrix products, convolutions, attention; papers print them as "FLOPs") are
those of one forward at batch 1; DiMSUM's scan and wavelets are not in them. "Code" is the licence of the official
program, none of which is in this library. Rows whose name ends in -tiny are ours, at the size of the digits.

{systems}

{sizes}"""


def models(
    *names: str,
    markdown: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """List the catalogue with parameters and MACs, counted now.

    "inference" is the fused form; MACs are its multiply-accumulates (matrix products, convolutions, attention) for one
    input. Papers of this field print the same number as "FLOPs". With names given, what these are made of follows, and
    what of it is checked against the official program.

    Parameters
    ----------
    names
        Only these models.
    markdown
        As a Markdown table.
    as_json
        As JSON, one object a model.
    """
    from udit.models.catalog import CATALOG, find

    for name in names:
        find(name)

    from tqdm.auto import tqdm

    from udit.analysis import cost

    rows: list[tuple[str, str, tuple[int, int, int], str, str]] = []
    systems: dict[tuple[str, ...], list[str]] = {}
    for name in tqdm(names or CATALOG, desc="count", unit="model", leave=False, disable=None):
        entry, about = find(name), find(name).about
        counted = cost(entry.config)
        weights = entry.weights + (f" [unverified: {entry.unverified}]" if entry.unverified else "")
        size = "x".join(map(str, (entry.config.in_channels, *entry.config.size)))
        numbers = (counted.parameters, counted.inference_parameters, counted.macs)
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
