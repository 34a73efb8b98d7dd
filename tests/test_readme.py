"""What the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"(?P<note><!-- not executed[^\n]*-->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


@pytest.mark.timeout(300)
def test_python_blocks_of_the_readme_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = list(BLOCK.finditer(README.read_text(encoding="utf-8")))
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        if block["note"] is None:
            exec(compile(block["code"], str(README), "exec"), names)
    assert tuple(names["out"].shape) == (2, 6, 32, 32)  # type: ignore[attr-defined]
    assert tuple(names["preview"].shape) == (2, 3, 32, 32)  # type: ignore[attr-defined]
    assert len(names["losses"]) == 3  # type: ignore[arg-type]
    assert names["cache"].images == 1797  # type: ignore[attr-defined]
    assert (tmp_path / "runs" / "notebook" / "checkpoints" / "step-00000003").is_dir()


def test_readme_names_commands_and_targets_that_exist() -> None:
    from udit.cli import app

    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^\$ make ([a-z-]+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
    commands = set(re.findall(r"\$ (?:torchrun [^\n]*?-m )?udit ([a-z]+)", text))
    assert commands >= {"train", "sample", "eval"}
    assert commands <= set(app)
