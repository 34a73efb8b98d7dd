"""Whatever the documentation shows to type runs, or a comment says why it does not; slow ones run the pages."""

from __future__ import annotations

import difflib
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pages
from pages import DOCS, ROOT, UNMARKED, Block, blocks
from udit.cli import app, main

FAILS = re.compile(r"udit: error: .*|\d+ bad")
"""Last lines of commands that end with an exit code."""
PAGES = [str(path.relative_to(ROOT)) for path in pages.pages()]


@pytest.mark.parametrize("name", PAGES)
def test_every_block_runs_or_says_why_not(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = blocks(ROOT / name)
    assert len(found) == text.count("```python\n") + text.count("```console\n")
    assert UNMARKED.findall(text) == []
    for block in found:
        assert not block.mark or block.reason or block.added, block.mark
        if block.kind == "console" and block.reason is None:
            assert {command.words[0] for command in block.commands()} <= {"udit", "rm"}, block.code
            continue
        for command in block.commands() if block.kind == "console" else ():
            words = [word for word in command.words if word != "..."]
            if "udit" in words:  # it has words that the command line takes, run or not
                own = words[words.index("udit") + 1 :]
                own = own[1:] if own[:1] == ["--"] else own  # which torchrun leaves out
                app.parse_args(own, exit_on_error=False, print_error=False)


@pytest.mark.parametrize(
    ("mark", "code", "words", "printed"),
    [
        ("", "$ udit a b  # why\nthis ... that\n", ("udit", "a", "b"), ("this ... that",)),
        (
            "executed with: a --n 2; c d=1",
            "$ udit a --n 9 'b c' \\\n    d\n",
            ("udit", "a", "b c", "d", "--n", "2"),
            (),
        ),
    ],
)
def test_blocks_are_read(mark: str, code: str, words: tuple[str, ...], printed: tuple[str, ...]) -> None:
    [command] = Block("console", code, mark).commands()
    assert (command.words, command.printed) == (words, printed)


def test_what_is_not_printed_is_found() -> None:
    output = "one\nstep 3: 0.5\ntwo\n"
    assert pages.missing(("one", "step 3: ...", "two"), output) is None
    assert pages.missing(("two", "one"), output) == "one"
    assert pages.missing(("step 4: ...",), output) == "step 4: ..."


def images(folder: Path) -> None:
    """Two classes of small colour images, as the pages call them."""
    rng = np.random.default_rng(0)
    for name in ("images/cat", "images/dog", "more/cat", "more/bird"):
        (folder / name).mkdir(parents=True)
        for i in range(24):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / name / f"{i:02}.png")


def flawed(folder: Path) -> None:
    """What goes wrong with a folder: a text file in disguise, half a file, a stray image, a copy in another class."""
    random = np.random.default_rng(0)
    root = folder / "images"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(10, 34):
            pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.jpg")
    (root / "cat" / "broken.jpg").write_text("not an image")
    (root / "dog" / "cut.jpg").write_bytes((root / "dog" / "11.jpg").read_bytes()[:-500])
    (root / "cat" / "copy.jpg").write_bytes((root / "dog" / "10.jpg").read_bytes())
    (root / "stray.jpg").write_bytes((root / "dog" / "12.jpg").read_bytes())


def digits(folder: Path) -> None:
    """A run of a few steps at runs/digits."""
    with pytest.raises(SystemExit):
        main(["train", "digits", "training.steps=2", f"out={folder / 'runs' / 'digits'}", "--no-progress"])


SETUP: dict[str, Callable[[Path], None]] = {
    "README.md": images,
    "docs/start/own-images.md": flawed,
    "docs/guidance.md": digits,
    "docs/sampling.md": digits,
}
"""What a page takes for granted."""


def run_python(block: Block, names: dict[str, object], page: str) -> None:
    exec(compile(block.code, page, "exec"), names)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name in PAGES if any(block.reason is None for block in blocks(ROOT / name))])
def test_page_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    SETUP.get(name, lambda folder: None)(tmp_path)
    capsys.readouterr()
    names: dict[str, object] = {}
    for block in blocks(ROOT / name):
        if block.reason is not None or (block.kind == "python" and name == "README.md"):  # those: test_readme.py
            continue
        if block.kind == "python":
            run_python(block, names, name)
            continue
        for command in block.commands():
            if command.words[0] == "rm":
                for word in command.words[1:]:
                    Path(word).unlink()
                continue
            with pytest.raises(SystemExit) as ended:
                main(list(command.words[1:]))
            captured = capsys.readouterr()
            output = captured.out + captured.err
            fails = any(FAILS.fullmatch(line) for line in command.printed)
            assert (ended.value.code != 0) == fails, output
            assert pages.missing(command.printed, output) is None, output


def test_reference_and_systems_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """``make docs`` writes them; run it and commit what it writes."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    written = runpy.run_path(str(ROOT / "benchmarks" / "reference.py"))["pages"]()
    stale = [
        line
        for path, text in written.items()
        for line in difflib.unified_diff(path.read_text(encoding="utf-8").splitlines(), text.splitlines(), path.name)
    ]
    assert stale == []
    below = {path for folder in ("reference", "systems") for path in (DOCS / folder).glob("*.md")}
    assert below <= set(written)
