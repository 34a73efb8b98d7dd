"""Torch is set up for a CUDA GPU within a training's steps, and is afterwards as it was. No GPU is needed to see it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import small_run
from udit.run.config import TrainingConfig
from udit.training import precision, trainer
from udit.training.trainer import Trainer

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


def settings() -> dict[str, Any]:
    """All of torch that ``set_up`` may change."""
    from torch._inductor import config

    return {
        "matmul": torch.backends.cuda.matmul.allow_tf32,
        "cudnn": torch.backends.cudnn.allow_tf32,
        "timed": torch.backends.cudnn.benchmark,
        "cudnn exact": torch.backends.cudnn.deterministic,
        "exact": torch.are_deterministic_algorithms_enabled(),
        "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "cudnn attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "inductor": config.deterministic,
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


FAST = {"matmul": True, "cudnn": True, "timed": True}
PLAIN = {"matmul": False, "cudnn": False, "timed": True}
EXACT = {"timed": False, "cudnn exact": True, "exact": True, "warns": False, "fills": False, "cudnn attention": False}
EXACT |= {"workspace": ":4096:8", "inductor": True}


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"precision": "bfloat16"}, FAST),
        ({"precision": "float32"}, PLAIN),
        ({"precision": "bfloat16", "deterministic": True, "compile": False}, FAST | EXACT),
        ({"precision": "float32", "deterministic": True, "compile": True}, PLAIN | EXACT),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_set_is_restored(fields: dict[str, Any], changed: dict[str, Any], fails: bool) -> None:
    before = settings()
    with contextlib.suppress(ZeroDivisionError), precision.set_up(TrainingConfig(**fields), CUDA):
        assert settings() == before | changed
        if fails:
            raise ZeroDivisionError
    assert settings() == before


def test_a_workspace_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with precision.set_up(TrainingConfig(deterministic=True), CUDA):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_nothing_is_set_on_a_cpu() -> None:
    before = settings()
    with precision.set_up(TrainingConfig(deterministic=True, precision="bfloat16"), torch.device("cpu")):
        assert settings() == before


def test_steps_of_a_training_run_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = precision.set_up
    monkeypatch.setattr(trainer, "set_up", lambda training, device: honest(training, CUDA))
    words = ["training.deterministic=true", "training.steps=2"]
    before, steps = settings(), Trainer(small_run(tmp_path, *words)).steps()
    next(steps)
    assert torch.are_deterministic_algorithms_enabled()
    steps.close()
    assert settings() == before
