"""What all tests share: one thread, few examples, and a tiny network."""

from __future__ import annotations

import gc
import gzip
import json
import logging
import signal
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

import udit
from udit import ops
from udit.cli import main
from udit.ops import build

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's "&" passes it on to all that the tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the suite shares its cores; a second thread makes tiny networks slower, not faster
settings.register_profile(
    "tests", max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

DATA = Path(__file__).parent / "data"
ErrorOf = Callable[..., str]
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler")
"""For tests that need a kernel; without a compiler, all others must still pass."""
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that a launcher of several processes sets."""

TINY: dict[str, Any] = {
    "width": 16,
    "heads": 2,
    "depths": (1, 1, 1),
    "in_channels": 2,
    "num_classes": 5,
    "input_size": 8,
}
"""Overrides of U-DiT-S: two levels, 2 channels, 5 classes, 8x8."""


def quick(names: Iterable[Any], which: Container[Any] = ("U-DiT-tiny", "DiT-tiny")) -> list[Any]:
    """Parameters of a test: what is in ``which`` runs each time, all others with the slow tests."""
    return [name if name in which else pytest.param(name, marks=pytest.mark.slow) for name in names]


def perturb(model: nn.Module, std: float = 0.1, seed: int = 0) -> nn.Module:
    """Adds noise to every parameter, so that nothing (gates, the head) is zero as it is at initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)
    return model


def batch(model: nn.Module, size: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x, t and y as ``model`` takes them."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    x = torch.randn(size, *config.input_shape(), generator=generator)
    t = torch.randint(0, 1000, (size,), generator=generator)
    if config.condition_shape:
        return x, t, torch.randn(size, *config.condition_shape, generator=generator)
    return x, t, torch.randint(0, max(1, config.num_classes), (size,), generator=generator)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state, to compare bits with later."""
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states hold the same names and the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def pytest_collection() -> None:
    """Collecting allocates much and frees nothing, so that the garbage collector would search in vain."""
    gc.disable()


def pytest_collection_finish() -> None:
    """It runs again, and passes over the million objects of modules and tests that are there by now."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _kernels_are_compiled() -> None:
    """Builds the kernels once, and not within a test that looks at messages or at the time."""
    ops.describe()


@pytest.fixture(autouse=True, scope="session")
def _judges_are_kept_in_a_new_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """In the place of the user's cache."""
    with mock.patch("udit.evaluation.judges.cache_folder", return_value=tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(autouse=True)
def _messages_of_the_command_line_are_its_own() -> Iterator[None]:
    """``main`` makes udit say what it does; the next test hears warnings alone, as a library's user does."""
    yield
    logging.getLogger("udit").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Tests that draw without a generator of their own draw the same numbers in every run and order."""
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> nn.Module:
    """A two-level U-DiT of 50 thousand weights, none of them zero."""
    return perturb(udit.build("U-DiT-S", **TINY))


@pytest.fixture
def one_line() -> Callable[[BaseException], str]:
    """Checks that an error's text is one line, and returns it."""

    def check(error: BaseException) -> str:
        text = str(error)
        assert text
        assert "\n" not in text
        return text

    return check


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> ErrorOf:
    """Runs a command that fails; returns the text of its one-line error."""
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)

    def run(*words: str, code: int = 2) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, errors = capsys.readouterr()
        assert ended.value.code == code
        assert out == ""
        [line] = errors.splitlines()
        assert line.startswith("udit: error: ")
        return line.removeprefix("udit: error: ")

    return run


def succeeds(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Runs a command that succeeds; returns its standard output."""
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    out, errors = capsys.readouterr()
    assert ended.value.code == 0, errors
    return out


def release_keys(size: str) -> dict[str, list[int]]:
    """{key: shape} of the U-DiT release's state dict, in its order; ``size`` is s, b or l."""
    return json.loads(gzip.decompress((DATA / f"udit-{size}-keys.json.gz").read_bytes()))


def gradients(function: object, *inputs: Tensor, weights: Tensor) -> list[Tensor]:
    """The function's output, and the gradients of its weighted sum with respect to the inputs."""
    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    out = function(*inputs)  # type: ignore[operator]
    (out * weights.to(out.dtype)).sum().backward()
    return [out.detach(), *(tensor.grad for tensor in inputs)]
