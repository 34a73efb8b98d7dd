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


def set_up(training: TrainingConfig, device: torch.device) -> None:
    """Sets torch up for training on a CUDA GPU; on other devices nothing.

    Products that stay in float32 beside those in bfloat16 run in TF32, and cuDNN times its convolutions, unless
    ``deterministic``: then only what has the same bits each time runs, and an operator without such a kernel is an
    error.
    """
    if device.type != "cuda":
        return
    fast = training.precision == "bfloat16"
    torch.backends.cuda.matmul.allow_tf32 = fast
    torch.backends.cudnn.allow_tf32 = fast
    torch.backends.cudnn.benchmark = not training.deterministic
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)  # read when cuBLAS is first used
        # With warnings only, attention would keep its faster backward, whose sums run in any order.
        torch.use_deterministic_algorithms(True, warn_only=False)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cudnn.deterministic = True


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
