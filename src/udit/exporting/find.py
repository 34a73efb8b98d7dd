"""Which engine generates: torch with a model's weights, or the engine of an exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from udit.errors import UserError
from udit.exporting.manifest import ENGINES, Manifest, is_exported, read_manifest

if TYPE_CHECKING:
    from udit.assemble import System
    from udit.dist import World

EngineName = Literal["torch", "onnxruntime", "openvino"]


class Found(NamedTuple):
    """An exported folder, whose files have been checked against its manifest."""

    folder: Path
    manifest: Manifest


def find_graph(model: str | Path, engine: EngineName | None) -> Found | None:
    """The graph to sample with: the folder itself, or the one that ``udit export`` put into it; None for torch.

    Raises:
        UserError: there is no graph for the engine, or the graph is altered or another engine's.
    """
    folder = Path(model)
    if is_exported(folder):
        found = Found(folder, read_manifest(folder))
        if engine == "torch":
            raise UserError(
                f"{model} holds a graph and no weights for torch; sample from the model it was exported from"
            )
        if engine not in (None, found.manifest.engine):
            kind, own = found.manifest.kind, found.manifest.engine
            raise UserError(f"{model} holds a graph of kind {kind}, which {own} runs; leave out --engine {engine}")
        return found
    if engine in (None, "torch"):
        return None
    kind = next(kind for kind, runner in ENGINES.items() if runner == engine)
    inside = folder / kind
    if not is_exported(inside):
        raise UserError(f"{model} has no graph for {engine} at {inside}; make one: udit export {kind} {model}")
    return Found(inside, read_manifest(inside))


def load_graph(found: Found, model: str | Path, weights: Literal["ema", "raw"]) -> System:
    """The system of a graph.

    Raises:
        UserError: the model's weights are not those that were exported, or the engine is not installed.
    """
    from udit.exporting.folder import load as load_exported
    from udit.store import load

    folder, manifest = found
    if folder == Path(model):
        if weights != "ema":
            raise UserError(f"{model} holds the weights it was exported with; leave out --weights {weights}")
    elif not load(model, weights=weights).has_weights(manifest.weights):
        raise UserError(f"{folder} was made of other weights than {model} has; udit export {manifest.kind} {model}")
    return load_exported(folder, manifest)


def open_system(
    model: str | Path,
    weights: Literal["ema", "raw"] = "ema",
    device: str = "auto",
    engine: EngineName | None = None,
    adapter: str | Path | None = None,
) -> tuple[System, World]:
    """The system to sample from, fused and on its device, or an exported graph; and the ranks.

    The arguments are those of ``udit.generate``.

    Raises:
        UserError: no such model, weights, engine or adapter, or they do not go together.
    """
    from udit import dist
    from udit.store import load

    graph = find_graph(model, engine)
    if graph and device not in ("auto", "cpu"):
        raise UserError(f"device is {device} and exported graphs run on the CPU; leave it out")
    if graph and adapter is not None:
        raise UserError("an adapter is given and an exported graph takes none; sample from the model itself")
    world = dist.start("cpu" if graph else device)
    if graph:
        return load_graph(graph, model, weights), world
    return load(model, weights=weights, adapter=adapter).fused().to(world.device), world
