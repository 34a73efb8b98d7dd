"""``udit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from udit.cli.output import say
from udit.errors import UserError


def export(
    kind: Literal["onnx", "openvino", "diffusers"],
    model: str,
    /,
    *,
    out: Path | None = None,
    size: str | None = None,
    int8: Annotated[bool, Parameter(negative="")] = False,
    weights: Literal["ema", "raw"] = "ema",
) -> int:
    """Write a model for another program, checked against the model.

    A graph (onnx, openvino) has a free batch, and free H and W where the architecture allows it; `udit sample FOLDER`
    samples from it. A folder for diffusers is loaded by its DiffusionPipeline where udit is not installed.

    Parameters
    ----------
    kind
        onnx (runs in onnxruntime), openvino, or diffusers.
    model
        A run folder, a model folder or a hub id.
    out
        The folder to write; MODEL/onnx, MODEL/openvino, MODEL/openvino-int8 or MODEL/diffusers if not given.
    size
        of a graph: free, or the only size that it shall take, e.g. 32 or 32x64; if not given, free where possible.
    int8
        openvino, of a run: matrix products in int8, with ranges measured on the run's noised training images.
    weights
        ema (averaged) or raw.
    """
    extent: tuple[int, int] | Literal["free"] | None = None
    if size is not None:
        extent = "free" if size == "free" else parse_size(size)
    if out is None and not Path(model).is_dir():
        raise UserError(f"{model} is not a folder, so the export has no default place; name one with --out")

    from udit.exporting.folder import default_folder
    from udit.exporting.folder import export as export_model

    if kind == "diffusers":
        if extent is not None or int8:
            given = "--int8 quantises" if int8 else "--size fixes the size of"
            raise UserError(f"{given} graphs, and a folder for diffusers holds the network itself; leave it out")
        made = export_model(model, "diffusers", out or Path(model) / kind, weights=weights)
        say(
            f"wrote {made.path}: a pipeline for diffusers; its network is off the model's output by {made.error:.1e} "
            f'of its largest value; next: DiffusionPipeline.from_pretrained("{made.path}", trust_remote_code=True), '
            "which executes its pipeline.py"
        )
        return 0
    folder = out or default_folder(Path(model), kind, int8)
    manifest = export_model(model, kind, folder, size=extent, int8=int8, weights=weights)
    say(
        f"wrote {folder}: {kind}, {manifest.precision}, any batch, {manifest.sizes}; off the model's output by "
        f"{manifest.error:.1e} of its largest value; next: udit sample {folder}"
    )
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) of ``32`` or ``32x64``.

    Raises:
        UserError: the text is no such size.
    """
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise UserError(f"--size is {text!r}; write free, a side or HxW, e.g. 32 or 32x64")
    return int(sides[0]), int(sides[-1])
