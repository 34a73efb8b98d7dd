"""The pages of docs/systems/, one for each system: from the catalogue, recorded scores and benchmarks/systems.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from udit.errors import UserError
from udit.models.catalog import CATALOG, Entry
from udit.models.fixed import Fixed

HERE = Path(__file__).parent
NOTES = HERE / "systems.json"
"""What the code does not say of a system: what it is, and what to know when using it. A key begins its rows' names."""
MODELS = HERE.parent / "docs" / "models.md"
SHOWN_KEYS = 4
"""Key names of the release that a page shows."""


def systems_pages(note: str) -> dict[str, str]:
    """{file name: page} of docs/systems/.

    Args:
        note: the comment that each page begins with.
    """
    notes = read(NOTES)
    digits, sizes = read(HERE / "digits.json"), counted()
    pages = {file_name(key): note + page(key, rows, notes[key], digits, sizes) for key, rows in grouped(notes).items()}
    lines = ["# Systems\n", "One page for each; [all sizes](../models.md) with parameters and MACs.\n"]
    lines += [f"- [{key}]({file_name(key)}): {first_sentence(notes[key]['is'])}" for key in grouped(notes)]
    return {"index.md": note + "\n".join(lines) + "\n", **pages}


def navigation(text: str) -> str:
    """mkdocs.yml with an entry for each page of docs/systems/."""
    entries = "".join(f"      - {key}: systems/{file_name(key)}\n" for key in grouped(read(NOTES)))
    return re.sub(r"(?<=# systems\n).*?(?=      # end of systems)", lambda _: entries, text, flags=re.DOTALL)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def file_name(key: str) -> str:
    return f"{key.lower()}.md"


def grouped(notes: dict[str, Any]) -> dict[str, list[tuple[str, Entry]]]:
    """Rows of the catalogue by their key of the notes: the longest one that begins the row's name."""
    found: dict[str, list[tuple[str, Entry]]] = {}
    for name, entry in CATALOG.items():
        keys = [key for key in notes if name.startswith(key)]
        assert keys, f"{name}: no key of {NOTES.name} begins its name; add the system there"
        found.setdefault(max(keys, key=len), []).append((name, entry))
    return found


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[a-z)`다]\.) (?=[A-Z가-힣])", text, maxsplit=1)[0]


def counted() -> dict[str, str]:
    """{name: its row of docs/models.md}: counting again would take a minute."""
    text = MODELS.read_text(encoding="utf-8").partition("| model | input |")[2]
    return {match[1]: match[0] for match in re.finditer(r"^\| ([^ |]+) \|.*$", text, flags=re.MULTILINE)}


def page(key: str, rows: list[tuple[str, Entry]], note: dict[str, Any], digits: dict[str, Any], sizes: Any) -> str:
    about = next((entry.about for name, entry in rows if name.endswith("-tiny")), rows[0][1].about)
    tiny = next((name for name, _ in rows if name.endswith("-tiny")), None)
    weights = [f"`{name}`: {entry.weights}" for name, entry in rows if entry.weights != "-"]
    unverified = sorted({entry.unverified for _, entry in rows if entry.unverified})
    native = dict(rows[0][1].config.native_diffusion)
    process = ", ".join(f"`diffusion.{name}={value}`" for name, value in native.items())
    table = {
        "paper": f"[arXiv {about.paper}](https://arxiv.org/abs/{about.paper})",
        "attention": about.attention,
        "FFN": about.ffn,
        "skips": about.skips,
        "what is exact, and what is not": about.exact,
        "noising process of the release": process,
        "licence of the official program": f"{about.code}; none of its code is here",
        "published weights": ("; ".join(weights) or "none")
        + (f" (not checked: {'; '.join(unverified)})" if unverified else ""),
    }
    lines = [f"# {key}\n", note["is"] + "\n", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in table.items()]
    lines += ["", "## Sizes\n", "Counts are explained in [how numbers are made](../numbers.md).\n"]
    lines += ["| model | input | parameters | inference | MACs |", "| --- | --- | ---: | ---: | ---: |"]
    lines += ["|".join(sizes[name].split("|")[:6]) + "|" for name, _ in rows]
    lines += ["", "## Train and sample it\n"]
    if tiny and CATALOG[tiny].config.readers > 1:
        lines += [
            "<!-- not executed: needs a language model's files, e.g. of make language-model -->",
            f"```console\n$ udit train two-digits model={tiny} text.source=FOLDER out=runs/mine\n```\n",
        ]
    elif tiny:
        data = "digits" if CATALOG[tiny].config.clip_frames is None else "moving-digits"
        lines += [
            "<!-- executed with: train training.steps=2 training.batch_size=4 sampling.steps=2 -->",
            f"```console\n$ udit train {data} model={tiny} out=runs/mine\n```\n",
            "<!-- executed with: sample --n 2 --steps 2 -->",
            "```console\n$ udit sample runs/mine --n 16 --out samples\n```\n",
            score(tiny, digits),
        ]
    lines += ["## Key names\n", key_names(rows)]
    if note.get("know"):
        lines += ["## Good to know\n", *(f"- {line}" for line in note["know"]), ""]
    return "\n".join(lines)


def score(tiny: str, digits: dict[str, Any]) -> str:
    """A sentence on the score of a tiny model on the digits, from its record."""
    if tiny not in digits:
        return "Not in [the comparison on the digits](../digits.md) yet.\n"
    row = digits[tiny]
    low, high = row["agreement_interval"]
    return (
        f"On the digits `{tiny}` reached {100 * row['agreement']:.1f} % class agreement ({100 * low:.1f} to "
        f"{100 * high:.1f}, N = {row['num_samples']:,}) after the demo's budget, with one learning rate for all "
        "systems, tuned for none ([the comparison](../digits.md)).\n"
    )


def key_names(rows: list[tuple[str, Entry]]) -> str:
    """What the release calls its tensors and what they are called here, of the first row that has a release's names."""
    for name, entry in rows:
        try:
            keys = entry.config.published_keys()
        except UserError:
            continue
        ours = [(key, home) for key, (home, _) in keys.items() if not isinstance(home, Fixed)]
        lines = [
            f"The release's file of `{name}` has {len(keys):,} tensors; `udit.import_published` and "
            "`udit.export_published` translate all of them, strictly, and `udit convert` whole files. The first are:\n",
            "| in the release | here |",
            "| --- | --- |",
            *(f"| `{key}` | `{home}` |" for key, home in ours[:SHOWN_KEYS]),
        ]
        return "\n".join(lines) + "\n"
    return "There is no release of this network, and so no names but ours (`udit.build(NAME).state_dict()`).\n"
