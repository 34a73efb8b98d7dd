"""Code and documents use the field's terms: phrases that only this project understood do not come back.

Each phrase is looked for in everything that a reader sees (names, comments, docstrings, messages, pages). The glossary
of CONTRIBUTING.md has the words to use.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ = [
    *sorted(path for kind in ("py", "cpp", "h", "yaml") for path in (ROOT / "src").rglob(f"*.{kind}")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted(path for path in (ROOT / "tests").glob("*.py") if path != Path(__file__)),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "AGENTS.md", "Makefile", ".ci/run")),
]

PICTURES = r"\bpictures?\b"
PLAIN = {
    r"warmth": "scale",
    r"temperature": "scale (exp of the clamped logit_scale)",
    r"\bcheap(?:er|ly)?\b": "recomputable, fast, small",
    r"\b(?-i:Seamed)\b": "SplitBackbone",
    r"\b(?-i:_Held)\b": "CachedGuidance",
    r"\b(?-i:_Hearing)\b": "TimeRecorder",
    r"\b(?-i:Conditioned)\b": "PrecomputedConditions",
    r"endless": "unlimited",
    r"they are alike": "they must match",
    r"(?:made|make|makes) again": "recomputed",
    r"(?:begin|begins|begun|make|made|built|written) anew": "start over, recomputed, rewritten",
    r"law of the house": "ground rules",
    r"(?:training|inference) form\b": "unfused, fused",
    r"one folder a class": "one folder per class",
    r"\bmute\b": "without output",
    r"hostage": "the reason itself",
    r"whoever": "the program or user that does",
    r"heads say": "logit scales",
    r"ask(?:s|ed)? one another": "compare",
    r"astray": "error estimate",
    r"\blaid on\b": "composited on",
    r"\bfifths\b": "five disjoint subsets",
    r"stands? apart": "are listed separately",
    r"to the bit\b": "bit-identical",
    r"\bspoil(?:s|ed|t)?\b": "corrupted, damaged",
    r"\bof any program\b": "of any tool",
    r"MACs say": "the MAC ratio predicts",
    r"every so many": "every N-th",
    r"1 is none": "1 means no guidance",
    r"seed to seed": "between seeds",
    PICTURES: "image",
}
"""{phrase that a stranger stumbles over, as a regular expression: what to write instead}."""

KEPT = {
    "src/udit/training/folder.py": ('"pictures.txt"',),
    "src/udit/evaluation/judges.py": ('"pictures": digest_of(',),
    "src/udit/tuning/search.py": ('"pictures": self.count',),
    "benchmarks/frontier_page.py": ("['pictures']", '["pictures"]'),
    "src/udit/data/hub.py": ('cache_folder() / "pictures"',),
    "src/udit/cli/reference.py": ("--keep-pictures",),
    "docs/architecture.md": ("`pictures.txt`",),
    "CHANGELOG.md": ("--keep-pictures", "`udit.pictures`", "`Seamed`"),
}
"""Words that stay, by file: names and keys on disk, which older versions wrote, and former names."""
OLD_FLAGS = {"keep_pictures"}
"""Parameters of commands that are still read under their old names."""


def found(path: str, text: str) -> list[str]:
    """The phrases of a text that are to be replaced, each with its line; a line break counts as a space."""
    for kept in KEPT.get(path, ()):
        text = text.replace(kept, "-" * len(kept))
    return [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}; write: {instead}"
        for phrase, instead in PLAIN.items()
        if not (path.startswith("tests/") and phrase == PICTURES)  # tests write files with all sorts of names
        for match in re.finditer(phrase.replace(" ", r"\s+(?:(?:#|//|\*)\s+)?"), text, re.IGNORECASE)
    ]


def test_code_and_documents_use_the_terms_of_the_field() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in READ}
    assert len(texts) > 150
    slips = [slip for path, text in texts.items() for slip in found(path, text)]
    assert not slips, "\n" + "\n".join(slips)


def test_words_that_are_kept_are_there() -> None:
    for path, words in KEPT.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        assert [word for word in words if word not in text] == [], path


@pytest.mark.parametrize(
    "text",
    [
        '"""A learned temperature per head."""',
        "x = 1  # the training\n# form of a network",
        "raise UserError('sizes differ; they are alike')",
        "class Seamed: ...",
        "PICTURES",
    ],
)
def test_phrases_are_found_in_comments_messages_names_and_across_lines(text: str) -> None:
    assert len(found("src/udit/x.py", text)) == 1


@pytest.mark.slow
def test_images_are_called_images_in_names() -> None:
    slips = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [getattr(node, field, None) for field in ("name", "arg", "attr", "id", "module")]
            slips += [
                f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {name}"
                for name in names
                if isinstance(name, str) and "picture" in name.lower() and name not in OLD_FLAGS
            ]
    assert not slips, "\n" + "\n".join(slips)
