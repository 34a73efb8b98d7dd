"""``export`` of kind diffusers: a folder that ``DiffusionPipeline.from_pretrained`` loads where this library is not."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from udit import __version__
from udit.assemble import System
from udit.checkpoint import write_tensors
from udit.data.codec import LatentVAE
from udit.data.codec_config import SpaceToDepthCodec, VAECodec
from udit.data.vae import VAE_FILES, folder_of
from udit.errors import RunError, UserError
from udit.exporting.bundle import Bundle
from udit.exporting.manifest import TOLERANCE
from udit.exporting.program import inputs
from udit.exporting.single import Writer
from udit.files import whole_folder
from udit.hub import NETWORK_CLASS, PIPELINE_CLASS, PIPELINE_WEIGHTS, PREFIX, is_pipeline
from udit.run.system import SystemConfig
from udit.store import card_title

ROOT = "udit.exporting.pipeline"
WANTED = ("UditNetwork", "UditPipeline", "own_module")
WHAT_RUNS = (
    "diffusers has no such network. **`trust_remote_code=True` executes `pipeline.py` of this folder** with your "
    "rights: read it first. It is all of the code and needs torch, numpy and diffusers. It opens no connection and "
    "reads no file but itself; diffusers loads the weights, which are safetensors, and copies `pipeline.py` into "
    "`HF_MODULES_CACHE`. It also adds the network's class, `UditNetwork`, to the module `diffusers`, where "
    "`from_pretrained` looks for it."
)
"""What a user of the folder lets run, for its card."""


@dataclass(frozen=True)
class PipelineFolder:
    """A folder of diffusers that was written."""

    path: Path
    error: float
    """max|difference| / max|output| of the network of its pipeline.py and the one that was exported."""
    lines: int
    """Of its pipeline.py."""


def export_pipeline(system: System, folder: Path) -> PipelineFolder:
    """Writes a folder for diffusers, completely or not at all.

    Args:
        system: on the CPU, in float32.
        folder: where to; an older export there is replaced, but only by one whose network agrees.

    Returns:
        The folder, with the measured error.

    Raises:
        UserError: the model takes vectors, its network in pipeline.py does not agree with it, or the folder holds
            something else.
        RunError: the folder cannot be written.
    """
    system.config.model.refuse_clips("a pipeline of diffusers")
    if system.config.model.condition_shape:
        takes = "texts" if system.config.text is not None else f"vectors {list(system.config.model.condition_shape)}"
        raise UserError(
            f"the model takes {takes} for a condition and pipelines for diffusers take labels; sample from it with udit"
        )
    if system.config.diffusion.sampling_steps is not None:
        raise UserError(
            f"the model was trained with {system.config.diffusion.title}, of which diffusers has no scheduler; export "
            "a graph, or sample from it with udit"
        )
    if system.weak is not None:
        raise UserError(
            "the model is guided by a weaker one, which a pipeline for diffusers has no place for; drop weak"
        )
    if folder.exists() and not is_pipeline(folder) and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no exported pipeline; choose another place with --out")
    fused = system.fused()
    text = pipeline_text(fused)
    try:
        with whole_folder(folder, replace=True) as temporary:
            (temporary / "pipeline.py").write_text(text, encoding="utf-8")
            if (error := _difference(fused.backbone, temporary / "pipeline.py")) > TOLERANCE:
                raise UserError(
                    f"the network in pipeline.py differs from the model's by {error:.1e} of its output, more than "
                    f"{TOLERANCE:.0e}; {folder} is as it was"
                )
            _write_parts(fused, temporary)
            (temporary / "README.md").write_text(card(fused), encoding="utf-8")
    except (OSError, SafetensorError) as failure:
        raise RunError(f"cannot write {folder}: {failure}") from None
    return PipelineFolder(folder, error, text.count("\n"))


def pipeline_text(system: System) -> str:
    """``pipeline.py`` of a fused system: the source of its network and samplers, and the pipeline around them."""
    config, codec = system.config, system.config.codec
    vae = system.codec.facts if isinstance(system.codec, LatentVAE) else None
    constants = {
        "MODEL": config.model,
        "PROCESS": config.diffusion,
        "SAMPLING": config.sampling,
        "SQUARE": codec.factor if isinstance(codec, SpaceToDepthCodec) else 1,
        "LATENT_SHIFT": codec.shift if isinstance(codec, VAECodec) else 0.0,
        "LATENT_SCALE": codec.scale if isinstance(codec, VAECodec) else 1.0,
        "LATENT_SQUARE": vae.patch if vae else 1,
    }
    bundle = Bundle(ROOT, WANTED, constants, config.diffusion.kind)
    return Writer(bundle).text(
        f"{config.model.family} as a pipeline of diffusers, in one file that needs torch, numpy and diffusers.\n\n"
        f"udit {__version__} wrote it from its own sources and put in what this model needs: the fused network, the\n"
        "noising process with its samplers, guidance, and last the pipeline. It opens no connection, reads no file\n"
        "but itself (``own_module``), and writes none but by ``save_pretrained``.\n"
    )


def _difference(network: nn.Module, file: Path) -> float:
    """max|difference| / max|output| of a network and the one that a pipeline.py builds with the same weights."""
    spec = importlib.util.spec_from_file_location("udit_pipeline_check", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        with torch.device("meta"):
            built: nn.Module = module.MODEL.build()
    finally:
        del sys.modules[spec.name]
    built.load_state_dict(network.state_dict(), assign=True)
    config: Any = network.config
    given = inputs(config, 2, config.size)
    with torch.no_grad():
        wanted, found = network(*given), built.eval()(*given)
    largest = float(wanted.abs().max())
    return float((found - wanted).abs().max()) / (largest or 1.0)


def _write_parts(system: System, folder: Path) -> None:
    """All but the code and the card."""
    import diffusers

    config, codec = system.config, system.config.codec
    network = folder / Path(PIPELINE_WEIGHTS).parent
    network.mkdir()
    state = {f"{PREFIX}{name}": tensor for name, tensor in system.backbone.state_dict().items()}
    write_tensors(state, folder / PIPELINE_WEIGHTS)
    _json(network / "config.json", {"_class_name": NETWORK_CLASS, "_diffusers_version": diffusers.__version__})
    scheduler = scheduler_of(config)
    scheduler.save_pretrained(folder / "scheduler")
    parts: dict[str, Any] = {
        "transformer": ["diffusers", NETWORK_CLASS],
        "scheduler": ["diffusers", type(scheduler).__name__],
        "vae": [None, None],
    }
    if isinstance(codec, VAECodec):
        (folder / "vae").mkdir()
        for name in VAE_FILES:
            shutil.copyfile(folder_of(codec.source, codec.revision) / name, folder / "vae" / name)
        parts["vae"] = ["diffusers", codec.network]
        config = config.model_copy(update={"codec": codec.replace(source="vae", revision=None)})
    names = {str(i): name for i, name in enumerate(config.id2label)}
    _json(
        folder / "model_index.json",
        {
            "_class_name": ["pipeline", PIPELINE_CLASS],
            "_diffusers_version": diffusers.__version__,
            **parts,
            "id2label": names,
        },
    )
    _json(folder / "config.json", config.model_dump(mode="json"))


def _json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def scheduler_of(config: SystemConfig) -> Any:
    """The noising process as a scheduler of diffusers, which other schedulers there are made of."""
    import diffusers

    keys, schedule = config.diffusion.model_dump(), config.diffusion.build()
    if (betas := schedule.discrete_betas()) is not None:
        values: dict[str, Any] = {"trained_betas": betas.tolist()}
        if keys["betas"] == "linear" and not keys["zero_terminal_snr"]:
            values = {"beta_schedule": "linear", "beta_start": betas[0].item(), "beta_end": betas[-1].item()}
        return diffusers.DDIMScheduler(
            num_train_timesteps=len(betas),
            clip_sample=config.sampling.clip,
            set_alpha_to_one=True,
            prediction_type={"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[keys["predict"]],
            **values,
        )
    if schedule.time == "sigma":
        return diffusers.EDMEulerScheduler(
            **{name: keys[name] for name in ("sigma_min", "sigma_max", "sigma_data", "rho")}
        )
    return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=keys["shift"])


def card(system: System) -> str:
    """``README.md``: how to load the folder, and what that runs."""
    return (
        "---\nlibrary_name: diffusers\npipeline_tag: unconditional-image-generation\ntags: [diffusion, u-dit]\n---\n\n"
        f"# {card_title(system.config)}\n\n"
        f"{usage(system.config, 'THIS_FOLDER')}\n"
        f"## What runs\n\n{WHAT_RUNS}\n\n"
        f"Written by udit {__version__}, whose weights had the fingerprint {system.fingerprint}; the weights here are "
        f"fused. `udit.load` reads the folder, too.\n"
    )


def usage(config: SystemConfig, name: str) -> str:
    """How to load and call the pipeline, as Markdown; ``name`` is its folder or hub id."""
    sampling = config.sampling
    asked = "class_labels=[0, 1], seeds=[0, 1]" if config.model.num_classes > 1 else "seeds=[0, 1]"
    cached = (
        "\nThe model's own setting caches steps (`sampling.cache` or `refresh`); this pipeline runs all of them.\n"
        if sampling.cache > 1 or sampling.refresh
        else ""
    )
    vae = "the VAE in `vae/` decodes" if isinstance(config.codec, VAECodec) else "it decodes pixels itself"
    return (
        "```python\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)\n'
        f"images = pipe({asked}).images\n```\n\n"
        f"The network generates with {sampling.sampler} in {sampling.steps} steps unless the call says otherwise "
        f"(`num_inference_steps`, `guidance_scale`, `guidance_interval`, `guidance_channels`, `sampler`); {vae}. One "
        "seed an image: the same seed and class give the same image in any batch, and as udit draws it.\n"
        f"{cached}"
    )
