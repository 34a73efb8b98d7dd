"""What a training decides by its device: precision, compiling, and how torch is set up for a CUDA GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from udit.errors import RunError, one_line
from udit.run.config import Run, TrainingConfig

WORKSPACE = ":4096:8"
"""cuBLAS's buffers, of a size fixed beforehand, without which its sums may run in another order."""


def decided(run: Run, device: torch.device) -> Run:
    """The run with ``auto`` decided: on CUDA bfloat16 and compiled blocks, elsewhere float32 without compiling."""
    training, cuda = run.training, device.type == "cuda"
    changed: dict[str, object] = {}
    if training.precision == "auto":
        changed["precision"] = "bfloat16" if cuda else "float32"
    if training.compile == "auto":
        changed["compile"] = cuda
    return run.model_copy(update={"training": training.model_copy(update=changed)}) if changed else run


@contextlib.contextmanager
def set_up(training: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Context of a training's steps: torch as they need it on a CUDA GPU, and afterwards as it was before.

    Products that stay in float32 beside those in bfloat16 run in TF32, and cuDNN times its convolutions, unless
    ``deterministic``: then only what has the same bits each time runs, and an operator without such a kernel is an
    error; cuDNN has no attention, cuBLAS a workspace of fixed size, and Inductor chooses no kernel by timing it. On
    other devices nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    matmul, cudnn, exact = torch.backends.cuda.matmul, torch.backends.cudnn, training.deterministic
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = training.precision == "bfloat16"
    cudnn.benchmark = not exact
    try:
        with _deterministic() if exact else contextlib.nullcontext():
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Context in which a CUDA GPU computes the same bits each time."""
    cuda, cudnn, filling = torch.backends.cuda, torch.backends.cudnn, torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    kept = cudnn.deterministic, cuda.cudnn_sdp_enabled(), filling.fill_uninitialized_memory  # type: ignore[attr-defined]
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)  # read when cuBLAS is first used
    # With warnings only, attention would keep its faster backward, whose sums run in any order. This also tells
    # Inductor to choose among kernels by shapes, and not by which was the fastest this time.
    torch.use_deterministic_algorithms(True, warn_only=False)
    cudnn.deterministic, filling.fill_uninitialized_memory = True, False  # type: ignore[attr-defined]
    cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, filling.fill_uninitialized_memory = kept[0], kept[2]  # type: ignore[attr-defined]
        cuda.enable_cudnn_sdp(kept[1])


@contextlib.contextmanager
def kernel_errors_as_run_errors() -> Iterator[None]:
    """Context in which an operator without a deterministic kernel is one line.

    Raises:
        RunError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        operator, found, _ = one_line(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise RunError(
            f"training.deterministic is true and {operator} has no such kernel on this device; set "
            "training.deterministic=false"
        ) from None
