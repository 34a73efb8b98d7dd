"""Model folders (``config.json``, ``model.safetensors``, ``README.md``) and the hub: save, load, and read a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from udit import hub
from udit.adapters import with_adapter
from udit.assemble import System
from udit.checkpoint import MANIFEST, Checkpoint, CheckpointStore, DamagedError, verify, write_tensors
from udit.data.codec_config import VAECodec
from udit.data.vae import VAE_CONFIG, VAE_WEIGHTS
from udit.demos.find import folder_of, is_demo, name_of
from udit.errors import RunError, UserError, by_product, require_type
from udit.files import meant, whole_folder
from udit.models.build import rebuild
from udit.run.config import Run
from udit.run.recipes import load_run, read_yaml
from udit.run.system import EXPORTED, SystemConfig
from udit.spec.base import parse

Weights = Literal["ema", "raw"]
FILES: dict[Weights, str] = {"ema": "model.safetensors", "raw": "model.raw.safetensors"}
"""Of a model folder."""
HALF = (torch.float16, torch.bfloat16)


def save(
    system: System,
    path: str | Path,
    *,
    raw: nn.Module | None = None,
    precision: Literal["float32", "float16"] = "float32",
) -> Path:
    """Writes a model folder, completely or not at all; an older one at the same place is replaced.

    Args:
        system: what to save; its weights become ``model.safetensors``.
        path: the folder.
        raw: the same network with the weights before averaging, written as ``model.raw.safetensors``.
        precision: float16 halves the files; ``load`` makes float32 of them.

    Raises:
        RunError: it could not be written.
    """
    folder = Path(path)
    if folder.exists() and not (folder / "config.json").is_file() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no model folder; choose another place")
    try:
        with whole_folder(folder, replace=True) as temporary:
            for name, network in ((FILES["ema"], system.backbone), (FILES["raw"], raw)):
                if network is not None:
                    write_tensors(_stored(network.state_dict(), precision), temporary / name)
            (temporary / "config.json").write_text(
                json.dumps(system.config.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8"
            )
            with by_product(f"the model card of {folder}"):
                (temporary / "README.md").write_text(model_card(system.config), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write model folder {folder}: {error}") from None
    return folder


def _stored(state: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    if precision == "float32":
        return state
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def load(
    path: str | Path,
    *,
    weights: Weights = "ema",
    device: torch.device | str = "cpu",
    revision: str | None = None,
    adapter: str | Path | None = None,
    merge: bool = True,
) -> System:
    """A system from a model folder, a run folder, one of a run's checkpoints, a hub id, or the model of a demo.

    Weights that are stored in half precision become float32.

    Args:
        path: a model folder, a run folder, ``RUN/checkpoints/step-00001000``, ``demo:digits`` or another demo, or
            ``owner/name`` or ``owner/name@revision`` on the hub (HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are honoured).
        weights: ``ema`` (the default weights) or ``raw``.
        device: where the network goes.
        revision: branch, tag or commit on the hub.
        adapter: a folder of peft's with a low-rank adapter of this model, e.g. ``RUN/adapter``.
        merge: put the adapter into the weights; else layers of peft's compute both.

    Raises:
        UserError: there is no model there, or it is damaged, or an adapter does not fit it.
    """
    system = _load(path, weights, revision)
    if adapter is not None:
        folders = [folder for folder in (Path(path), *Path(path).parents[1:2]) if (folder / "run.yaml").is_file()]
        if any(Path(adapter).resolve().is_relative_to(folder.resolve()) for folder in folders):
            raise UserError(
                f"{adapter} is the adapter of {path}, whose weights have it already; leave it out, or give the model "
                "that was adapted (init_from of its run.yaml)"
            )
        system = replace(system, backbone=with_adapter(system.backbone, adapter, merge=merge))
    return system.to(device)


def _load(path: str | Path, weights: Weights, revision: str | None) -> System:
    if is_demo(path):
        if weights != "ema":
            raise UserError(f"{path} has averaged weights alone; leave out --weights {weights}")
        path = folder_of(path)
    folder = Path(path)
    if (folder / "run.yaml").is_file():
        return _load_run(folder, weights)
    if (folder / MANIFEST).is_file() and (folder.parent.parent / "run.yaml").is_file():
        return _load_run(folder.parent.parent, weights, folder)
    if folder.is_file():
        raise UserError(_file_advice(folder))
    if folder.exists():
        _check_holds_weights(folder, str(path))
    else:
        folder = download(str(path), (weights,), revision)
    if hub.is_pipeline(folder):
        return _load_pipeline(folder, weights)
    file = folder / FILES[weights]
    config = _with_vae_beside(read_config(folder / "config.json"), folder)
    return System(config, network(config, read_tensors(file), file))


def _load_pipeline(folder: Path, weights: Weights) -> System:
    """The system of a folder that ``udit export diffusers`` wrote, fused as its weights are."""
    if weights != "ema":
        raise UserError(f"{folder} holds the weights it was exported with; leave out --weights {weights}")
    file = folder / hub.PIPELINE_WEIGHTS
    config = _with_vae_beside(read_config(folder / "config.json"), folder)
    state = {name.removeprefix(hub.PREFIX): tensor for name, tensor in read_tensors(file).items()}
    return System(config, network(config, state, file))


def _with_vae_beside(config: SystemConfig, folder: Path) -> SystemConfig:
    """The config with the VAE in the folder's ``vae/`` where that holds one, in place of the codec's own source."""
    beside = folder / "vae"
    if not isinstance(config.codec, VAECodec) or not (beside / VAE_CONFIG).is_file():
        return config
    return config.model_copy(update={"codec": config.codec.replace(source=str(beside.resolve()), revision=None)})


def read_config(path: Path) -> SystemConfig:
    """The ``config.json`` of a model folder.

    Raises:
        UserError: the file is missing or malformed.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object")
    return parse(SystemConfig, values, where=path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; numbers of half precision become float32.

    Raises:
        UserError: the file is missing or malformed.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; the folder is incomplete")
    try:
        stored = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no readable safetensors file: {error}") from None
    return {name: tensor.float() if tensor.dtype in HALF else tensor for name, tensor in stored.items()}


def network(config: SystemConfig, state: dict[str, Tensor], where: Path) -> nn.Module:
    """The network of a config around tensors read from a file.

    Raises:
        UserError: the tensors do not fit the config.
    """
    try:
        return rebuild(config.model, state).eval()
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:240]
        raise UserError(f"{where} holds the weights of another model: {detail}") from None


def _load_run(folder: Path, weights: Weights, chosen: Path | None = None) -> System:
    """The system of a run's newest checkpoint, or of a chosen one's folder."""
    run = read_run_config(folder)
    try:
        checkpoint = Checkpoint(chosen, verify(chosen)) if chosen else _newest(folder, run)
    except DamagedError as error:
        raise UserError(f"checkpoint {chosen} is damaged ({error}); take another one, or the run's folder") from None
    config = _with_vae_beside(SystemConfig.of(run, max(checkpoint.step, 1)), folder)
    name = "ema" if weights == "ema" else "model"
    return System(config, network(config, checkpoint.tensors(name), checkpoint.path))


def _newest(folder: Path, run: Run) -> Checkpoint:
    checkpoint = CheckpointStore(folder / "checkpoints").newest(aside=False)
    if checkpoint is None:
        raise UserError(no_checkpoint(folder, run))
    return checkpoint


def no_checkpoint(folder: Path, run: Run) -> str:
    """The error on a run that has only begun, which may be training now: when its first checkpoint is saved."""
    first = min(run.training.save_every, run.training.steps)
    return (
        f"run folder {folder} has no complete checkpoint yet; `udit train` saves the first at step {first:,}, or when "
        "Ctrl-C stops it"
    )


def checkpoint_of(run: str | Path, step: int) -> Path:
    """The folder of one of a run's checkpoints, for ``load``.

    Raises:
        UserError: no run folder, or it has no checkpoint of that step; names those that it has.
    """
    read_run_config(run)
    found = CheckpointStore(Path(run) / "checkpoints")
    steps = sorted(found.steps())
    if step not in steps:
        known = f"it has {', '.join(map(str, steps))}" if steps else "it has none"
        raise UserError(f"{run} has no checkpoint of step {step}; {known} (training.keep keeps more)")
    return found.path(step)


def read_run_config(folder: Path | str) -> Run:
    """The Run of a run folder; of a demo, that of its recipe, in a folder of its own.

    Raises:
        UserError: the folder has none.
    """
    require_type("run", folder, (str, Path), "give its folder, e.g. 'runs/digits' or run.out")
    if is_demo(folder):
        name = name_of(folder)
        return load_run(name, [f"out=runs/demo-{name}"])
    path = Path(folder) / "run.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no run.yaml{meant(folder) or '; `udit train` makes one'}")
    return parse(Run, read_yaml(path), where=path)


def download(name: str, weights: Sequence[Weights] = ("ema",), revision: str | None = None) -> Path:
    """Downloads a model folder from the hub, with the VAE beside it; what is cached stays.

    Args:
        name: ``owner/name`` or ``owner/name@revision``.
        weights: which files of weights.
        revision: branch, tag or commit.

    Returns:
        The folder in the hub's cache; its name is the commit.

    Raises:
        UserError: the hub has no such model, or does not give it.
    """
    near = meant(name)
    if not hub.is_hub_id(name):
        raise UserError(f"no model at {name!r}{near or '; give a model folder, a run folder or a hub id (owner/name)'}")
    what = f"no folder {name!r}" + (f" ({near.removeprefix('; ')})" if near else "")
    folder = hub.describe(name, what=what, revision=revision)
    _check_holds_weights(folder, name, remote=True)
    vae = [f"vae/{VAE_WEIGHTS}"] if (folder / hub.VAE).is_file() else []
    files = [hub.PIPELINE_WEIGHTS] if hub.is_pipeline(folder) else [FILES[kind] for kind in weights]
    hub.complete(name, folder, ["README.md", *files, *vae], what=what)
    return folder


def _check_holds_weights(folder: Path, name: str, *, remote: bool = False) -> None:
    """Refuses what is no model folder of udit's, and says what it is.

    Args:
        folder: the folder, or what ``hub.describe`` downloaded.
        name: what the user calls it.
        remote: it is on the hub.
    """
    if hub.is_pipeline(folder):
        return
    if (found := hub.diffusers_class(folder)) is not None:
        raise UserError(
            f"{name} holds diffusers' {found}; convert it once: `udit convert {shlex.quote(name)} FOLDER`, then give "
            "FOLDER"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"{name} holds neither config.json nor run.yaml; give a model folder, a run folder or a hub id")
    if (folder / EXPORTED).is_file():
        download = f"download it (`hf download {name} --local-dir FOLDER`) and " if remote else ""
        raise UserError(f"{name} holds an exported graph and no weights; {download}`udit sample` draws from it")


def _file_advice(path: Path) -> str:
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        command = f"udit convert {shlex.quote(str(path))} FOLDER --model NAME"
        return f"{path} is a pickle and is not opened here; convert it once: `{command}`"
    return f"{path} is a file; give the model folder that holds it"


def model_card(config: SystemConfig) -> str:
    """``README.md`` of a model folder, with the hub's front matter."""
    return (
        f"---\nlibrary_name: udit\npipeline_tag: {pipeline_tag(config)}\ntags: [diffusion, u-dit]\n---\n\n"
        f"# {card_title(config)}\n\n"
        f"Trained with `{config.diffusion.kind}`"
        + (f" for {config.steps} steps" if config.steps else "")
        + ". `model.safetensors` holds the averaged (EMA) weights.\n\n"
        + card_usage(config, "THIS_FOLDER")
    )


def pipeline_tag(config: SystemConfig) -> str:
    """The hub's word for what a model does."""
    return "text-to-image" if config.text else "unconditional-image-generation"


def card_title(config: SystemConfig) -> str:
    """Family, shape and classes of a model, in words."""
    model = config.model
    family = getattr(model, "family", type(model).__name__)
    size = "x".join(map(str, model.input_shape()))
    takes = "texts" if config.text else f"{model.num_classes} classes" if model.num_classes else "unconditional"
    return f"{family} on {size}, {takes}"


def card_usage(config: SystemConfig, name: str) -> str:
    """How to load and sample a model in Python, as Markdown; ``name`` is its folder or hub id."""
    labels = ', prompts="a text"' if config.text else ", labels=[0] * 8" if config.model.num_classes else ""
    return (
        f'```python\nimport udit\n\nsystem = udit.load("{name}")\n'
        f"images = next(system.generate(seeds=range(8){labels}))  # uint8 [8, C, H, W]\n```\n"
    )
