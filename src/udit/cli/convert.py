"""``udit convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from udit.cli.output import say
from udit.errors import UserError
from udit.hub import is_hub_id

WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def convert(
    source: str,
    target: Path,
    *overrides: str,
    model: str | None = None,
    to: Literal["folder", "published"] = "folder",
    fuse: Annotated[bool, Parameter(negative="")] = False,
    repair: Annotated[bool, Parameter(negative="")] = False,
    weights: Literal["ema", "raw"] = "ema",
    vae: str | None = None,
    key: str | None = None,
) -> int:
    """Turn weights into a model folder, or a model into a release's weights.

    A release's .pt, .pth, .ckpt, .bin or .safetensors file needs --model; a run folder, a model folder, and diffusers'
    DiTPipeline or DiTTransformer2DModel describe themselves, in a folder or as a hub id (owner/name).

    Parameters
    ----------
    source
        A release's file, a run folder, a model folder or a hub id.
    target
        The model folder to write; with --to published, a .safetensors file.
    overrides
        KEY=VALUE of the model's config, e.g. num_classes=10
    model
        The catalogue name of a release's weights (`udit models` lists them).
    to
        "published" writes the release's own key names.
    fuse
        Write the fused network, for inference.
    repair
        Undo damage to a checkpoint by the release's own code (U-DiT's eval()), where it is recognised.
    weights
        Which weights of a run or model folder.
    vae
        Folder or hub id of the VAE of a release on latents; stabilityai/sd-vae-ft-ema if not given.
    key
        Which state of a file that holds several, e.g. model; the averaged one if not given. "." is the file itself.
    """
    from udit.run.config import model_from
    from udit.run.recipes import parse_overrides

    values: dict[str, Any] = parse_overrides(list(overrides))
    path = Path(source)
    is_file = path.is_file()
    if is_file and model is None:
        raise UserError(f"{source} does not say which model it is; add --model NAME (`udit models` lists all)")
    for_files = bool(model or values or repair or key)
    if not path.exists() and (for_files or path.suffix in (*WEIGHT_SUFFIXES, ".json") or not is_hub_id(source)):
        raise UserError(f"{source} is not there; give a release's weights, a run folder, a model folder or a hub id")
    if for_files and not is_file:
        raise UserError(
            f"{source} is a model with its own config; --model, --repair, --key and KEY=VALUE are for files"
        )
    config = model_from({"name": model, **values}) if is_file else None
    if to == "published" and fuse:
        raise UserError("a fused model has no published form; drop --fuse or --to published")
    if target.exists() and to == "published":
        raise UserError(f"{target} exists; choose another name")

    from udit import store
    from udit.convert.diffusers import find
    from udit.convert.system import from_diffusers, from_published, to_published

    said = ""
    if config is not None:
        system, said = from_published(path, config, repair=repair, vae=vae, key=key)
    elif (folder := find(source, with_vae=vae is None)) is not None:
        system, said = from_diffusers(folder, vae=vae)
    elif vae is not None:
        raise UserError(f"{source} has a codec of its own; --vae is for releases on latents")
    else:
        system = store.load(source, weights=weights)
    if to == "published":
        to_published(system, target)
    else:
        system = system.fused() if fuse else system
        store.save(system, target)
    say(f"wrote {target}: {system.num_parameters:,} parameters, {'fused' if fuse else 'unfused'}")
    if said:
        say(said)
    return 0
