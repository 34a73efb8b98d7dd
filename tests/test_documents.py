"""What documents name exists: files, names, targets, commands; the map has every module, and their order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import udit
from test_layering import FORBIDDEN, MODULES, ORDER, unit

ROOT = Path(__file__).parents[1]
SOURCE = Path(udit.__file__).parent
PAGES = ("AGENTS.md", "CONTRIBUTING.md", "README.md", "docs/architecture.md")
ALL = (*PAGES, *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md") if path.stem != "architecture"))
BASES = (ROOT, SOURCE, ROOT / "src", ROOT / "docs")
"""Paths are written from one of these."""
OURS = re.compile(r"(?:src|tests|docs|benchmarks|\.ci)/\S+|\S+\.(?:py|cpp|h|md|cff)|[\w<>]+(?:/[\w<>]+)*/")
"""What is a path of the repository. Names of data, weights and images are those of users' folders."""
ON_DISK = {
    *("vae/", "model/", "tensorboard/", "evaluation/", "checkpoints/step-00001000/"),
    *("runs/", "samples/", "PART/", "RUN/posthoc/", "adapter/"),
}
"""Folders that the library writes."""
FILE = re.compile(r"\S+\.(?:jsonl?|yaml|txt|lock|safetensors|npz|png|onnx|xml|bin)")
"""A file that the library writes."""
FOREIGN = {
    *("torch", "nn", "diffusers", "sklearn", "np", "functorch", "pickle"),
    *(
        "data",
        "model",
        "training",
        "sampling",
        "codec",
        "diffusion",
    ),  # sections of a run
}
"""First parts of dotted names that are not ours."""
PATTERNS = {"num_", "NAME_f32(..., int threads)"}
"""Names that stand for others."""


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def quoted(text: str) -> list[str]:
    """What stands between backticks, and the lines of blocks of shell commands."""
    text = re.sub(r"```python\n.*?```|```bibtex\n.*?```", "", text, flags=re.DOTALL)  # those are run by test_readme.py
    blocks = re.findall(r"```(?:console|text)\n(.*?)```", text, flags=re.DOTALL)
    blocks += re.findall(r"(?:^    \S.*\n)+", text, flags=re.MULTILINE)
    return [*re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)), *blocks]


def commands(text: str, program: str) -> set[str]:
    """First words after a program's name."""
    call = re.compile(rf"(?:^|\$ |-m )\s*{program} ([a-z][a-z-]*)", re.MULTILINE)
    return {word for code in quoted(text) for word in call.findall(code)}


def paths(text: str) -> Iterator[str]:
    """Paths of this repository, with ``*`` where a name is left open."""
    for word in (word for code in quoted(text) for word in code.split()):
        path = re.sub(r"<\w+>", "*", word.strip(".,:;()"))
        if OURS.fullmatch(path) and path not in ON_DISK and "://" not in path:
            yield path
    yield from re.findall(r"\]\(([^)#:]+)\)", text)


def there(path: str) -> bool:
    """Whether a path is found from a folder of ``BASES``; a bare name may be that of any file of the library."""
    found = any(any(base.glob(path.rstrip("/"))) for base in BASES)
    return found or ("/" not in path and any(SOURCE.rglob(path)))


@cache
def words() -> frozenset[str]:
    """Every word that a page may quote: of the library's code and recipes, the law of imports and the Makefile."""
    kinds = ("src/**/*.py", "src/**/*.yaml", "src/**/*.cpp", "tests/test_layering.py", "Makefile")
    return frozenset(word for kind in kinds for path in ROOT.glob(kind) for word in words_of(path))


@cache
def words_of(path: Path) -> frozenset[str]:
    """Every word of a file."""
    return frozenset(re.findall(r"\w+", path.read_text(encoding="utf-8")))


@cache
def homes(name: str) -> tuple[Path, ...]:
    """Files of a module of this name, or that define a class of it."""
    modules = [path for path in SOURCE.rglob("*.py") if name in (path.stem, path.parent.name)]
    classes = [path for path in SOURCE.rglob("*.py") if f"\nclass {name}" in path.read_text(encoding="utf-8")]
    return (*modules, *classes)


def names(text: str) -> Iterator[str]:
    """Identifiers between backticks, dotted or not, without arguments."""
    for code in quoted(text):
        found = re.fullmatch(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(.*\))?", code)
        if found and not OURS.fullmatch(code) and not FILE.fullmatch(code) and code not in PATTERNS:
            yield found[1]


def resolves(name: str) -> bool:
    """Whether a dotted name leads somewhere: a module, or an attribute of a module or of a class of the library."""
    first, *rest = name.split(".")
    if first in FOREIGN or f"udit.{name}" in MODULES or name in MODULES:
        return True
    if first == "udit" and rest:
        return rest[0] in udit.__all__ or f"udit.{rest[0]}" in MODULES
    if rest and (files := homes(first)):
        return any(set(rest) <= words_of(path) for path in files)
    return {first, *rest} <= words()


@pytest.mark.parametrize("name", ALL)
def test_paths_that_a_page_names_are_there(name: str) -> None:
    found = set(paths(page(name)))
    assert found or name not in PAGES
    assert {path for path in found if not there(path)} == set()


@pytest.mark.parametrize("name", PAGES)
def test_names_that_a_page_quotes_are_those_of_the_code(name: str) -> None:
    found = set(names(page(name)))
    assert found
    assert {word for word in found if not resolves(word)} == set()


@pytest.mark.parametrize("name", ALL)
def test_targets_and_commands_that_a_page_names_exist(name: str) -> None:
    from udit.cli import app

    text, makefile = page(name), page("Makefile")
    assert commands(text, "udit") or commands(text, "make") or name not in PAGES
    assert {target for target in commands(text, "make") if f"\n{target}:" not in makefile} == set()
    assert commands(text, "udit") <= set(app)


def rows(text: str) -> dict[str, str]:
    """The rows of the map's tables: what is described, and how."""
    layout = text.partition("\n## Layout\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([\w.]+/?)` \| (.+) \|$", layout, flags=re.MULTILINE))


def test_the_map_has_every_package_and_module() -> None:
    found = rows(page("docs/architecture.md"))
    packages = {unit(module) for module in MODULES if (SOURCE / unit(module)).is_dir()}
    files = {path.name for path in SOURCE.glob("*.py") if not path.name.startswith("__")}
    assert set(found) == {*(f"{package}/" for package in packages), *files}
    for package in packages - {"cli"}:  # whose files are the commands
        modules = {path.stem for path in (SOURCE / package).glob("*.py")} - {"__init__"}
        described = set(re.findall(r"`(\w+)`", found[f"{package}/"]))
        assert modules - described == set(), package


def test_the_map_has_the_order_of_imports() -> None:
    rules = page("docs/architecture.md").partition("\n## Who may import whom\n")[2].partition("\n## ")[0]
    block = rules.partition("```text\n")[2].partition("```")[0]
    assert tuple(block.split()) == ORDER
    told: dict[str, set[str]] = {}
    for left, right in re.findall(r"^\| (`[^|]+) \| ([^|:]+)", rules, flags=re.MULTILINE):
        told |= {package: set(re.findall(r"`(\w+)`", right)) for package in re.findall(r"`(\w+)`", left)}
    assert told == FORBIDDEN


def test_agents_page_is_short() -> None:
    assert len(page("AGENTS.md").splitlines()) < 60


@pytest.mark.parametrize("text", ["`config/base.py`", "`src/udit/pictures.py`", "[a](docs/none.md)", "`nn/<x>.cpp`"])
def test_a_path_that_is_gone_is_found(text: str) -> None:
    [path] = paths(text)
    assert not there(path)


@pytest.mark.parametrize("text", ["`SeamedBackbone`", "`udit.config.base`", "`Trainer.generate()`"])
def test_a_name_that_is_gone_is_found(text: str) -> None:
    [name] = names(text)
    assert not resolves(name)
