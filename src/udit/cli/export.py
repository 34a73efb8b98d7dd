"""``udit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from udit.cli.output import say
from udit.errors import UserError


def export(
    kind: Literal["onnx", "openvino"],
    model: str,
    /,
    *,
    out: Path | None = None,
    size: str | None = None,
    int8: Annotated[bool, Parameter(negative="")] = False,
    weights: Literal["ema", "raw"] = "ema",
) -> int:
    """Write a model as a graph of another engine, checked against the model; `udit sample FOLDER` draws from it.

    The batch is free, and so are H and W where the architecture lets them be.

    Parameters
    ----------
    kind
        onnx (runs in onnxruntime) or openvino.
    model
        A run folder, a model folder or a hub id.
    out
        The folder to write; MODEL/onnx, MODEL/openvino or MODEL/openvino-int8 if not given.
    size
        free, or the only size that the graph shall take, e.g. 32 or 32x64; free where the model can be if not given.
    int8
        openvino, of a run: matrix products in int8, their ranges measured on the run's noised training pictures.
    weights
        ema (averaged) or raw.
    """
    extent = parse_size(size) if size and size != "free" else None
    if out is None and not Path(model).is_dir():
        raise UserError(f"{model} is no folder to write beside; name one with --out")
    if int8 and kind != "openvino":
        raise UserError(f"--int8 makes OpenVINO graphs, and this is {kind}; udit export openvino {model} --int8")
    if int8 and not (Path(model) / "run.yaml").is_file():
        raise UserError(f"{model} is no run folder, and --int8 measures on a run's own training pictures; give a run")
    folder = out or Path(model) / (f"{kind}-int8" if int8 else kind)

    from udit.exporting.calibrate import calibration
    from udit.exporting.folder import export as write
    from udit.store import load, read_run_config

    system = load(model, weights=weights)
    if size is None and system.config.model.size_step is None:
        extent = system.config.model.size
    given = calibration(read_run_config(Path(model))) if int8 else []
    manifest = write(system, kind, folder, size=extent, calibration=given)
    say(
        f"wrote {folder}: {kind}, {manifest.precision}, any batch, {manifest.sizes}; off the model's output by "
        f"{manifest.error:.1e} of its largest value; next: udit sample {folder}"
    )
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) of ``32`` or ``32x64``.

    Raises:
        UserError: not such a size.
    """
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise UserError(f"--size is {text!r}; write free, a side or HxW, e.g. 32 or 32x64")
    return int(sides[0]), int(sides[-1])
