"""The studio with a model that takes texts: prompts in place of classes, beside seeds, between them, and compared."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

import udit
from conftest import ErrorOf, succeeds
from test_prompts import system_of
from text_models import language_model
from udit.images import read_pixels, read_settings
from udit.studio.comparing import compare
from udit.studio.drawing import prompts_in
from udit.studio.place import find
from udit.studio.session import Shown, Studio, Wanted
from udit.text.config import TextConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of texts and one of classes."""
    root = tmp_path_factory.mktemp("texts")
    language = language_model(root / "language")
    for name, width in (("one", 16), ("two", 32)):
        udit.save(system_of(language, depth=2, width=width, heads=2), root / "models" / name)
    udit.save(system_of(None, "U-DiT-tiny"), root / "models" / "classes")
    return root


@pytest.fixture
def studio(place: Path) -> Iterator[Studio]:
    made = Studio(find(place / "models"), "cpu")
    yield made
    made.close()


def end(shown: Iterator[Shown]) -> Shown:
    return list(shown)[-1]


def test_prompts_are_read_line_by_line() -> None:
    assert prompts_in(" a cat \n\n a  dog\n") == ["a cat", "a dog"]


def test_every_seed_is_drawn_with_every_prompt(
    studio: Studio, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The language model is loaded once, and the images are those of the command below them."""
    build = mock.patch.object(TextConfig, "build", autospec=True, side_effect=TextConfig.build)
    with build as loaded:
        shown = list(studio.draw(Wanted("one", seeds="3, 5", prompts="a cat\na dog above a cat", negative="a dog")))
        one = end(studio.draw(Wanted("one", seeds="3, 5", prompts="a cat")))
    assert loaded.call_count == 1
    assert (shown[1].sheet or "").count("alt='a cat · seed") == 2
    assert shown[-1].command == ""  # several prompts
    assert shown[-1].grid is not None
    facts = read_settings(shown[-1].grid)
    assert facts is not None
    assert facts["prompt"] == ["a cat", "a dog above a cat"] * 2
    assert (facts["negative"], facts["seed"]) == (["a dog"] * 4, [3, 3, 5, 5])
    assert one.grid is not None
    succeeds(capsys, *shlex.split(one.command)[1:], "--out", str(tmp_path / "out"), "--no-progress")
    shutil.unpack_archive(str(one.archive), tmp_path / "page", "zip")
    for name in ("000000.png", "000001.png"):
        files = tmp_path / "page" / name, tmp_path / "out" / name
        assert read_settings(files[0]) == read_settings(files[1])
        assert int((read_pixels(files[0]).int() - read_pixels(files[1]).int()).abs().max()) <= 1


def test_images_pass_between_seeds_of_one_prompt(studio: Studio) -> None:
    wanted = Wanted("one", seeds="0, 1", prompts="a cat")
    assert "a cat · seed 1" in (list(studio.pass_between(wanted, 3))[1].sheet or "")
    for change, told in (
        ({"prompts": "a\nb"}, "give one"),
        ({"seeds": "0"}, "give two seeds"),
        ({"prompts": " "}, "there is no prompt"),
    ):
        assert told in end(studio.pass_between(dataclasses.replace(wanted, **change), 3)).status


def test_two_models_of_texts_are_compared_and_one_of_classes_is_refused(studio: Studio) -> None:
    one, other = (Wanted(name, seeds="0", prompts="a cat\na dog") for name in ("one", "two"))
    drawn = end(compare(studio, one, other))
    assert drawn.grid is not None
    facts = read_settings(drawn.grid)
    assert facts is not None
    assert (len(facts["compared"]), facts["prompts"]) == (2, ["a cat", "a dog"])
    assert "only one of the two takes texts" in end(compare(studio, one, Wanted("classes", seeds="0"))).status


def test_what_does_not_fit_a_prompt_is_one_line(studio: Studio, place: Path, error_of: ErrorOf) -> None:
    for wanted, told in (
        (Wanted("one", prompts=""), "there is no prompt; write one"),
        (Wanted("one", seeds="0-60", prompts="a\nb"), "61 seeds of 2 prompts are 122 images"),
        (Wanted("one", prompts="a", negative="b", weaker="two"), "guidance compares with one"),
        (Wanted("one", prompts="a", negative="b", changes={"guidance": 1.0}), "guidance 1 compares with nothing"),
    ):
        assert told in end(studio.draw(wanted)).status
    out = ("--autoguide", str(place / "models" / "two"), "--negative", "b", "--out", str(place / "out"))
    told = error_of("sample", str(place / "models" / "one"), "--prompt", "a", *out)
    assert told.startswith("a negative prompt and a weaker model (autoguide) are given")


def test_a_language_model_that_was_moved_is_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "models" / "one", tmp_path / "models" / "one")
    moved = shutil.copytree(place / "language", tmp_path / "moved")
    config = tmp_path / "models" / "one" / "config.json"
    config.write_text(config.read_text().replace(str(place / "language"), str(tmp_path / "gone")))
    for source, told in ((None, "is not there"), (str(moved), "1 images in")):
        studio = Studio(find(tmp_path / "models"), "cpu", source)
        assert told in end(studio.draw(Wanted("one", seeds="0", prompts="a cat"))).status
        studio.close()
