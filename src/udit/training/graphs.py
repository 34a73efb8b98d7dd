"""A micro-batch's forward and backward pass as one CUDA graph: one launch where there were thousands.

Small batches leave a GPU waiting for the host, which launches each kernel. A graph (torch.cuda.CUDAGraph) holds the
kernels of one pass with the addresses that they read and write, and runs all of them by one call. What the host did
between the launches is not repeated, so that a number that it computed would stay what it was; and what a replay
leaves is overwritten by the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from udit.data.batches import Batch
from udit.diffusion.objective import Losses
from udit.dist import World
from udit.errors import RunError, UserError, one_line
from udit.run.config import TrainingConfig

Replay = Callable[[], object]
CHECKED = 2
"""Micro-batches that are computed without the graph, too: a number that the host left in it shows with the second."""
NEAR = 0.02
"""Largest distance of losses, or gradients, of the graph from those without it, as a share of their norm: kernels that
add in any order round differently each time. With ``training.deterministic`` all bits are asked."""


def graphed_of(
    backward: Callable[[Batch], Losses], parameters: Sequence[nn.Parameter], config: TrainingConfig, world: World
) -> GraphedBackward | None:
    """What runs micro-batches as a graph where ``training.cuda_graphs`` asks for it.

    Args:
        backward: forward and backward pass of a micro-batch on the device; returns its losses, detached.
        parameters: whose gradients it computes.
        config: of the training.
        world: this process's place.

    Raises:
        UserError: the device has none, or there are several processes, whose exchange of gradients is not in the graph.
    """
    if not config.cuda_graphs:
        return None
    if world.device.type != "cuda":
        raise UserError(
            f"training.cuda_graphs is true and the device is {world.device.type}; set training.cuda_graphs=false"
        )
    if world.size > 1:
        raise UserError(
            f"training.cuda_graphs is true and there are {world.size} processes, whose exchange of gradients is in no "
            "graph; set training.cuda_graphs=false"
        )
    return GraphedBackward(backward, parameters, config, captured)


def captured(compute: Callable[[], object]) -> Replay:
    """Captures what ``compute`` launches on the present CUDA device, and returns what runs it again.

    Other threads, such as the one that pins memory, may go on with calls that a capture could not hold.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        compute()
    return graph.replay


class GraphedBackward:
    """Losses of micro-batches of one shape; their gradients are added to ``.grad``, as a backward pass does."""

    def __init__(
        self,
        backward: Callable[[Batch], Losses],
        parameters: Sequence[nn.Parameter],
        config: TrainingConfig,
        capture: Callable[[Callable[[], object]], Replay],
    ) -> None:
        """See ``graphed_of``; nothing is captured before the first micro-batch. ``capture`` as ``captured``."""
        self.backward, self.parameters, self.config, self.capture = backward, parameters, config, capture
        self._replay: Replay | None = None
        self._batch: Batch
        """Its tensors are those that the graph reads; it writes the losses and gradients."""
        self._losses: Losses
        self._gradients: list[Tensor | None]
        self._sums: list[Tensor] = []
        """Gradients of a step of several micro-batches."""
        self._checked = 0

    def __call__(self, batch: Batch) -> Losses:
        """The losses of a micro-batch on the device, [B] each, in memory of their own.

        Raises:
            RunError: the graph cannot be captured, or its numbers are not those of the step itself.
        """
        first = all(p.grad is None for p in self.parameters)
        expected = self._alone(batch) if self._checked < CHECKED else []
        if self._replay is None:
            self._replay = self._begin(batch)
        for kept, new in zip(self._batch.tensors, batch.tensors, strict=True):
            kept.copy_(new, non_blocking=True)
        self._replay()
        if expected:
            self._compare(expected, self._losses.terms + _there(self._gradients))
        self._hand_over(first)
        return self._losses.mapped(Tensor.clone)

    def _alone(self, batch: Batch) -> list[Tensor]:
        """Losses and gradients without the graph, on a stream of their own as a capture asks of what it warms up."""
        self._forget()
        with _aside(batch.x.device):
            losses = self.backward(batch)
        found = losses.terms + _there([p.grad for p in self.parameters])
        self._forget()
        return found

    def _begin(self, batch: Batch) -> Replay:
        """Captures the pass, with copies of a batch's tensors to read from."""
        self._batch = batch.mapped(Tensor.clone)

        def compute() -> None:
            self._losses = self.backward(self._batch)
            self._gradients = [p.grad for p in self.parameters]

        try:
            return self.capture(compute)
        except RuntimeError as error:
            raise RunError(
                f"training.cuda_graphs is true and the step cannot be captured ({one_line(error)[:200]}); set "
                "training.cuda_graphs=false"
            ) from None
        finally:
            self._forget()

    def _compare(self, expected: list[Tensor], found: list[Tensor]) -> None:
        """Refuses a graph whose losses or gradients are not those of the step itself.

        Numbers that are not finite tell nothing: another micro-batch is asked.
        """
        if not all(x.isfinite().all() for x in expected):
            return
        self._checked += 1
        exact = self.config.deterministic
        what = "bits" if exact else "numbers"
        for one, other in zip(expected, found, strict=True):
            if not (torch.equal(one, other) if exact else (one - other).norm() <= NEAR * one.norm()):
                raise RunError(
                    f"training.cuda_graphs is true and the graph of a step gives other {what} than the step "
                    "itself; set training.cuda_graphs=false"
                )

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _hand_over(self, first: bool) -> None:
        """Makes the replay's gradients those of the parameters, added to those of a step's micro-batches before."""
        gradients = _there(self._gradients)
        if self.config.accumulation > 1:
            self._sums = self._sums or [torch.empty_like(gradient) for gradient in gradients]
            for total, new in zip(self._sums, gradients, strict=True):
                total.copy_(new) if first else total.add_(new)
            gradients = self._sums
        left = iter(gradients)
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            parameter.grad = None if gradient is None else next(left)


def _there(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [x for x in tensors if x is not None]


@contextlib.contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Context of a CUDA stream beside the present one, after it and before what follows; nothing on other devices."""
    if device.type != "cuda":
        yield
        return
    stream, present = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        yield
    present.wait_stream(stream)
