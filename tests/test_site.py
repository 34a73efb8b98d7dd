"""The documentation: generated pages are current, shown commands parse or run, the site builds without a warning."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name not in ("reference", "systems"))
BLOCK = re.compile(r"(?P<note><!-- not executed: [^\n]+ -->\n)?```(?P<kind>python|console)\n(?P<code>.*?)```", re.DOTALL)
COMMAND = re.compile(r"^(?:\$ |    )?((?:torchrun|accelerate launch) .*-m )?(udit [a-z].*)$", re.MULTILINE)
PLACES = re.compile(r"\b[A-Z]{2,}\b|\.\.\.|[|<>]|\$\(")
"""What stands for something else in a command, so that its values are not checked."""


def test_generated_pages_are_current() -> None:
    pages = runpy.run_path(str(ROOT / "benchmarks" / "reference.py"))["pages"]()
    stale = [str(path.relative_to(ROOT)) for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"{stale}: run `make docs`"


def test_every_page_is_in_the_navigation_and_in_llms_txt() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    index = (ROOT / "llms.txt").read_text(encoding="utf-8")
    for path in DOCS.rglob("*.md"):
        name = path.relative_to(DOCS).as_posix()
        assert re.search(rf"[ :]{re.escape(name)}$", navigation, re.MULTILINE), f"{name} is not in mkdocs.yml"
        if path.parent.name != "systems" or path.name == "index.md":
            assert f"(docs/{name})" in index, f"{name} is not in llms.txt"


def shown() -> Iterator[tuple[str, str]]:
    """(page, command) for every udit command that a page shows in a block."""
    for path in [ROOT / "README.md", *PAGES]:
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"```(?:console|text)?\n(.*?)```|((?:^    \S.*\n)+)", text, re.DOTALL | re.MULTILINE)
        for block in blocks:
            for match in COMMAND.finditer("".join(block)):
                yield path.name, match[2].split("  #")[0].strip()


def test_every_shown_command_parses() -> None:
    from udit.cli import app

    commands = list(shown())
    assert len(commands) > 60
    for page, command in commands:
        words = shlex.split(command.partition(" #")[0].partition(" && ")[0])[1:]
        words = [word for word in words if word != "..."]
        try:
            app.parse_args(words, exit_on_error=False, print_error=False)
        except Exception as error:
            pytest.fail(f"{page}: {command!r} does not parse: {error}")


def blocks_of(path: Path, kind: str) -> list[str]:
    """Code of the blocks of a page that are not marked as not executed."""
    return [
        block["code"]
        for block in BLOCK.finditer(path.read_text(encoding="utf-8"))
        if block["kind"] == kind and block["note"] is None
    ]


EXECUTED = [path for path in PAGES if blocks_of(path, "python") or blocks_of(path, "console")]


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a few images of one's own, in which the blocks of a page run."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(30):
            Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_blocks_of_a_page_run(path: Path, somewhere: Path) -> None:
    for code in blocks_of(path, "console"):
        for command in re.findall(r"^\$ (.+)$", code, re.MULTILINE):
            words = shlex.split(command)
            assert words[0] == "udit", f"{command}: mark the block as not executed, with the reason"
            done = subprocess.run(
                [sys.executable, "-m", *words], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
    names: dict[str, Any] = {}
    for code in blocks_of(path, "python"):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, str(path), "exec"), names)


@pytest.mark.slow
def test_site_builds_without_a_warning_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    done = subprocess.run([*build, "--site-dir", str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img|iframe|source)[^>]+(?:src|href)=\"(https?://[^\"]+)", text)
        assert not loaded, (page.name, loaded)
        assert "fonts.googleapis" not in text


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(DOCS.glob("notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path: Path, somewhere: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not kept in the repository"
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(somewhere)}}).execute()
