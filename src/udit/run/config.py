"""The Run: everything one training depends on, resolved from a recipe and overrides without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny, field_validator

from udit.data.codec_config import CodecConfig, IdentityCodec, codec_from
from udit.data.config import DataConfig
from udit.diffusion.config import DDPMConfig, DiffusionConfig, SamplingConfig
from udit.errors import UserError, nearest
from udit.models.catalog import families, find
from udit.models.config import ModelConfig
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


def changed_keys(old: Any, new: Any) -> list[str]:
    """Dotted keys, outside ``MAY_CHANGE``, at which two plain runs differ."""
    return differing_keys(old, new, MAY_CHANGE)
