"""What a user writes for a class, on the command line or in Python, and what stands for it in titles."""

from __future__ import annotations

import logging
import unicodedata
from typing import Any

import numpy as np
import pytest
import torch

import udit
from conftest import perturb
from udit.assemble import System
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.errors import UserError
from udit.run.classes import Classes
from udit.run.system import SystemConfig

FISH = Classes(4, ("great white shark", "tench, Tinca tinca", "tench", "Größe"), 4)


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [
        ("tench, Tinca tinca", [1]),
        ("tench,Tinca  tinca", [1]),
        ("tench", [2]),
        (" tench , great white shark", [2, 0]),
        ("great white shark,tench, Tinca tinca,3", [0, 1, 3]),
        (["tench, Tinca tinca", "tench", 0], [1, 2, 0]),
        (unicodedata.normalize("NFD", "Größe"), [3]),
        (unicodedata.normalize("NFC", "Größe"), [3]),
        ("1, 2", [1, 2]),
        (np.array([3, 0]), [3, 0]),
        (torch.tensor([3, 0]), [3, 0]),
        ((label for label in (1, 2)), [1, 2]),
    ],
)
def test_names_and_numbers_become_labels(wanted: Any, labels: list[int]) -> None:
    assert FISH.labels(wanted) == labels


def test_a_decomposed_name_is_found_by_a_composed_text() -> None:
    names = (unicodedata.normalize("NFD", "Äpfel"), "Öl")
    assert Classes(2, names).labels("Äpfel") == [0]
    both = (unicodedata.normalize("NFD", "é"), unicodedata.normalize("NFC", "é"), "a  b", "a b ")
    assert Classes(4, both).labels([both[0], both[1]]) == [0, 1], "each as it is written"
    with pytest.raises(UserError, match="the name of several classes, numbers 2 and 3; give the number"):
        Classes(4, both).labels(["a b"])


def test_a_text_is_a_name_first_and_it_is_said_where_it_is_another_number_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    digits = Classes(3, ("0", "1", "2"))
    assert digits.labels("2,0") == [2, 0]
    assert not caplog.records
    folders = Classes(3, ("1", "10", "2"))  # as folders are sorted
    assert folders.labels("2,10,0") == [2, 1, 0]
    assert not caplog.records
    assert folders.labels("1") == [0]
    assert "label '1' is the class of that name, number 0; class number 1 is '10'" in caplog.text
    assert folders.labels([1, 2]) == [1, 2], "a number in Python is the class's number"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("trout", r"no class 'trout' \(known: 'great white shark', 'tench, Tinca tinca', 'tench', 'Größe'\)"),
        ("great wite shark", "no class 'great wite shark'; did you mean 'great white shark'"),
        (["GRÖSSE"], "did you mean 'Größe'"),
        ("tench,,0", "no class ''"),
        ("", "labels is ''; name at least one class"),
        ([], r"labels is \[\]; name at least one class"),
        (7, r"labels is 7; give a list, e.g. \[7\]"),
        (torch.tensor(1), r"labels is tensor\(1\); give a list"),
        ({"tench": 1}, "give a list"),
        ([True], "label True is neither a class name nor a whole number"),
        ([1.0], "label 1.0 is neither a class name nor a whole number"),
        ([None], "label None is neither"),
        ([4], r"label 4 is out of range; the model knows 0 to 3 \(4 is its null class"),
        ("5", "label 5 is out of range; the model knows 0 to 3$"),
        (["-1"], "label -1 is out of range"),
    ],
)
def test_mistakes_are_one_clear_error(wanted: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        FISH.labels(wanted)
    assert "\n" not in str(error.value)


def test_many_names_are_counted_and_models_without_names_say_their_numbers() -> None:
    with pytest.raises(UserError, match=r"'name 9' and 990 more\)$"):
        Classes(1000, tuple(f"name {i}" for i in range(1000))).labels("zzzz")
    with pytest.raises(UserError, match="has no class names, give numbers from 0 to 9"):
        Classes(10).labels("cat")
    with pytest.raises(UserError, match="unconditional"):
        Classes(0).labels([0])


def test_classes_beyond_the_names_are_called_by_number_and_are_not_trained() -> None:
    more = Classes(5, ("cat", "dog"), 5)
    assert [more.title(label) for label in range(5)] == ["cat", "dog", "2", "3", "4"]
    assert more.labels("dog,4") == [1, 4]
    assert (more.trained, Classes(5).trained, Classes(0).trained) == (2, 5, 0)


@pytest.fixture(scope="module")
def system() -> System:
    network = perturb(udit.build("U-DiT-tiny", num_classes=4, learn_sigma=False))
    how = SamplingConfig(sampler="flow-euler", steps=1)
    return System(
        SystemConfig(model=network.config, diffusion=FlowConfig(), sampling=how, id2label=("cat", "dog")), network
    )


def test_a_system_takes_names_and_tells_mistakes_when_it_is_called(system: System) -> None:
    named = next(system.generate([0, 1], ["dog", "3"]))
    assert torch.equal(named, next(system.generate([0, 1], [1, 3])))
    assert torch.equal(named, next(system.generate(np.array([0, 1]), "dog,3")))
    for seeds, labels, message in (
        ([0], [4], "4 is its null class"),
        ([0, 1, 2], [1, 2], "labels are 2 and seeds 3; give one label for each seed"),
        (4, [1], r"seeds is 4; give a list, e.g. \[4\]"),
        ([], [], r"seeds is \[\]"),
        (["0"], [1], "seeds has '0'; seeds are whole numbers"),
        ([0.5], [1], "seeds has 0.5"),
        ([0], 1, "labels is 1; give a list"),
    ):
        with pytest.raises(UserError, match=message):
            system.generate(seeds, labels)


def test_untrained_classes_are_drawn_only_if_they_are_named(system: System) -> None:
    assert udit.generate(system, range(5)).labels == [0, 1, 0, 1, 0]
    images = udit.generate(system, range(2), ["3"])
    assert images.labels == [3, 3]
    assert images.settings_of(0)["class"] == "3"


def test_labels_of_the_low_level_sampler_are_checked(system: System) -> None:
    x = torch.randn(2, 1, 8, 8)
    for y, message in (
        ([1, 2], r"y is \[1, 2\]; give a tensor"),
        (torch.tensor(1), r"y is \[\] for 2 images"),
        (torch.tensor([1]), r"y is \[1\] for 2 images; give one label for each, \[2\]"),
        (torch.tensor([1, 5]), "label 5 is out of range"),
    ):
        for denoiser in (system.denoiser, udit.Guided(system.denoiser, 2.0)):
            with pytest.raises(UserError, match=message):
                next(iter(udit.sample(denoiser, x, sampler="flow-euler", steps=1, y=y)))


@pytest.mark.parametrize("name", ["U-DiT-tiny", "U-ViT-tiny", "HDiT-tiny", "ADM-tiny", "DiT-tiny"])
def test_a_scalar_time_is_refused(name: str) -> None:
    model = udit.build(name)
    x = torch.zeros(2, model.config.in_channels, *model.config.size)
    with pytest.raises(UserError, match=r"t is \[\]; give one time for each image"):
        model(x, torch.tensor(0.5), torch.tensor([1, 2]))
