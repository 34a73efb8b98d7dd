"""Runs graphs: onnxruntime and OpenVINO behind one callable type, and a graph in a network's place."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from udit.errors import UserError, missing_extra
from udit.exporting.manifest import ENGINES, GRAPHS, Engine, Kind, Manifest
from udit.models.config import ModelConfig

Session = Callable[[Sequence[NDArray[Any]]], NDArray[Any]]
"""A loaded graph: its inputs, in order -> its output."""


def require(names: Sequence[str]) -> dict[str, str]:
    """Versions of packages of the extra ``export``.

    Raises:
        UserError: one is not installed.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise missing_extra("an exported graph", name, "export") from None
    return {name: version(name) for name in names}


def open_graph(kind: Kind, folder: Path) -> Session:
    """The graph in a folder, on as many threads as torch has here.

    Raises:
        UserError: the engine is not installed, or refuses the file.
    """
    opener: dict[Engine, Callable[[Path], Session]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    engine = ENGINES[kind]
    require([engine])
    try:
        return opener[engine](folder / GRAPHS[kind])
    except RuntimeError as error:  # both engines raise errors of this type
        raise UserError(f"{engine} does not take {folder}: {' '.join(str(error).split())[:200]}") from None


def _onnxruntime(path: Path) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda parts: session.run(None, dict(zip(names, parts, strict=True)))[0]


def _openvino(path: Path) -> Session:
    import openvino

    # Without this, OpenVINO uses bfloat16 on some processors, whose results differ from the ones that were checked.
    precise = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = openvino.Core().compile_model(path, "CPU", precise).create_infer_request()

    def run(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        request.infer(list(parts), share_inputs=True)
        return np.array(request.get_output_tensor(0).data)  # the engine overwrites its output at the next call

    return run


class Graph(nn.Module):
    """A backbone that is an exported graph: x [B, C, H, W], t [B], y or None (= null) -> [B, out_channels, H, W].

    It has no parameters, runs on the CPU and cannot be split, so steps cannot be cached.
    """

    def __init__(self, config: ModelConfig, manifest: Manifest, session: Session) -> None:
        super().__init__()
        self.config = config
        self.manifest = manifest
        self.fingerprint = manifest.weights
        self.session = session

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Computes what the exported network computes, in float32.

        Raises:
            UserError: the graph does not take this size, dtype or condition.
        """
        size = (x.shape[2], x.shape[3])
        self.config.check_size(*size)
        if self.manifest.size not in (None, size):
            raise UserError(f"an input is {size[0]}x{size[1]} and the graph takes {self.manifest.sizes}")
        if x.dtype != torch.float32:
            kind = str(x.dtype).removeprefix("torch.")
            raise UserError(f"an input is {kind} and exported graphs take float32; convert it with .float()")
        parts = [x, t.float(), *self._condition(t, y)]
        return torch.from_numpy(self.session([part.contiguous().numpy() for part in parts]))

    def _condition(self, t: Tensor, y: Tensor | None) -> list[Tensor]:
        shape, null = self.config.condition_shape, self.config.null_label
        if shape is None:
            if y is not None:
                raise UserError("the model is unconditional (num_classes 0) and takes no labels; pass y=None")
            return []
        if y is None and null is not None and not shape:
            y = torch.full(t.shape, null)
        if y is None or y.shape[1:] != shape:
            raise UserError(f"y is {'missing' if y is None else list(y.shape)}; the graph takes {[len(t), *shape]}")
        return [y]
