"""Passes as CUDA graphs, without CUDA: a stand-in records each operator and runs all again on the same memory.

As on a GPU, a replay repeats what the device did and nothing of the host's, reads the tensors of its capture, and
writes over what the replay before it left.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runs import small_run
from udit.data.batches import Batch
from udit.dist import World
from udit.errors import RunError, UserError
from udit.run.config import Run
from udit.run.recipes import load_run
from udit.training import graphs
from udit.training.batches import batches_of
from udit.training.learner import Learner
from udit.training.source import verified_source


class Recorder(TorchDispatchMode):
    """Keeps every operator that runs, with the tensors that it was given and made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made


def recorded(compute: Callable[[], object]) -> Callable[[], object]:
    """In the place of ``graphs.captured``."""
    with Recorder() as recorder:
        compute()

    @torch.no_grad()
    def replay() -> None:
        for func, args, kwargs, made in recorder.calls:
            if func.is_view:
                continue
            for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    return replay


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def graphed(backward: Any, parameters: Any, config: Any, world: Any) -> Any:
        return graphs.GraphedBackward(backward, parameters, config, recorded) if config.cuda_graphs else None

    monkeypatch.setattr("udit.training.learner.graphed_of", graphed)


def learner_of(tmp_path: Path, *overrides: str) -> tuple[Run, Learner]:
    run = small_run(tmp_path / "x", "training.deterministic=true", *overrides)
    learner = Learner(run, World())
    learner.share(0)
    return run, learner


def trained(tmp_path: Path, *overrides: str, steps: int = 5) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and gradient norms of some steps, and the weights after them."""
    run, learner = learner_of(tmp_path, *overrides)
    source = verified_source(run)
    told = []
    reading = batches_of(run, source, range(64))  # type: ignore[arg-type]
    for step, micro_batches in zip(range(steps), reading, strict=False):
        report = learner.step(step, micro_batches)
        assert report.grad_norm is not None
        told += [report.loss, report.grad_norm]
    reading.close()
    return told, {name: x.clone() for name, x in learner.model.state_dict().items()}


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("recompute", ["false", "selective"])
def test_steps_have_the_bits_of_steps_without_a_graph(tmp_path: Path, parts: int, recompute: str) -> None:
    words = (
        f"training.accumulation={parts}",
        f"training.checkpoint_activations={recompute}",
        "training.clip_norm=0.01",
    )
    plain, graphed = (trained(tmp_path, *words, f"training.cuda_graphs={on}") for on in ("false", "true"))
    assert graphed[0] == plain[0]
    assert all(torch.equal(graphed[1][name], plain[1][name]) for name in plain[1])


def one_batch(run: Run, first: int = 0) -> Batch:
    reading = batches_of(run, verified_source(run), range(64), first)  # type: ignore[arg-type]
    batch: Batch = next(reading)[0]
    reading.close()
    return batch


@pytest.mark.usefixtures("_stand_in")
def test_a_number_of_the_host_in_the_graph_is_found_by_the_second_batch(tmp_path: Path) -> None:
    run, learner = learner_of(tmp_path, "training.cuda_graphs=true")
    graphed, right = learner.graphed, learner._gradients
    assert graphed is not None

    def by_the_host(batch: Batch) -> Any:
        losses = right(batch)
        scale = float(batch.x.float().mean())  # read once, when the graph is made
        return losses.mapped(lambda x: x * scale)

    graphed.backward = by_the_host
    graphed(one_batch(run))
    with pytest.raises(RunError, match=r"graph of a step gives other bits than the step itself; set training\.cuda_gr"):
        graphed(one_batch(run, 1))


@pytest.mark.usefixtures("_stand_in")
def test_losses_stay_when_the_graph_runs_again_and_no_numbers_prove_nothing(tmp_path: Path) -> None:
    run, learner = learner_of(tmp_path, "training.cuda_graphs=true")
    graphed = learner.graphed
    assert graphed is not None
    bad = one_batch(run)
    bad.drawn["noise"].fill_(float("nan"))
    assert graphed(bad).loss.isnan().all()
    assert graphed._checked == 0
    learner.network.zero_grad()
    first = graphed(one_batch(run))
    kept = first.loss.clone()
    learner.network.zero_grad()
    graphed(one_batch(run, 1))
    assert torch.equal(first.loss, kept)
    assert graphed._checked == graphs.CHECKED


def test_a_step_that_cannot_be_captured_is_one_line(tmp_path: Path, one_line: Callable) -> None:
    run, learner = learner_of(tmp_path)

    def refuses(compute: Callable[[], object]) -> Callable[[], object]:
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    graphed = graphs.GraphedBackward(learner._gradients, learner.parameters, run.training, refuses)
    with pytest.raises(RunError, match="cannot be captured \\(operation not permitted") as error:
        graphed(one_batch(run))
    one_line(error.value)


def test_no_gpu_and_several_processes_are_refused(tmp_path: Path, one_line: Callable) -> None:
    run = small_run(tmp_path / "x", "training.cuda_graphs=true")
    with pytest.raises(UserError, match=r"training\.cuda_graphs is true and the device is cpu") as error:
        Learner(run, World())
    one_line(error.value)
    many = World(rank=0, size=2, device=torch.device("cuda"))
    with pytest.raises(UserError, match="there are 2 processes, whose exchange of gradients is in no graph"):
        graphs.graphed_of(lambda batch: None, [], run.training, many)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("recipe", "words", "said"),
    [
        ("digits-consistency", "init_from=demo:digits", "with diffusion.kind=consistency: its times change"),
        ("digits", "data.condition={kind: low-resolution, factor: 2}", "with data.condition: what the model sees"),
    ],
)
def test_what_the_host_changes_is_refused(recipe: str, words: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_run(recipe, ["training.cuda_graphs=true", words])
