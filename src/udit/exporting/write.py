"""Writes the graph files of a program: ONNX by torch's exporter, OpenVINO by its own converter."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from udit.errors import UserError, one_line
from udit.exporting.calibrate import Inputs, quantized
from udit.exporting.manifest import GRAPHS, Kind
from udit.exporting.program import NAMES


def write_graph(kind: Kind, program: ExportedProgram, folder: Path, calibration: Sequence[Inputs] = ()) -> None:
    """Writes the files of a graph; with ``calibration``, an OpenVINO one in int8.

    Raises:
        UserError: an operator has no counterpart there.
    """
    path = folder / GRAPHS[kind]
    try:
        with quiet():
            if kind == "onnx":
                write_onnx(program, path)
            else:
                model = openvino_model(program)
                write_openvino(quantized(model, calibration) if calibration else model, path)
    except RuntimeError as error:  # the exporters raise errors of this type
        raise UserError(f"the network has no {kind} form: {one_line(error)}") from None


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Writes ONNX; weights beyond its limit of two gigabytes go to a file beside it."""
    import torch.onnx

    graph = torch.onnx.export(program, dynamo=True, verbose=False, output_names=["prediction"])
    assert graph is not None
    graph.save(path)


def openvino_model(program: ExportedProgram) -> Any:
    """The program as an OpenVINO model with named inputs."""
    import openvino

    model = openvino.convert_model(program)
    for given, name in zip(model.inputs, NAMES, strict=False):
        given.get_tensor().set_names({name})
    return model


def write_openvino(model: Any, path: Path) -> None:
    """Writes ``model.xml`` and, beside it, its weights, uncompressed."""
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporters' progress messages, and the usage statistics that OpenVINO and NNCF send.

    The latter are off in CI, which they detect by the variable ``CI``.
    """
    before, ci = logging.root.manager.disable, os.environ.get("CI")
    logging.disable(logging.WARNING)
    os.environ["CI"] = "true"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        del os.environ["CI"]
        if ci is not None:
            os.environ["CI"] = ci
