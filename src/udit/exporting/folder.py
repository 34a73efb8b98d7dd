"""``export`` and the folders it writes, once graph and network agree; and how they are loaded as systems."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch

from udit import __version__
from udit.assemble import System
from udit.errors import RunError, UserError, nearest, require_type
from udit.exporting.calibrate import Inputs, calibration_inputs
from udit.exporting.engines import Graph, Session, open_graph, require
from udit.exporting.manifest import (
    PACKAGES,
    TOLERANCE,
    Check,
    Kind,
    Manifest,
    is_exported,
    read_manifest,
    write_manifest,
)
from udit.exporting.pipelines import PipelineFolder, export_pipeline
from udit.exporting.program import inputs, trace
from udit.exporting.write import quiet, write_graph
from udit.files import file_facts, whole_folder
from udit.store import load as load_model
from udit.store import read_config, read_run_config

Size = tuple[int, int]


@overload
def export(
    model: System | str | Path,
    kind: Literal["diffusers"],
    folder: str | Path | None = None,
    *,
    weights: Literal["ema", "raw"] = "ema",
) -> PipelineFolder: ...
@overload
def export(
    model: System | str | Path,
    kind: Kind,
    folder: str | Path | None = None,
    *,
    size: Size | Literal["free"] | None = None,
    int8: bool = False,
    weights: Literal["ema", "raw"] = "ema",
) -> Manifest: ...
def export(
    model: System | str | Path,
    kind: Kind | Literal["diffusers"],
    folder: str | Path | None = None,
    *,
    size: Size | Literal["free"] | None = None,
    int8: bool = False,
    weights: Literal["ema", "raw"] = "ema",
) -> Manifest | PipelineFolder:
    """Writes a model as a graph of another engine, or as a pipeline of diffusers, checked against the model.

    ``udit.generate`` samples from a graph, and ``DiffusionPipeline.from_pretrained`` loads a pipeline.

    Args:
        model: a run folder, a model folder, a hub id, or a loaded system on the CPU in float32.
        kind: "onnx" (runs in onnxruntime), "openvino" or "diffusers".
        folder: where to; MODEL/onnx, MODEL/openvino, MODEL/openvino-int8 or MODEL/diffusers if None. An older export
            there is replaced, but only by a graph that agrees with its network.
        size: the only (H, W) that the graph shall take, or "free"; if None, free where the architecture allows it.
        int8: quantises an OpenVINO graph's matrix products, with ranges measured on the run's noised training images.
        weights: "ema" (averaged) or "raw".

    Returns:
        The manifest of a graph's folder, with the measured errors; or the folder for diffusers.

    Raises:
        UserError: the network has no such graph, the graph does not agree with it, or a package is missing.
        RunError: the folder cannot be written.
    """
    require_type("model", model, (System, str, Path), "give a folder, a hub id or a loaded system (udit.load)")
    if kind not in (*PACKAGES, "diffusers"):
        raise UserError(f"kind is {kind!r}{nearest(str(kind), (*PACKAGES, 'diffusers'))}")
    source = None if isinstance(model, System) else Path(model)
    if folder is None and (source is None or not source.is_dir()):
        raise UserError(f"{source or 'a loaded system'} is no folder to write beside; name one with --out")
    if kind == "diffusers" and (size is not None or int8):
        raise UserError("size and int8 are for graphs, and this is a folder for diffusers; leave them out")
    if int8 and kind != "openvino":
        raise UserError(f"--int8 makes OpenVINO graphs, and this is {kind}; udit export openvino {source} --int8")
    if int8 and (source is None or not (source / "run.yaml").is_file()):
        raise UserError(f"{source} is no run folder, and --int8 measures on a run's own training images; give a run")
    system = model if isinstance(model, System) else load_model(model, weights=weights)
    if system.config.condition is not None:
        raise UserError(
            f"the model sees something beside the noisy image (data.condition {system.config.condition.kind}), which "
            "exports do not have yet; sample from the model itself"
        )
    if kind == "diffusers":
        return export_pipeline(
            _checked(system, None), Path(folder) if folder is not None else Path(source or "") / kind
        )
    extent = None if size == "free" else size
    if size is None and system.config.model.size_step is None:
        extent = system.config.model.size
    target = Path(folder) if folder is not None else default_folder(source or Path(), kind, int8)
    _check_possible(system, kind, target, int8)  # before ranges are measured
    _checked(system, extent)
    given = calibration_inputs(read_run_config(source)) if int8 and source is not None else []
    return write_graph_folder(system, kind, target, size=extent, calibration=given)


def default_folder(model: Path, kind: str, int8: bool) -> Path:
    """Where a model is exported to if no folder is named."""
    return model / (f"{kind}-int8" if int8 else kind)


def write_graph_folder(
    system: System, kind: Kind, folder: Path, *, size: Size | None = None, calibration: Sequence[Inputs] = ()
) -> Manifest:
    """Writes the folder of a graph, completely or not at all.

    Args:
        system: the network and what sampling from it takes; on the CPU, float32.
        kind: of the graph.
        folder: an older export there is replaced, but only by a graph that agrees with its network.
        size: the only (H, W) the graph will take; None leaves both free.
        calibration: quantises an OpenVINO graph to int8 with ranges measured on these inputs. Its error exceeds
            float32's tolerance, so it is reported and not judged.

    Returns:
        The manifest, with the measured errors.

    Raises:
        UserError: the network has no such graph, the graph does not agree with it, or a package is missing.
        RunError: the folder cannot be written.
    """
    packages = _check_possible(system, kind, folder, bool(calibration))
    versions = {"udit": __version__, "torch": torch.__version__, **packages}
    system = _checked(system.fused(), size)
    try:
        with whole_folder(folder, replace=True) as temporary:
            write_graph(kind, trace(system.backbone, size), temporary, calibration)
            checks = compare(system, open_graph(kind, temporary), size)
            if (worst := max(check.error for check in checks)) > TOLERANCE and not calibration:
                raise UserError(
                    f"the {kind} graph differs from the network by {worst:.1e} of its output, more than "
                    f"{TOLERANCE:.0e}; {folder} is as it was"
                )
            (temporary / "config.json").write_text(
                json.dumps(system.config.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8"
            )
            manifest = Manifest(
                kind=kind,
                precision="int8" if calibration else "float32",
                calibration=len(calibration),
                size=size,
                weights=system.fingerprint,
                checks=checks,
                versions=versions,
                files={path.name: file_facts(path) for path in sorted(temporary.iterdir())},
            )
            write_manifest(manifest, temporary)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from None
    return manifest


def load(folder: Path, manifest: Manifest | None = None) -> System:
    """The system of an exported folder; its network is a ``Graph``.

    Args:
        folder: one that ``export`` wrote.
        manifest: its manifest, where that has been read already.

    Raises:
        UserError: the folder holds no graph or an altered one, or its engine is not installed.
    """
    manifest = manifest or read_manifest(folder)
    config = read_config(folder / "config.json")
    return System(config, Graph(config.model, manifest, open_graph(manifest.kind, folder)))


@torch.no_grad()
def compare(system: System, session: Session, size: Size | None) -> tuple[Check, ...]:
    """Compares graph and network on the same inputs: two batch sizes and, where sizes are free, two sizes."""
    config = system.config.model
    sizes = [size or config.size]
    if size is None:
        assert config.size_step is not None
        sizes.append((config.size[0] + config.size_step, config.size[1] + 2 * config.size_step))
    checks = []
    for extent in sizes:
        for batch in (1, 4):
            given = inputs(config, batch, extent)
            wanted = system.backbone(*given).numpy()
            found = session([part.numpy() for part in given])
            checks.append(Check(batch=batch, size=extent, error=_error(found, wanted)))
    return tuple(checks)


def _error(found: np.ndarray, wanted: np.ndarray) -> float:
    """max|difference| / max|wanted|, as parity defines it."""
    if found.shape != wanted.shape:
        raise UserError(f"the graph returns {list(found.shape)} and the network {list(wanted.shape)}")
    difference, largest = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
    if not np.isfinite(difference):
        raise UserError("the graph or the network returns numbers that are not finite; check the weights")
    return difference / largest if largest else difference


def _check_possible(system: System, kind: Kind, folder: Path, int8: bool) -> dict[str, str]:
    """Versions of the packages that write a system's graph.

    Raises:
        UserError: the network has no such graph, a package is missing, or the folder holds something else.
    """
    system.config.model.refuse_clips(f"a graph for {kind}")
    if not system.config.model.has_graph:
        raise UserError(
            f"{system.config.model.family} has no {kind} form: not all of its operators are known to have "
            "counterparts; sample with --engine torch"
        )
    with quiet():
        versions = require((*PACKAGES[kind], "nncf") if int8 else PACKAGES[kind])
    if folder.exists() and not is_exported(folder) and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no exported folder; choose another place with --out")
    return versions


def _checked(system: System, size: Size | None) -> System:
    """The system, for inputs of ``size`` where that is given."""
    kinds = {p.dtype for p in system.backbone.parameters()}
    if kinds != {torch.float32}:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise UserError(f"the weights are {names} and exports are made of float32; convert them first")
    if system.config.model.second_time:
        raise UserError(
            f"the model takes two times ({system.config.diffusion.title}), and what is exported takes one; sample from "
            "it with udit"
        )
    if size is None:
        return system
    try:
        system.config.model.check_size(*size)
    except ValueError as error:
        raise UserError(str(error)) from None
    model = system.config.model.replace(input_size=size)
    return dataclasses.replace(system, config=system.config.model_copy(update={"model": model}))
