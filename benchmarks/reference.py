"""Writes docs/reference/, docs/systems/ and llms.txt: commands, keys of a recipe, the Python API, a page per system.

All of it comes from the code: commands from their signatures and docstrings, keys from the configs, systems from the
catalogue. ``python benchmarks/reference.py`` writes; ``make docs`` calls it, and a test compares.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from docstring_parser import parse
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from ruamel.yaml import YAML
from system_pages import first_sentence, navigation, systems_pages

import udit
from udit.cli import app
from udit.diffusion.config import PROCESSES
from udit.models.catalog import families
from udit.run.config import MAY_CHANGE, Run
from udit.run.recipes import list_recipes
from udit.spec.words import specs_of

DOCS = Path(__file__).parents[1] / "docs"
MKDOCS = DOCS.parent / "mkdocs.yml"
GENERATED = "<!-- Written by `make docs` from the code; edit the code. -->\n\n"


# ---- commands ----


def commands_page() -> str:
    """docs/reference/commands.md."""
    parts = [
        "# Commands\n\nEvery command prints this with `--help`. Exit codes: 0 done; 1 a run cannot go on; 2 a mistake "
        "in the command or its files, told in one line; 130 interrupted by Ctrl-C (a training has saved a checkpoint "
        "then).\n"
    ]
    for name in (word for word in app if not word.startswith("-")):
        below = [word for word in app[name] if not word.startswith("-")]
        parts += [_command(f"{name} {word}", app[name][word]) for word in below] or [_command(name, app[name])]
    return GENERATED + "\n".join(parts)


def _command(name: str, command: Any) -> str:
    function = command.default_command
    said = parse(inspect.getdoc(function) or "")
    told = [said.short_description or "", said.long_description or ""]
    lines = [f"## udit {name}\n", "\n\n".join(part for part in told if part), ""]
    rows = []
    for argument in command.assemble_argument_collection(parse_docstring=True):
        if argument.parameter.show is False:
            continue
        names = [word for word in argument.names if word.startswith("--")] or [argument.name]
        default = argument.field_info.default
        shown = "" if default in (inspect.Parameter.empty, None, False, ()) else f"`{_plain(default)}`"
        meaning = " ".join((argument.parameter.help or "").split())
        rows.append(f"| {', '.join(f'`{name}`' for name in names)} | {shown} | {_cell(meaning)} |")
    if rows:
        lines += ["| argument | default | meaning |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _plain(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _cell(text: str) -> str:
    return re.sub(r"<([A-Za-z]+)>", r"`<\1>`", text.replace("|", "\\|"))


# ---- keys ----


def keys_page() -> str:
    """docs/reference/keys.md."""
    recipes = "\n".join(f"- `{name}`: {about}" for name, about in list_recipes().items())
    parts = [
        "# Keys of a recipe\n\nA recipe is a YAML file of these keys; `udit train RECIPE key=value ...` overrides any "
        "of them, and\n`--dry-run` prints the complete run. Keys marked * may change when a run is resumed; any other "
        "change is refused.\n\n"
        f"Shipped recipes (`udit train --list`):\n\n{recipes}\n"
    ]
    own = {name: field for name, field in Run.model_fields.items() if not specs_of(field)}
    parts.append(_section("The run", "", Run, own))
    for name, field in Run.model_fields.items():
        specs = list(PROCESSES.values()) if name == "diffusion" else specs_of(field)
        if name == "model":
            parts.append(_models())
            continue
        for spec in specs:
            kind = spec.model_fields["kind"].default if "kind" in spec.model_fields else None
            title = f"{name}" + (f", kind {kind}" if kind and len(specs) > 1 else "")
            parts.append(_section(title, f"{name}.", spec, spec.model_fields))
            parts += [part for key, inner in spec.model_fields.items() for part in _inner(f"{name}.{key}", inner)]
    return GENERATED + "\n".join(parts)


def _inner(path: str, field: FieldInfo) -> Iterator[str]:
    specs = specs_of(field)
    for spec in specs:
        kind = spec.model_fields["kind"].default if "kind" in spec.model_fields else None
        keys = {key: one for key, one in spec.model_fields.items() if key != "kind"}
        if keys:
            yield _section(f"{path}" + (f", kind {kind}" if kind else ""), f"{path}.", spec, keys)


def _models() -> str:
    lines = [
        "## model\n",
        "`model=NAME` takes a row of the [catalogue](../models.md), `model.KEY=VALUE` changes its keys. Channels, size "
        "and number of classes follow the data where they are not given. Keys by family:\n",
    ]
    shown: set[str] = set()
    for family, spec in families().items():
        names = [key for key in spec.model_fields if key not in ("family",)]
        lines.append(f"- **{family}**: {', '.join(f'`{key}`' for key in names)}")
        shown |= set(names)
    return "\n".join([*lines, ""])


def _section(title: str, prefix: str, spec: type[BaseModel], fields: dict[str, FieldInfo]) -> str:
    told = docs_of(spec)
    lines = [f"## {title}\n", (inspect.getdoc(spec) or "").strip(), "", "| key | takes | default | meaning |"]
    lines.append("| --- | --- | --- | --- |")
    for key, field in fields.items():
        star = " *" if f"{prefix}{key}" in MAY_CHANGE or prefix.rstrip(".") in MAY_CHANGE else ""
        meaning = re.sub(r"\bNone\b", "null", " ".join(told.get(key, "").split()))
        default = "required" if field.is_required() else f"`{_default(field)}`"
        lines.append(f"| `{prefix}{key}`{star} | {_cell(_takes(field.annotation))} | {default} | {_cell(meaning)} |")
    return "\n".join([*lines, ""])


def docs_of(spec: type[BaseModel]) -> dict[str, str]:
    """Docstrings below the fields of a config, its bases' among them."""
    found: dict[str, str] = {}
    for cls in reversed(spec.__mro__):
        if not (isinstance(cls, type) and issubclass(cls, BaseModel)) or cls.__module__.startswith("pydantic"):
            continue
        tree = ast.parse(inspect.getsource(cls).strip() if not inspect.getsource(cls).startswith(" ") else "")
        body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if named and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[field.target.id] = str(text.value.value)  # type: ignore[union-attr]
    return found


def _default(field: FieldInfo) -> str:
    value = field.default_factory() if field.default_factory is not None else field.default  # type: ignore[call-arg]
    if isinstance(value, BaseModel):
        return str(getattr(value, "kind", "see below"))
    if value is PydanticUndefined:
        return "required"
    return json.dumps(value, default=str)


def _takes(annotation: Any) -> str:
    """A type in words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_takes(part) for part in inside))
    if str(origin).endswith("Literal") or str(annotation).startswith("typing.Literal"):
        return ", ".join(str(part).lower() if isinstance(part, bool) else str(part) for part in inside)
    if origin is tuple:
        return "list" if inside[-1] is Ellipsis else f"list of {len(inside)}"
    if hasattr(annotation, "__metadata__"):
        return _takes(inside[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return str(annotation.model_fields["kind"].default) if "kind" in annotation.model_fields else "a section"
    names = {bool: "true, false", int: "whole number", float: "number", str: "text", Path: "path", type(None): "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


# ---- Python ----


def python_page() -> str:
    """docs/reference/python.md."""
    lines = [
        "# Python\n",
        "What `import udit` offers; everything is loaded on first use. Docstrings (`help(udit.generate)`) say shapes, "
        "units and errors.\n",
    ]
    for name in sorted(udit.__all__, key=str.lower):
        if name == "__version__":
            continue
        thing = getattr(udit, name)
        said = parse(inspect.getdoc(thing) or "")
        lines += [
            f"## udit.{name}\n",
            f"```text\n{_signature(name, thing)}\n```\n",
            (said.short_description or "") + "\n",
        ]
        if said.long_description and not issubclass(type(thing), type):
            lines.append(said.long_description + "\n")
        rows = [f"- `{one.arg_name}`: {' '.join((one.description or '').split())}" for one in said.params]
        lines += [*rows, ""] if rows else []
    return GENERATED + "\n".join(lines)


def _signature(name: str, thing: Any) -> str:
    """One line if it fits, else one for each argument."""
    if isinstance(thing, type) and issubclass(thing, BaseModel):  # pydantic's changes when the config is first used
        return f"{name}(key=value, ...)"
    found = inspect.signature(thing)
    parts, keyword = [], False
    for one in found.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not keyword:
            parts.append("*")
            keyword = True
        star = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        kind = f": {one.annotation}" if one.annotation is not one.empty else ""
        value = "..." if callable(one.default) else repr(one.default)
        default = "" if one.default is one.empty else f" = {value}" if kind else f"={value}"
        parts.append(f"{star}{one.name}{kind}{default}")
    result = found.return_annotation
    end = "" if result is found.empty or result in (None, "None") else f" -> {result}"
    line = f"{name}({', '.join(parts)}){end}"
    return line if len(line) <= 100 else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){end}"])


# ---- the index for language models ----

LLMS = DOCS.parent / "llms.txt"
PREFACE = """# udit

> U-shaped diffusion transformers in PyTorch: train, sample, score, convert and export U-DiT (arXiv 2405.02730) and the
> systems around it, on a CPU or many GPUs.

Commands are `udit COMMAND --help`; recipes are YAML with `key=value` overrides; every command is also a Python function
(`udit.train`, `udit.generate`, `udit.evaluate` ...). The map of the code is docs/architecture.md.
"""


def llms_txt(navigation: str, written: dict[Path, str]) -> str:
    """The pages in the order of mkdocs.yml, each with its first sentence.

    Args:
        navigation: text of mkdocs.yml.
        written: pages that may not be on the disk yet.
    """
    lines = [PREFACE]
    for item in YAML(typ="safe").load(navigation)["nav"]:
        [(title, pages)] = item.items()
        if isinstance(pages, list):
            lines.append(f"\n## {title}\n")
        for page in pages if isinstance(pages, list) else [item]:
            [(told, name)] = [(None, page)] if isinstance(page, str) else page.items()
            path = DOCS / name
            heading, about = _opening(written[path] if path in written else path.read_text(encoding="utf-8"))
            lines.append(f"- [{told or heading}](docs/{name}){f': {about}' if about.endswith('.') else ''}")
    return "\n".join(lines) + "\n"


def _opening(text: str) -> tuple[str, str]:
    """A page's heading, and the first sentence of plain text below it."""
    text = re.sub(r"<!--.*?-->|```.*?```", "", text, flags=re.DOTALL)
    heading, _, rest = text.partition("# ")[2].partition("\n")
    plain = [part for part in re.split(r"\n\s*\n", rest) if re.match(r"\s*[\w`*]", part)]
    words = " ".join(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", plain[0]).split()) if plain else ""
    return heading, first_sentence(words)


# ---- all of it ----


def pages() -> dict[Path, str]:
    """Every generated page."""
    found = {
        DOCS / "reference" / "commands.md": commands_page(),
        DOCS / "reference" / "keys.md": keys_page(),
        DOCS / "reference" / "python.md": python_page(),
    }
    found |= {DOCS / "systems" / name: text for name, text in systems_pages(GENERATED).items()}
    found[MKDOCS] = navigation(MKDOCS.read_text(encoding="utf-8"))
    found[LLMS] = llms_txt(found[MKDOCS], found)
    return {path: text.rstrip("\n") + "\n" for path, text in found.items()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote {DOCS / 'reference'}, {DOCS / 'systems'}, {MKDOCS} and {LLMS}\n")
