"""The manifest of an exported graph (``export.json``), and the check of its files against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from udit.errors import UserError
from udit.files import file_facts, seal, unseal, write_text
from udit.run.system import EXPORTED
from udit.spec.base import Spec, parse
from udit.spec.digest import FileFacts

Kind = Literal["onnx", "openvino"]
Engine = Literal["onnxruntime", "openvino"]
ENGINES: dict[Kind, Engine] = {"onnx": "onnxruntime", "openvino": "openvino"}
"""Kind of a graph -> the engine that runs it."""
PACKAGES: dict[Kind, tuple[str, ...]] = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
"""Kind of a graph -> the packages that write and check it, of the extra ``export``."""
GRAPHS: dict[Kind, str] = {"onnx": "model.onnx", "openvino": "model.xml"}
TOLERANCE = 1e-4
"""Of max|difference| / max|network's output|."""


class Check(Spec):
    """One comparison of the graph with the network it was exported from."""

    batch: PositiveInt
    size: tuple[PositiveInt, PositiveInt]
    """(H, W)"""
    error: Annotated[float, Field(ge=0)]
    """max|difference| / max|network's output|."""


class Manifest(Spec):
    """``export.json``: kind of the graph, its measured errors, and the digests of all files beside it."""

    format: Literal[1] = 1
    kind: Kind
    precision: Literal["float32", "int8"] = "float32"
    size: tuple[PositiveInt, PositiveInt] | None
    """The only (H, W) that the graph takes; None where it takes every size of the model. The batch is always free."""
    weights: str
    """Fingerprint of the weights before they were fused (``System.fingerprint``)."""
    checks: Annotated[tuple[Check, ...], Field(min_length=1)]
    calibration: NonNegativeInt = 0
    """Number of noised training images that int8's ranges were measured on."""
    versions: dict[str, str]
    files: dict[str, FileFacts]

    @property
    def error(self) -> float:
        """The largest error of the checks."""
        return max(check.error for check in self.checks)

    @property
    def engine(self) -> Engine:
        """The engine that runs the graph."""
        return ENGINES[self.kind]

    @property
    def sizes(self) -> str:
        """The sizes it takes, in words."""
        return "any size of the model's" if self.size is None else f"{self.size[0]}x{self.size[1]} only"


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes ``export.json``, sealed."""
    write_text(folder / EXPORTED, seal(manifest.model_dump(mode="json")))


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported graph."""
    return (folder / EXPORTED).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported folder, after every byte of it has been checked.

    Raises:
        UserError: there is none, it has another format, or a file is missing or altered.
    """
    path, again = folder / EXPORTED, "export it again: udit export"
    try:
        text = path.read_text(encoding="utf-8")
        values: Any = json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no exported graph ({EXPORTED}); make one: udit export") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {again}") from None
    found = values.get("format") if isinstance(values, dict) else None
    if found != 1:
        raise UserError(f"{folder} was exported in format {found} and this udit reads 1; {again}")
    try:
        sealed = unseal(text)
    except ValueError as error:
        raise UserError(f"{path} is altered: {error}; {again}") from None
    manifest = parse(Manifest, sealed, where=path)
    for name, facts in manifest.files.items():
        try:
            same = file_facts(folder / name) == facts
        except OSError:
            raise UserError(f"{folder / name} is missing; {again}") from None
        if not same:
            raise UserError(f"{folder / name} is altered: it is not the file that was exported; {again}")
    return manifest
