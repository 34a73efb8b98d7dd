"""The Run: everything that a training depends on; free of torch. ``resolve.py`` makes a complete one of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny

from udit.data.codec_config import AnyCodec, IdentityCodec
from udit.data.config import DataConfig, DataInfo
from udit.diffusion.config import DDPMConfig, DiffusionConfig, SamplingConfig
from udit.errors import UserError, nearest
from udit.models.catalog import families, find
from udit.models.config import ModelConfig
from udit.optim.config import AdamWConfig, AnyOptimizer, AnySchedule, Betas, ConstantSchedule, GroupConfig
from udit.run.adapter_config import AdapterConfig
from udit.spec.base import Seed, Spec, differing_keys, parse
from udit.spec.words import Takes, shown
from udit.text.config import TextConfig

if TYPE_CHECKING:
    from udit.data.sources import Source


class PosthocConfig(Spec):
    """Power-function EMAs from which `udit ema` rebuilds an EMA of any length (Karras et al. 2024)."""

    every: PositiveInt = 5_000
    """Steps between snapshots; there is one more after the last step."""
    sigma_rels: Annotated[tuple[Annotated[float, Field(gt=0, lt=0.2886)], ...], Field(min_length=1)] = (0.05, 0.10)
    """Lengths of the EMAs: the relative standard deviations of their profiles over the steps."""
    precision: Literal["float16", "bfloat16", "float32"] = "float16"
    """Of snapshots; the EMAs themselves are float32."""


class AlignConfig(Spec):
    """Aligns a block's features with a vision model's, of the latent cache (REPA, Yu et al. 2025; U-REPA, Tian et al.).

    The loss gains ``weight`` * (L_align + ``manifold`` * L_manifold).
    """

    weight: PositiveFloat = 0.5
    manifold: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss of relative similarities within the alignment; U-REPA's is 3."""
    scope: Literal["image", "batch"] = "image"
    """Whether relative similarities are those of an image's tokens or of a micro-batch's, on each rank by itself."""
    after_block: PositiveInt | None = None
    """How many blocks come before, in the order in which they run; None is half of them, the middle of a U. A network
    with projectors of its own (REPA) says it itself."""
    hidden: PositiveInt | None = None
    """Channels between the projector's matrices; None is 2048, or what a network with projectors of its own has."""
    upsample: Literal[1, 2] | None = None
    """Factor by which projected features are enlarged; the vision model's are resampled to the result. None is 2 below
    the network's full resolution, as in U-REPA, and 1 elsewhere."""


class TrainingConfig(Spec):
    """The optimiser, its schedule, and what is written when."""

    steps: PositiveInt = 400_000
    """Optimiser steps in total."""
    batch_size: PositiveInt = 256
    """Images per step over all ranks and accumulation; ranks times accumulation must divide it."""
    accumulation: PositiveInt = 1
    """Backward passes per step on every rank."""
    optimizer: AnyOptimizer = AdamWConfig()
    """adamw, muon, adamw-8bit or schedule-free; `udit find-lr` looks for the rate that fits."""
    lr: PositiveFloat = 1e-4
    """Highest learning rate."""
    lr_warmup: NonNegativeInt = 0
    """Steps over which the learning rate rises linearly."""
    lr_schedule: AnySchedule = ConstantSchedule()
    """The learning rate after the warm-up: constant, linear, cosine, inverse-sqrt or wsd."""
    lr_layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate of a block against the block after it; for starting from trained weights."""
    groups: tuple[GroupConfig, ...] = ()
    """Parameters with a learning rate or weight decay of their own; of those that match one the last counts."""
    betas: Betas = (0.9, 0.999)
    """Of Adam's moments."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: PositiveFloat | None = None
    """Largest gradient norm; None does not clip."""
    on_spike: Literal["warn", "skip", "rollback"] = "warn"
    """What follows a loss or gradient norm far above those before it. warn: a line in the log. skip: also, the weights
    stay as they were. rollback: also, they become those of the last checkpoint; data and schedule go on."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Of the weights' moving average; it is (1 + step) / (10 + step) where that is less."""
    adapter: AdapterConfig | None = None
    """Trains a low-rank adapter (LoRA) of the weights of ``init_from`` alone; None trains all weights."""
    label_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of labels replaced by the null label, for guidance; 0 by default where the model has none. Of a model that
    takes texts, the share of captions replaced by the empty one."""
    independent_level_dropout: bool = False
    """Drops labels independently at every level of the U, as the U-DiT release does; off decides once per image."""
    posthoc_ema: PosthocConfig | None = None
    """Keeps EMAs for `udit ema`; None keeps none."""
    align: AlignConfig | None = None
    """Aligns a block's features with those that `udit encode --teacher NAME` has written; None does not."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """bfloat16 uses autocast; weights, optimiser and EMA stay float32. auto is bfloat16 on CUDA, else float32."""
    residual: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the sums to which blocks add, under precision=bfloat16; float32 rounds less and moves more memory."""
    compile: bool | Literal["auto"] = False
    """Uses torch.compile; the first steps are slow. auto is true on CUDA, else false."""
    cuda_graphs: bool = False
    """Runs a micro-batch's forward and backward pass as one CUDA graph, on one GPU: for batches so small that the GPU
    waits for the host. The first two are computed without it as well, and compared."""
    checkpoint_activations: bool | Literal["selective"] = False
    """Recomputes activations in backward. true: those of whole blocks; least memory, about a third more time.
    selective: those of operators that cost little; a U-DiT stores a third less, and takes a few per cent more time.
    With compile=true the compiler chooses them, and keeps 80 %."""
    deterministic: bool = False
    """Uses none but deterministic CUDA kernels: slower; resuming to the same bits on a GPU needs it. Those of the CPU
    are."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Of several processes: ddp keeps all weights on each, fsdp splits weights, optimiser state and averages over them
    (FSDP2), for models that do not fit otherwise."""
    shards: PositiveInt | None = None
    """With fsdp: processes among which the weights are split, e.g. those of one machine; None splits over all."""
    device: str = "auto"
    """auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1 or mps."""
    workers: NonNegativeInt = 0
    """Processes per rank that decode images; 0 decodes in the trainer."""
    log_every: PositiveInt = 1
    """Steps between lines of metrics.jsonl."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Where curves, alarms and sample grids are shown; the last two need udit[tracking]."""
    save_every: PositiveInt = 5_000
    keep: Annotated[int, Field(ge=2)] = 2
    """Number of newest checkpoints that are kept."""
    sample_every: PositiveInt = 5_000
    """Steps between sample grids and validation losses."""
    check_every: PositiveInt = 500
    """Steps between checks that all ranks have the same weights."""
    timeout: PositiveInt = 600
    """Seconds without an answer of a rank after which the run ends."""


class EvaluationConfig(Spec):
    """How generated images are scored."""

    num_samples: Annotated[int, Field(ge=20)] = 1000
    batch_size: PositiveInt = 250
    first_seed: Seed = 0
    """Image i has seed first_seed + i."""
    labels: Literal["balanced", "random"] = "balanced"
    """balanced: all classes in turn; random: uniform, keyed by the image's seed."""
    bootstrap: Annotated[int, Field(ge=10)] = 200
    """Resamplings for the confidence interval."""
    judge_steps: PositiveInt = 600
    """Training steps of the classifier that judges samples, for each 1,000 images that it is trained on: at least two
    thirds and at most 8 times as many."""


def model_from(values: Any) -> Any:
    """A model config from plain values with a ``name`` of the catalogue or a ``family``; other values as they are.

    Raises:
        UserError: unknown name, family or key, or a value out of range.
    """
    if not isinstance(values, dict):
        return values
    values = dict(values)
    if "name" in values:
        name = str(values.pop("name"))
        base = find(name).config
        if values.get("family", base.family) != base.family:
            raise UserError(
                f"model.family is {shown(values['family'])} and {name} is a {base.family}; leave family out, or write "
                f"model={name} in place of all keys of the model"
            )
    else:
        family, known = values.pop("family", None), families()
        if not isinstance(family, str) or family not in known:
            raise UserError(f"model.family is {shown(family)}, not a known family{nearest(str(family), known)}")
        base = known[family].model_validate({})
    return parse(type(base), _merge(base.model_dump(), values), where="model")


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``values`` on top; a section of another kind replaces the whole section."""
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


AnyModel = Annotated[SerializeAsAny[ModelConfig], BeforeValidator(model_from)]
"""A model config of any family, also from plain values."""


class Run(Spec):
    """A training with sampling and evaluation, complete."""

    name: str
    out: Annotated[Path, Takes("a folder")]
    """The run folder."""
    seed: Seed = 0
    data: DataConfig
    codec: AnyCodec = IdentityCodec()
    """Converts images to what the network sees, and back."""
    latents: Annotated[Path, Takes("the folder of a latent cache")] | None = None
    """A latent cache that ``udit encode`` wrote with this data and codec; training reads it and decodes no image."""
    text: TextConfig | None = None
    """The language model whose hidden states of captions condition the model; None for labels or no condition."""
    init_from: str | None = None
    """A model folder, a run folder or a hub id with the initial weights; embeddings of new classes are initialised."""
    model: AnyModel
    diffusion: DiffusionConfig = DDPMConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    id2label: tuple[str, ...] = ()
    """Class names in label order, from the data; empty for an unconditional model."""

    def source(self) -> Source:
        """The run's images, or its latent cache.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        if self.latents is None:
            return self.data.build()
        from udit.data.latents import LatentCache

        return LatentCache(self.latents)

    @property
    def encoded(self) -> bool:
        """Whether training reads raw latents, from a cache or from the data, and encodes no image."""
        return self.latents is not None or self.data.encoded

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """All (H, W) of what the network learns; that of its samples first.

        Raises:
            UserError: the codec does not divide one of ``data.buckets``.
        """
        pixels = [DataInfo(channels=3, height=h, width=w, id2label=()) for h, w in self.data.shapes[1:]]
        return (self.model.size, *((seen.height, seen.width) for seen in map(self.codec.seen, pixels)))

    def plain(self) -> dict[str, Any]:
        """As nested dicts, lists and scalars, for YAML and JSON."""
        return self.model_dump(mode="json")


ROUNDING_ONLY = ("accumulation", "checkpoint_activations", "parallel", "shards")
"""Keys of ``training`` that change weights by rounding alone, so that a run may go on in less memory."""
MAY_CHANGE = frozenset(
    {"name", "out", "sampling", "evaluation", "latents", "data.verify", "text.source", "text.revision"}
    | {f"data.{key}" for key in ("root", "test_root", "labels")}
    | {f"training.{key}" for key in ("steps", "log_every", "save_every", "sample_every", "check_every")}
    | {f"training.{key}" for key in ("keep", "workers", "device", "timeout", "cuda_graphs")}
    | {f"training.{key}" for key in ROUNDING_ONLY}
)
"""Keys that may change when a run is resumed; any other change is refused. Data may move if its fingerprint matches."""

FORK_MAY_CHANGE = MAY_CHANGE | {
    *("seed", "init_from"),
    *(
        f"training.{key}"
        for key in ("batch_size", "lr", "lr_warmup", "lr_schedule", "lr_layer_decay", "groups", "betas")
    ),
    *(f"training.{key}" for key in ("weight_decay", "clip_norm", "ema_decay", "label_dropout")),
    *(f"training.{key}" for key in ("independent_level_dropout", "precision", "residual", "compile", "deterministic")),
}
"""Keys that may change where a run is forked: those which leave weights, optimiser state and data what they are."""


def changed_keys(old: Any, new: Any, free: frozenset[str] = MAY_CHANGE) -> list[str]:
    """Dotted keys, outside ``free``, at which two plain runs differ."""
    return differing_keys(old, new, free)
