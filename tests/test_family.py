"""A new family is one folder and one row of the catalogue: an example is added and does all that others do.

CONTRIBUTING.md ("Add a model") shows the same files.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import udit
from conftest import perturb, same_bits, snapshot, succeeds
from udit.errors import UserError
from udit.models.catalog import CATALOG
from udit.parity import check_file

FILES = {
    "__init__.py": '"""A family of no paper."""\n',
    "config.py": """
from typing import Literal
from udit.models.config import ModelConfig

class ThrowawayConfig(ModelConfig):
    family: Literal["Throwaway"] = "Throwaway"
    impure: bool = False

    def build(self):
        from throwaway.network import Throwaway
        if self.num_classes == 0:
            raise ValueError("the model is unconditional (num_classes 0) and takes no labels")
        return Throwaway(self)

    def published_keys(self):
        from throwaway.published import key_map
        return key_map(self)

    @classmethod
    def parity_systems(cls):
        from throwaway.parity import SYSTEMS
        return SYSTEMS
""",
    "network.py": """
import torch
from torch import nn
from udit.nn import init

class Throwaway(nn.Module):
    INIT = {r"": init.torch_default}

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.time = nn.Linear(1, config.in_channels)
        self.label = nn.Embedding(config.num_classes + 1, config.in_channels)
        self.mix = nn.Conv2d(config.in_channels, config.out_channels, 3, padding=1)

    def forward(self, x, t, y=None):
        cond = self.condition(t, y)
        x, skip = self.enter(x, cond)
        return self.leave(self.deep(x, cond), skip, cond)

    def condition(self, t, y=None):
        y = t.new_full(t.shape, self.config.num_classes, dtype=torch.long) if y is None else y
        return (self.time(t[:, None].to(self.time.weight.dtype) / 1000) + self.label(y))[:, :, None, None]

    def enter(self, x, cond):
        return x + cond, None

    def deep(self, x, cond):
        return torch.tanh(x * (1.01 if self.config.impure and self.training else 1))

    def leave(self, x, skip, cond):
        return self.mix(x)
""",
    "published.py": """
from udit.models.fixed import both

def key_map(config):
    return {key: (name, shape) for key, name, shape in rows(config)}

def rows(config):
    yield from both("t_embedder", "time", (config.in_channels, 1))
    yield "y_table", "label.weight", (config.num_classes + 1, config.in_channels)
    yield from both("final.conv", "mix", (config.out_channels, config.in_channels, 3, 3))
""",
    "parity.py": """
from throwaway.config import ThrowawayConfig
from udit.models.parity import Described, class_labels, take
from udit.spec.base import parse

def throwaway(words, size):
    values = {**class_labels(words), **take(words, "in_channels", "learn_sigma", "time"), "input_size": size}
    return Described(parse(ThrowawayConfig, values, where="model"))

SYSTEMS = {"throw-away": throwaway}
""",
}
ROW = """
from throwaway.config import ThrowawayConfig
from udit.models.catalog import CATALOG, Entry
from udit.models.papers import About

small = dict(in_channels=1, num_classes=5, input_size=8)
about = About(paper="1234.56789", code="MIT", attention="none", ffn="none", skips="none", exact="sizes are ours")
CATALOG["Throwaway-tiny"] = Entry(config=ThrowawayConfig(**small), about=about)
CATALOG["Throwaway-impure-tiny"] = Entry(config=ThrowawayConfig(impure=True, **small), about=about)
"""
"""The rows of ``models/catalog.py``; the second one breaks the contract, which the tests must detect."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder to import from, with the family's folder and its rows as a module."""
    (tmp_path / "throwaway").mkdir()
    for name, text in FILES.items():
        (tmp_path / "throwaway" / name).write_text(text)
    (tmp_path / "throwaway_rows.py").write_text(ROW)
    return tmp_path


@pytest.fixture
def family(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of its row, while the catalogue has it."""
    monkeypatch.syspath_prepend(path)
    for name in ("throwaway_rows", "throwaway", *(f"throwaway.{file.removesuffix('.py')}" for file in FILES)):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("Throwaway-tiny", "Throwaway-impure-tiny"):
        monkeypatch.setitem(CATALOG, name, CATALOG["U-DiT-tiny"])  # so that it is taken out again
    importlib.import_module("throwaway_rows")
    return "Throwaway-tiny"


def test_it_builds_by_name_and_its_mistakes_are_refused(family: str) -> None:
    model = udit.build(family)
    assert model(torch.zeros(2, 1, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 4])).shape == (2, 2, 8, 8)
    with pytest.raises(UserError, match="did you mean 'Throwaway-tiny'"):
        udit.build("Throwaway-tin")


def test_its_published_keys_go_in_and_out(family: str) -> None:
    model, again = perturb(udit.build(family)), udit.build(family, seed=1)
    exported = udit.export_published(model)
    assert [*exported] == ["t_embedder.weight", "t_embedder.bias", "y_table", "final.conv.weight", "final.conv.bias"]
    udit.import_published(again, exported)
    assert same_bits(snapshot(again), snapshot(model))
    del exported["y_table"]
    with pytest.raises(UserError, match="missing: y_table"):
        udit.import_published(again, exported)


def test_a_recipe_trains_it_and_its_folder_loads(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["training.steps=2", "training.batch_size=4", "sampling.steps=1", f"out={tmp_path / 'run'}"]
    succeeds(capsys, "train", "digits", f"model={family}", *words, "--no-progress")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    system = udit.load(tmp_path / "run" / "model")
    assert system.config.model == CATALOG[family].config.replace(num_classes=10, learn_sigma=False, input_size=(8, 8))
    assert next(system.generate([0, 1], [3, 4])).shape == (2, 1, 8, 8)


def test_its_release_becomes_a_model_folder(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = perturb(udit.build(family))
    torch.save(udit.export_published(model), tmp_path / "release.pt")
    succeeds(capsys, "convert", str(tmp_path / "release.pt"), str(tmp_path / "model"), "--model", family)
    system = udit.load(tmp_path / "model")
    assert same_bits(snapshot(system.backbone), snapshot(model))
    assert system.config.diffusion.kind == "ddpm"


def reference_file() -> dict[str, np.ndarray]:
    """A reference file of the family, computed by formulas that share no code with it."""
    words = {"system": "throw-away", "in_channels": 1, "classes": 5, "null_label": 5, "learn_sigma": False}
    shapes = {"t_embedder.weight": (1, 1), "t_embedder.bias": (1,), "y_table": (6, 1)}
    shapes |= {"final.conv.weight": (1, 1, 3, 3), "final.conv.bias": (1,)}
    weights = {
        key: torch.from_numpy(
            (0.5 * np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)).astype(np.float32)
        )
        for key, shape in shapes.items()
    }
    x = torch.from_numpy(np.random.RandomState(3).standard_normal((2, 1, 8, 12)).astype(np.float32))
    t, y = torch.tensor([10.0, 700.0]), torch.tensor([2, 5])
    cond = t * weights["t_embedder.weight"][0, 0] / 1000 + weights["t_embedder.bias"] + weights["y_table"][y, 0]
    out = F.conv2d(
        torch.tanh(x + cond.view(2, 1, 1, 1)), weights["final.conv.weight"], weights["final.conv.bias"], padding=1
    )
    return {
        "model": np.array([json.dumps(words | {"time": "index"})]),
        "seed": np.array(3),
        "x_shape": np.array([2, 1, 8, 12]),
        "t": t.numpy(),
        "y": y.numpy(),
        "std": np.array(0.5),
        "base_keys": np.zeros(0),
        "base_values": np.zeros(0),
        "out": out.numpy(),
        "n_keys": np.array(5),
        "n_params": np.array(1 + 1 + 6 + 9 + 1),
    }


def test_a_reference_file_of_it_is_checked(family: str, tmp_path: Path) -> None:
    arrays = reference_file()
    np.savez(tmp_path / "right.npz", **arrays)  # type: ignore[arg-type]
    report = check_file(tmp_path / "right.npz")
    assert report.ok, str(report)
    assert {check.name for check in report.checks} == {"out", "out (fused)", "n_keys", "n_params"}
    np.savez(tmp_path / "wrong.npz", **arrays | {"out": arrays["out"] * 1.001})  # type: ignore[arg-type]
    assert not check_file(tmp_path / "wrong.npz").ok


def test_the_catalogue_lists_it(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    [listed] = json.loads(succeeds(capsys, "models", family, "--json"))
    assert (listed["model"], listed["parameters"]) == (family, 1 + 1 + 6 + 18 + 2)


def test_a_family_without_a_release_has_no_published_form(
    family: str, monkeypatch: pytest.MonkeyPatch, one_line: Callable[[BaseException], str]
) -> None:
    model = udit.build(family)
    monkeypatch.delattr(type(model.config), "published_keys")
    with pytest.raises(UserError, match="Throwaway has no published key names") as caught:
        udit.export_published(model)
    one_line(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_contract_finds_it_and_finds_out_the_one_whose_modes_differ(path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def run(*words: str, **options: Any) -> str:
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, **options)
        return done.stdout

    contract = str(Path(__file__).with_name("test_contract.py"))
    plugins = ("-p", "throwaway_rows", "-p", "no:cacheprovider", "-m", "")  # the slow ones too
    which = "Throwaway and not compile and not recorded_counts"  # it has no list of blocks, and no record of its counts
    out = run("-m", "pytest", "-q", *plugins, contract, "-k", which, "-rpf")
    passed, failed = (set(re.findall(rf"^{word} \S*::(\w+)\[(.*?)\]", out, re.M)) for word in ("PASSED", "FAILED"))
    assert {test for test, row in failed if "impure" not in row} == set()
    assert {test for test, _ in failed} == {"test_modes_and_fusing_leave_weights_alone_and_outputs_the_same"}
    assert len([test for test, row in passed if "Throwaway-tiny" in row]) >= 11
