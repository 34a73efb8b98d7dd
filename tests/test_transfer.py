"""What networks ask of a CUDA GPU, with tensors that have no contents: no GPU is needed to see devices and waits."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import quick
from udit.benchmarking import subjects
from udit.benchmarking.subjects import baseline, inputs, ours
from udit.models.build import bare
from udit.models.catalog import find, list_models
from udit.models.config import ModelConfig
from udit.ops.transfer import sent

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for the GPU: a copy that is not asynchronous, and a value that is read back."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        copied = {"_to_copy": (args[0], made), "copy_": args[:2]}.get(name, ())
        asynchronous = (kwargs or {}).get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        if len({x.device.type for x in copied}) > 1 and not asynchronous:
            self.found.append(f"{name} {list(made.shape)}")
        if name == "_local_scalar_dense" and args[0].is_cuda:
            self.found.append(name)
        return made


def waits(make: Any, config: ModelConfig) -> list[str]:
    """Of a forward in bfloat16 on a GPU; an error where tensors of two devices meet."""
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU
        with torch.device("cuda"):
            network: nn.Module = make()
            given = inputs(config, 2, config.size)
        with torch.autocast("cuda", torch.bfloat16), Waits() as seen:
            network(*given)
    return seen.found


@pytest.mark.parametrize("name", quick(name for name in list_models() if name.endswith("-tiny")))
def test_a_forward_of_no_family_waits_for_a_gpu(name: str) -> None:
    config = find(name).config
    assert waits(lambda: bare(config).train(), config) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["training", "inference"])
@pytest.mark.parametrize("name", ["U-DiT-S", "DiT-XL/2", "U-DiT-S literal"])
def test_what_is_timed_on_a_first_gpu_has_all_its_tensors_there(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("first_gpu")
    monkeypatch.setattr(subjects, "build", lambda config, **_: bare(config))  # whose weights have no contents
    model, other = script.NETWORKS[name]
    config = script.Machine(rehearsal=True).config(model)
    subject = ours(model, config) if other is None else baseline(other, config)
    waits(getattr(subject, kind), config)


def test_a_tensor_that_is_sent_stays_what_it_is_where_there_is_no_gpu() -> None:
    x = torch.arange(3)
    assert sent(x, "cpu") is sent(x, None) is x
    assert sent(x, "meta").is_meta


def test_a_copy_to_a_gpu_is_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: asked.append("pin") or x)
    monkeypatch.setattr(Tensor, "to", lambda x, *where, **how: asked.append(f"{where} {how}") or x)
    sent(torch.arange(3), "cuda")
    assert asked == ["pin", "('cuda',) {'non_blocking': True}"]
