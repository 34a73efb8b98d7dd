"""The Run: everything one training depends on, resolved from a recipe and overrides without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny, field_validator

from udit.data.cache_config import follow_cache
from udit.data.codec_config import CodecConfig, IdentityCodec, codec_from
from udit.data.config import DataConfig, DataInfo, FolderData
from udit.diffusion.config import DDPMConfig, DiffusionConfig, SamplingConfig, process_from
from udit.errors import UserError, nearest
from udit.models.catalog import families, find
from udit.models.config import ModelConfig
from udit.run.start import follow_start, read_origin
from udit.spec.base import Seed, Spec, differing_keys, parse

if TYPE_CHECKING:
    from udit.data.sources import Source


class PosthocConfig(Spec):
    """Power-function averages kept beside the usual one, from which any length is rebuilt (Karras et al. 2024)."""

    every: PositiveInt = 5_000
    """Steps between snapshots; one more is of the last step."""
    sigma_rels: Annotated[tuple[Annotated[float, Field(gt=0, lt=0.2886)], ...], Field(min_length=1)] = (0.05, 0.10)
    """Lengths that are kept, as deviations of their profiles over the steps."""
    precision: Literal["float16", "bfloat16", "float32"] = "float16"
    """Of snapshots; the averages themselves are float32."""


class TrainingConfig(Spec):
    """The optimiser, its schedule, and what is written when."""

    steps: PositiveInt = 400_000
    """Optimiser steps in all."""
    batch_size: PositiveInt = 256
    """Images per step over all ranks and accumulation; ranks times accumulation must divide it."""
    accumulation: PositiveInt = 1
    """Backward passes per step on every rank."""
    lr: PositiveFloat = 1e-4
    lr_warmup: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly; then it is constant."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: PositiveFloat | None = None
    """Largest gradient norm; None leaves gradients as they are."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Of the weights' moving average; while step < about 9 / (1 - decay) it is (1 + step) / (10 + step)."""
    label_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of labels replaced by the null label, for guidance; 0 by default where the model has none."""
    independent_level_dropout: bool = False
    """Drops labels independently at every level of the U, as the U-DiT release does; off is one decision a sample."""
    posthoc_ema: PosthocConfig | None = None
    """Keeps averages for `udit ema`; None keeps none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is autocast; weights, optimiser and EMA stay float32."""
    compile: bool = False
    """torch.compile; the first steps are slow."""
    checkpoint_activations: bool | Literal["selective"] = False
    """Makes activations again in backward: true those of whole blocks, the least memory for about a third more time;
    selective those that are cheap: a U-DiT keeps a third less, for a few hundredths more time."""
    deterministic: bool = False
    """Asks torch for deterministic CUDA kernels: slower, and what exact resuming on a GPU needs. CPUs always are."""
    device: str = "auto"
    """auto takes CUDA, then MPS, then the CPU; or cpu, cuda, cuda:1, mps."""
    workers: NonNegativeInt = 0
    """Processes that decode pictures, per rank; 0 decodes in the trainer."""
    log_every: PositiveInt = 1
    """Steps between lines of metrics.jsonl."""
    save_every: PositiveInt = 5_000
    keep: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints kept."""
    sample_every: PositiveInt = 5_000
    """Steps between sample grids and validation losses."""
    check_every: PositiveInt = 500
    """Steps between comparisons of all ranks' weights."""
    timeout: PositiveInt = 600
    """Seconds after which a rank that does not answer ends the run."""


class EvaluationConfig(Spec):
    """How samples are scored."""

    num_samples: Annotated[int, Field(ge=20)] = 1000
    batch_size: PositiveInt = 250
    first_seed: Seed = 0
    """Image i has seed first_seed + i."""
    labels: Literal["balanced", "random"] = "balanced"
    """balanced: all classes in turn; random: uniform ones, each keyed by its picture's seed."""
    bootstrap: Annotated[int, Field(ge=10)] = 200
    """Resamplings behind the confidence interval."""
    judge_steps: PositiveInt = 600
    """Training steps of the classifier that judges."""


class Run(Spec):
    """A training and what follows from it, complete."""

    name: str
    out: Path
    """The run folder."""
    seed: Seed = 0
    data: DataConfig
    codec: CodecConfig = IdentityCodec()
    """Between pictures and what the network sees."""
    latents: Path | None = None
    """A latent cache that ``udit encode`` wrote of this data and codec: training reads it and decodes no picture."""
    init_from: str | None = None
    """A model folder, a run folder or a hub id whose weights begin this run, with new rows for new classes."""
    model: SerializeAsAny[ModelConfig]
    diffusion: DiffusionConfig = DDPMConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    id2label: tuple[str, ...] = ()
    """Class names in label order, from the data; empty for an unconditional model."""

    @field_validator("model", mode="before")
    @classmethod
    def _family(cls, value: Any) -> Any:
        return model_from(value) if isinstance(value, dict) else value

    @field_validator("codec", mode="before")
    @classmethod
    def _codec(cls, value: Any) -> Any:
        return codec_from(value)

    def source(self) -> Source:
        """The run's images, or the latent cache in their place.

        Raises:
            UserError: there are none, or they cannot be read.
        """
        if self.latents is None:
            return self.data.build()
        from udit.data.latents import LatentCache

        return LatentCache(self.latents)

    def plain(self) -> dict[str, Any]:
        """As nested dicts, lists and scalars, for YAML and JSON."""
        return self.model_dump(mode="json")


MAY_CHANGE = frozenset(
    {"name", "out", "sampling", "evaluation", "latents", "data.root", "data.verify"}
    | {f"training.{key}" for key in ("steps", "log_every", "save_every", "sample_every", "check_every")}
    | {f"training.{key}" for key in ("keep", "workers", "device", "timeout")}
)
"""Keys that resuming may find changed; any other change is refused. Data that moved is known by its fingerprint."""


def model_from(values: dict[str, Any]) -> ModelConfig:
    """A model config from plain values with a ``name`` of the catalogue or a ``family``.

    Raises:
        UserError: unknown name, family or key, or a value out of range.
    """
    values = dict(values)
    if "name" in values:
        name = str(values.pop("name"))
        base = find(name).config
        if values.get("family", base.family) != base.family:
            raise UserError(f"model.family is {values['family']!r} and {name} is a {base.family}; leave family out")
    else:
        family, known = values.pop("family", None), families()
        if not isinstance(family, str) or family not in known:
            raise UserError(f"model.family is {family!r}, no family known{nearest(str(family), known)}")
        base = known[family].model_validate({})
    return parse(type(base), _merge(base.model_dump(), values), where="model")


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``values`` laid over it; a section of another kind replaces the whole section."""
    merged = dict(base)
    for key, value in values.items():
        below = base.get(key)
        if (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("kind", below.get("kind")) == below.get("kind")
        ):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def resolve(values: dict[str, Any], *, absent: bool = False) -> Run:
    """A complete Run from a recipe's plain values; the model's boundary follows the data where it is not given.

    Args:
        values: of the recipe.
        absent: a folder of pictures may be missing; the model's own number of classes stands then, and no names.

    Raises:
        UserError: unknown keys, values out of range, or parts that do not fit each other.
    """
    values = dict(values)
    for key in values:
        if key not in Run.model_fields and key != "num_classes":
            raise UserError(f"unknown key {key!r}{nearest(key, Run.model_fields)}")
    _sections(values)
    values = _with_start(values)
    if "data" not in values and values.get("latents") is None:
        raise UserError("data is missing; name a source, e.g. data.kind=digits or data.kind=folder data.root=PATH")
    values, pixels = _with_latents(values)
    if absent and isinstance(values["data"], dict) and values["data"].get("kind") == "folder":
        values["data"] = {"root": "PATH", **values["data"]}
    data = _tagged(DataConfig, values["data"], "data")
    diffusion = process_from(values.get("diffusion", DDPMConfig()))
    codec = codec_from(values.get("codec", {})).resolved()
    info = codec.seen(pixels or _info(data, absent))
    model_values = values.get("model")
    if model_values is None:
        raise UserError("model is missing; name one, e.g. model=U-DiT-S (`udit models` lists all)")
    if not isinstance(model_values, str | dict | Spec):
        raise UserError(
            f"model is {model_values!r}; name one, e.g. model=U-DiT-S, or give its keys, e.g. model.width=32"
        )
    model_values = {"name": model_values} if isinstance(model_values, str) else dict(model_values)
    model_values.setdefault("in_channels", info.channels)
    if info.id2label:
        model_values.setdefault("num_classes", len(info.id2label))
    model_values.setdefault("input_size", [info.height, info.width])
    if not diffusion.learns_variance:
        model_values.setdefault("learn_sigma", False)
    model = model_from(model_values)
    values |= {"data": data, "codec": codec, "diffusion": diffusion, "model": model}
    labels = info.id2label if model.num_classes else ()
    if values.get("id2label", labels) not in (labels, list(labels)):
        raise UserError(f"id2label is {values['id2label']!r} and the data says {list(labels)}; leave it out")
    values["id2label"] = labels
    values.setdefault("name", "run")
    values.setdefault("out", f"runs/{values['name']}")
    if isinstance(values.get("sampling", {}), dict):
        values["sampling"] = {"sampler": diffusion.samplers()[0]} | dict(values.get("sampling", {}))
    if model.null_label is None and isinstance(values.get("training", {}), dict):
        values["training"] = {"label_dropout": 0.0} | dict(values.get("training", {}))
    run = parse(Run, values)
    _check(run, info)
    return run


def _info(data: Any, absent: bool) -> DataInfo:
    """What the data says of itself; of a folder that may be absent, what the config says of it."""
    try:
        info: DataInfo = data.info()
    except UserError:
        if not absent or not isinstance(data, FolderData):
            raise
        return DataInfo(channels=data.channels, height=data.size, width=data.size, id2label=())
    return info


def _with_start(values: dict[str, Any]) -> dict[str, Any]:
    """``num_classes`` as the model's, and the sections that initial weights decide where the run names some."""
    source, count = values.get("init_from"), values.pop("num_classes", None)
    model = values.get("model")
    if count is not None or source is not None:
        model = {"name": model} if isinstance(model, str) else model
        if isinstance(model, dict) and "name" in model and source is not None:
            model = find(str(model["name"])).config.model_dump(mode="json") | model
            model = {key: value for key, value in model.items() if key != "name"}
    if count is not None:
        values["model"] = model = {**(model or {}), "num_classes": count}
    if source is None:
        return values
    if not isinstance(source, str):
        raise UserError(f"init_from is {source!r}; it names a model folder, a run folder or a hub id")
    out = values.get("out", f"runs/{values.get('name', 'run')}")
    return follow_start(values | {"model": model}, read_origin(source, Path(str(out))))


def _with_latents(values: dict[str, Any]) -> tuple[dict[str, Any], DataInfo | None]:
    """Data and codec as a latent cache knows them, where the run names one."""
    root = values.get("latents")
    if root is None:
        return values, None
    if not isinstance(root, str | Path):
        raise UserError(f"latents is {root!r}; it names the folder that `udit encode` wrote")
    sections = {
        key: values[key].model_dump() if isinstance(values.get(key), Spec) else values.get(key)
        for key in ("data", "codec")
    }
    if isinstance(sections["codec"], str):
        sections["codec"] = {"kind": sections["codec"]}
    merged, pixels = follow_cache(sections, Path(root))
    return values | merged, pixels


def _sections(values: dict[str, Any]) -> None:
    for key in ("data", "diffusion", "training", "sampling", "evaluation"):
        if key in values and not isinstance(values[key], dict | Spec):
            raise UserError(f"{key} is {values[key]!r}; it is a section with keys of its own, e.g. {key}.KEY=VALUE")


def _tagged(union: Any, values: Any, where: str) -> Any:
    """One member of a tagged union, with the error of that member alone."""
    if isinstance(values, Spec):
        return values
    kinds = {spec.model_fields["kind"].default: spec for spec in union.__origin__.__args__}
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{where}.kind is {kind!r}{nearest(str(kind), kinds)}")
    return parse(kinds[kind], values, where=where)


def _check(run: Run, info: DataInfo) -> None:
    model, size = run.model, run.model.size
    if size != (info.height, info.width):
        raise UserError(
            f"model.input_size is {size[0]}x{size[1]} and the data is {info.height}x{info.width}; leave input_size "
            "out, or change data.size"
        )
    if model.in_channels != info.channels:
        raise UserError(
            f"model.in_channels is {model.in_channels} and the data has {info.channels}; leave in_channels out"
        )
    if model.num_classes and model.num_classes < len(info.id2label):
        raise UserError(
            f"model.num_classes is {model.num_classes} and the data has {len(info.id2label)} classes; leave "
            "num_classes out, or set it to 0 for an unconditional model"
        )
    if model.null_label is None and run.sampling.guidance != 1:
        raise UserError(
            f"sampling.guidance is {run.sampling.guidance:g} and the model has no null label to compare with; set "
            "sampling.guidance=1"
        )
    if model.null_label is None and model.num_classes and run.training.label_dropout:
        raise UserError(
            f"training.label_dropout is {run.training.label_dropout:g} and the model has no null label to put in a "
            "label's place; set training.label_dropout=0"
        )
    if (run.sampling.guidance_channels or 0) > model.in_channels:
        raise UserError(
            f"sampling.guidance_channels is {run.sampling.guidance_channels} and the model predicts "
            f"{model.in_channels}; leave it out to guide all"
        )
    if model.learn_sigma and not run.diffusion.learns_variance:
        raise UserError(f"model.learn_sigma is true; {run.diffusion.title} learns no variance, set it to false")
    if run.sampling.cache > 1 and model.reversed_flow:
        raise UserError(
            f"sampling.cache is {run.sampling.cache} and {model.family} counts time from noise to data (reversed "
            "flow), so that its last steps cannot be told by a time near 0; set it to 1, or name evaluations in "
            "sampling.refresh"
        )
    if model.condition_shape:
        raise UserError("model.context takes vectors and the data gives labels; leave context out")
    if model.reversed_flow and not run.diffusion.reversible:
        raise UserError(
            f"diffusion.kind is {run.diffusion.kind} and the model predicts a reversed flow; set diffusion.kind=flow"
        )
    if run.sampling.sampler not in run.diffusion.samplers():
        raise UserError(
            f"sampling.sampler is {run.sampling.sampler!r}; a {run.diffusion.kind} model takes "
            f"{', '.join(run.diffusion.samplers())}"
        )
    if run.sampling.steps > (run.diffusion.max_steps or run.sampling.steps):
        raise UserError(
            f"sampling.steps is {run.sampling.steps}; the schedule has {run.diffusion.max_steps}, ask for at most "
            "so many"
        )
    if run.training.independent_level_dropout and not hasattr(model, "levels"):
        raise UserError(
            "training.independent_level_dropout needs a U-DiT, which embeds the label at every level; set it to false"
        )
    if run.training.checkpoint_activations == "selective" and run.training.compile:
        raise UserError(
            "training.checkpoint_activations is selective and training.compile true; compiled blocks keep all: set "
            "one to false"
        )
    if run.training.batch_size % run.training.accumulation:
        raise UserError(
            f"training.batch_size {run.training.batch_size} does not split into {run.training.accumulation} "
            "accumulated parts; choose a multiple"
        )


def changed_keys(old: Any, new: Any) -> list[str]:
    """Dotted keys, outside ``MAY_CHANGE``, at which two plain runs differ."""
    return differing_keys(old, new, MAY_CHANGE)
