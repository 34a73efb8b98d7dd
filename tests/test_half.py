"""Sampling in bfloat16: products are rounded, and nothing else of an image changes."""

from __future__ import annotations

import pytest
import torch

import udit
from udit.assemble import System
from udit.errors import UserError
from udit.generation import generate
from udit.run.config import Run
from udit.run.recipes import load_run
from udit.run.system import SystemConfig

WORDS = {"sampling": {"steps": 3, "guidance": 2.0, "sampler": "flow-heun"}, "batch_size": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def system() -> System:
    run: Run = load_run("digits", ["diffusion.kind=flow", "sampling.sampler=flow-heun"])
    model = udit.build(run.model, seed=1)
    with torch.no_grad():  # as trained: initial heads are zero
        for name, p in model.named_parameters():
            if name.startswith("out."):
                p.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    return System(SystemConfig.of(run), model)


def images(system: System, **options: object) -> torch.Tensor:
    drawn = generate(system, range(4), [0, 1, 2, 3], **{**WORDS, **options})  # type: ignore[arg-type]
    return torch.cat([batch.images for batch in drawn.batches()]).float()


def test_images_are_those_of_float32_but_for_rounding(system: System) -> None:
    """Three steps of bfloat16 products, 2**-9 each, leave a few hundredths of the pixels' spread."""
    precise, half = images(system), images(system, precision="bfloat16")
    assert not torch.equal(precise, half)
    assert (precise - half).square().mean().sqrt() < 0.05 * precise.std()


def test_system_stays_as_it_is_and_images_record_the_precision(system: System) -> None:
    before = {name: tensor.clone() for name, tensor in system.backbone.state_dict().items()}
    drawn = generate(system, range(2), [0, 1], precision="bfloat16", **WORDS)  # type: ignore[arg-type]
    assert drawn.settings()["precision"] == "bfloat16"
    assert drawn.settings()["model"] == system.fingerprint
    assert "precision" not in generate(system, range(2), [0, 1]).settings()
    kinds = {p.dtype for p in drawn.system.backbone.parameters()}
    assert kinds == {torch.bfloat16, torch.float32}
    assert all(torch.equal(before[name], tensor) for name, tensor in system.backbone.state_dict().items())


def test_exported_graphs_have_their_own(system: System) -> None:
    class Graph(torch.nn.Module):
        fingerprint = "0" * 16

    graph = System(system.config, Graph())
    with pytest.raises(UserError, match="an exported graph has its own"):
        graph.in_half()
