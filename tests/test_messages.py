"""Messages of the command line are in our own words, name a remedy, and offer no strangers."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest import mock

import pytest
from pydantic import Field

import messages
import udit
from conftest import ErrorOf
from udit.errors import MODULES, UserError, by_product, missing_extra, nearest, resembling
from udit.run.keys import keys_like, known_keys
from udit.run.recipes import list_recipes
from udit.spec.base import Spec, parse
from udit.spec.words import LONGEST, Takes, shown


def sound(told: list[tuple[str, str]]) -> None:
    """Each message is one line without the words that are banned."""
    wrong = [(command, message) for command, message in told if messages.banned(message) or "\n" in message]
    assert wrong == []


@pytest.mark.slow
def test_wrong_values_of_every_key_are_told_in_our_words() -> None:
    told = list(messages.of_recipe("digits", messages.key_words(("", "-1", "[x]"))))
    assert len(told) > 300
    sound(told)


@pytest.mark.slow
def test_usage_errors_of_every_command_and_option_are_told_in_our_words() -> None:
    lines = list(messages.commands())[::3]
    told = list(messages.of_commands(line for line in lines if messages.ends_at_once(line)))
    assert len(told) > 80
    sound(told)


@pytest.mark.slow
def test_every_message_that_can_be_provoked_is_in_our_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipes = list_recipes()
    for i, recipe in enumerate(recipes):  # all words with one recipe, a part of them with each of the others
        words = list(messages.words_of(recipe))
        sound(list(messages.of_recipe(recipe, words if recipe == "digits" else words[i :: 4 * len(recipes)])))
    sound(list(messages.of_commands(messages.commands())))


@pytest.mark.slow
def test_a_missing_extra_has_one_wording() -> None:
    """Built in one place, which knows every extra that it names."""
    source = Path(udit.__file__).parent
    calls = [
        node
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "missing_extra" and path.name != "errors.py"
    ]
    named = {node.args[2].value for node in calls if isinstance(node.args[2], ast.Constant)} | set(MODULES.values())
    project = tomllib.loads((source.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert len(calls) > 12
    assert named <= set(project["optional-dependencies"])
    written = [path.name for path in source.rglob("*.py") if "pip install 'udit[" in path.read_text(encoding="utf-8")]
    assert written == ["errors.py"]
    assert str(missing_extra("`udit eval`", "sklearn", "train")) == (
        "`udit eval` needs sklearn, which is not installed; run: pip install 'udit[train]'"
    )


def test_a_command_without_a_module_that_whole_files_import_is_one_line(
    error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    absent = ModuleNotFoundError("No module named 'sklearn'", name="sklearn.datasets")
    monkeypatch.setattr("udit.cli.app", mock.Mock(side_effect=absent))
    assert error_of("tune", "run") == str(missing_extra("`udit tune`", "sklearn", "train"))
    with by_product("the loss curve"):
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    assert "the loss curve needs matplotlib, which is not installed; run: pip" in caplog.text


class Part(Spec):
    """A spec with a field of each sort."""

    count: Annotated[int, Field(ge=1, le=9)] = 1
    share: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    depths: tuple[int, ...] = (1, 1, 2)
    pair: tuple[float, float] = (0.0, 1.0)
    size: int | tuple[int, int] = 3
    names: Annotated[tuple[str, ...], Field(min_length=1)] = ("a",)
    word: Literal["a", "b"] = "a"
    place: Annotated[Path, Takes("a folder")] = Path()
    name: str = ""
    switch: bool | Literal["auto"] = False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depths": 3}, "part.depths is 3; it takes a list, e.g. [1, 1, 2]"),
        ({"depths": [1, "x"]}, "part.depths.1 is 'x'; it takes a whole number"),
        ({"depths": None}, "part.depths is empty; give a list, e.g. [1, 1, 2]"),
        ({"pair": [1.0]}, "part.pair has too few entries; it takes a list, e.g. [0.0, 1.0]"),
        ({"pair": [1.0, 2.0, 3.0]}, "part.pair is [1.0, 2.0, 3.0]; it takes a list, e.g. [0.0, 1.0]"),
        ({"size": "x"}, "part.size is 'x'; it takes a whole number or a list of 2, e.g. [1, 1]"),
        ({"names": []}, "part.names is []; it takes a list, e.g. ['a']"),
        ({"count": 0}, "part.count is 0; it must be at least 1"),
        ({"count": 10}, "part.count is 10; it must be at most 9"),
        ({"count": 1.5}, "part.count is 1.5; it takes a whole number"),
        ({"count": True}, "part.count is true; it takes a whole number"),
        ({"share": 0}, "part.share is 0; it must be greater than 0"),
        ({"share": 0.5}, "part.share is 0.5; it must be less than 0.5"),
        ({"share": float("inf")}, "part.share is inf; it must be finite"),
        ({"word": "c"}, "part.word is 'c'; it takes 'a' or 'b'"),
        ({"place": None}, "part.place is empty; give a folder"),
        ({"place": [1]}, "part.place is [1]; it takes a folder"),
        ({"name": 3}, "part.name is 3; it takes text; in quotes it is one: 'name=\"3\"'"),
        ({"switch": "on"}, "part.switch is 'on'; it takes true, false or 'auto'"),
        ({"nmae": 1}, "unknown key 'part.nmae'; did you mean 'name'?"),
    ],
)
def test_what_a_value_breaks_and_what_is_taken(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(Part, values, where="part")
    assert str(error.value) == message


def test_file_that_holds_the_values_is_told_before_the_key() -> None:
    with pytest.raises(UserError, match=r"^runs/a/config\.json: count is 0; it must be at least 1$"):
        parse(Part, {"count": 0}, where=Path("runs/a/config.json"))


def test_values_are_shown_as_yaml_writes_them_and_short() -> None:
    values = {None: "empty", "": "empty", True: "true", 3: "3", (1, None): "[1, empty]", Path("a b"): "'a b'"}
    assert {value: shown(value) for value in values} == values
    assert shown({"a": [False]}) == "{a: [false]}"
    assert shown("\x1b[31m") == r"'\x1b[31m'"
    assert len(shown(list(range(1000)))) == LONGEST


def test_words_are_offered_that_may_be_meant_and_no_strangers() -> None:
    keys = [key.removeprefix("training.") for key in known_keys() if key.startswith("training.")]
    for word, meant in {
        "learning_rate": ["lr"],
        "rl": ["lr"],
        "warmup": ["lr_warmup"],
        "decay": ["lr_layer_decay", "weight_decay", "ema_decay"],
        "bs": ["batch_size"],
        "batchsize": ["batch_size"],
        "Batch_Size": ["batch_size"],
        "scheduler": ["lr_schedule"],
        "epochs": [],
    }.items():
        assert resembling(word, keys) == meant, word
    assert nearest("decay", keys) == "; did you mean 'lr_layer_decay' or 'weight_decay' or 'ema_decay'?"
    assert nearest("zzz", [f"name-{i:02}" for i in range(32)]).endswith("name-29 and 2 more)")


def test_keys_without_their_section_are_found() -> None:
    assert keys_like("lr") == keys_like("learning-rate") == ["training.lr"]
    assert keys_like("batch-size") == ["training.batch_size", "evaluation.batch_size"]
    assert keys_like("widht") == ["model.width"]
    assert keys_like("epochs") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train", "digits", "--lr", "1e-3"],
            "no option --lr; a recipe's keys are written KEY=VALUE: training.lr=1e-3",
        ),
        (["train", "digits", "--lr=1e-3"], "written KEY=VALUE: training.lr=1e-3 ("),
        (["train", "digits", "--learning-rate"], "written KEY=VALUE: training.lr=VALUE ("),
        (["encode", "folder", "--root", "x", "--out", "y"], "written KEY=VALUE: data.root=x ("),
        (["train", "digits", "--progess"], "no option --progess; did you mean --progress? ("),
        (["train", "digits", "--epochs", "5"], "; a recipe's keys are KEY=VALUE, e.g. training.lr=1e-3 ("),
        (["train", "digits", "lr=1"], "unknown key 'lr'; did you mean 'training.lr'?"),
        (["train", "digits", "out="], "out is empty; give a folder"),
        (["sample", "model", "--stps", "3"], "no option --stps; did you mean --steps? ("),
        (["sample", "model", "--steps", "many"], "--steps is 'many'; it takes a whole number ("),
        (["sample", "model", "--output", "tiff"], "--output is 'tiff'; it takes png, npz, gif or mp4 ("),
        (["sample", "model", "more"], "'more' is more than `udit sample` takes; "),
        (["sample", "model", "--steps", "3", "--steps", "4"], "--steps is given more than once; give it once ("),
        (
            ["train", "digits", "model.ffn.branches=[2]"],
            "branches is [2]; odd sides are needed, largest first, e.g. [5, 3, 1]",
        ),
        (["sample"], "MODEL is missing; give it a value ("),
        (["ema", "mkae"], "`udit ema` has no command 'mkae'; did you mean 'make'?"),
        (["--lr"], "no option --lr; name a command first, one of train, sample"),
    ],
)
def test_command_line_is_answered_with_what_to_write(words: list[str], said: str, error_of: ErrorOf) -> None:
    assert said in error_of(*words)


@pytest.mark.slow
def test_text_of_every_error_that_the_source_raises_is_in_our_words() -> None:
    """Also of those that no test provokes: what a damaged file of each kind would say, but for its values."""
    texts = set(messages.raise_sites(("UserError", "RunError", "ValueError")).values())
    assert len(texts) > 400
    in_python = ("pass y=None", "torch.tensor([1, 2])")  # told to those who call networks and samplers themselves
    wrong = {}
    for text in texts:
        if any(words in text for words in in_python):
            continue
        parts = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        if found := messages.banned(" ".join(part for part in parts if isinstance(part, str))):
            wrong[text] = found
    assert wrong == {}
