"""Exported folders: written whole, or not at all, once graph and network agree; read as a system that samples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from udit import __version__
from udit.assemble import System
from udit.errors import RunError, UserError
from udit.exporting.calibrate import Inputs
from udit.exporting.engines import Graph, Session, open_graph, require
from udit.exporting.manifest import (
    PACKAGES,
    TOLERANCE,
    Check,
    Kind,
    Manifest,
    describe_file,
    is_exported,
    read_manifest,
    write_manifest,
)
from udit.exporting.program import inputs, trace
from udit.exporting.write import quiet, write_graph
from udit.files import whole_folder
from udit.store import fingerprint, read_config

Size = tuple[int, int]


def export(
    system: System, kind: Kind, folder: Path, *, size: Size | None = None, calibration: Sequence[Inputs] = ()
) -> Manifest:
    """Writes a network as a graph of another engine.

    Args:
        system: the network and what sampling from it takes; on the CPU, float32.
        kind: of the graph.
        folder: where to; an older export there is replaced, but only by one that agrees with its network.
        size: the only (H, W) the graph will take; None leaves both free.
        calibration: makes an OpenVINO graph in int8, its ranges measured on these. It cannot agree as float32 does; its
            error is told, and its score decides.

    Returns:
        What was written, with the errors measured.

    Raises:
        UserError: the network has no such graph, or the graph does not agree with it; or a package is missing.
        RunError: the disk refuses.
    """
    if not system.config.model.has_graph:
        raise UserError(
            f"{system.config.model.family} has no {kind} form: not all of its operators are known to have "
            "counterparts; sample with --engine torch"
        )
    packages = (*PACKAGES[kind], "nncf") if calibration else PACKAGES[kind]
    with quiet():
        versions = {"udit": __version__, "torch": torch.__version__, **require(packages)}
    system = _checked(system.fused(), size)
    if folder.exists() and not is_exported(folder) and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no exported folder; choose another place with --out")
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
                weights=fingerprint(system.backbone),
                checks=checks,
                versions=versions,
                files={path.name: describe_file(path) for path in sorted(temporary.iterdir())},
            )
            write_manifest(manifest, temporary)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from None
    return manifest


def load(folder: Path, manifest: Manifest | None = None) -> System:
    """The system of an exported folder; its network is a ``Graph``.

    Args:
        folder: what ``export`` wrote.
        manifest: of ``read_manifest``, where that has been read already.

    Raises:
        UserError: nothing there, altered, or its engine is not installed.
    """
    manifest = manifest or read_manifest(folder)
    config = read_config(folder / "config.json")
    return System(config, Graph(config.model, manifest, open_graph(manifest.kind, folder)))


@torch.no_grad()
def compare(system: System, session: Session, size: Size | None) -> tuple[Check, ...]:
    """Graph and network on the same inputs: two batch sizes and, where sizes are free, two sizes."""
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
    """As parity defines it: max|difference| / max|wanted|."""
    if found.shape != wanted.shape:
        raise UserError(f"the graph makes {list(found.shape)} of what the network makes {list(wanted.shape)}")
    apart, scale = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
    if not np.isfinite(apart):
        raise UserError("the graph or the network makes numbers that are not finite; check the weights")
    return apart / scale if scale else apart


def _checked(system: System, size: Size | None) -> System:
    """The system, made for ``size`` where that is given."""
    kinds = {p.dtype for p in system.backbone.parameters()}
    if kinds != {torch.float32}:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise UserError(f"the weights are {names} and graphs are made of float32; convert them first")
    if size is None:
        return system
    try:
        system.config.model.check_size(*size)
    except ValueError as error:
        raise UserError(str(error)) from None
    model = system.config.model.replace(input_size=size)
    return dataclasses.replace(system, config=system.config.model_copy(update={"model": model}))
