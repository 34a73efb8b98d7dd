"""What a saved model says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, SerializeAsAny, field_validator

from udit.data.codec_config import CodecConfig, IdentityCodec, codec_from
from udit.diffusion.config import DDPMConfig, DiffusionConfig, SamplingConfig
from udit.models.config import ModelConfig
from udit.run.config import Run, model_from
from udit.spec.base import Spec

EXPORTED = "export.json"
"""Marks a folder as an exported graph, which holds its weights itself (``exporting``)."""


class SystemConfig(Spec):
    """``config.json`` of a model folder: enough to sample from the weights beside it."""

    format: Literal[1] = 1
    model: SerializeAsAny[ModelConfig]
    diffusion: DiffusionConfig = DDPMConfig()
    sampling: SamplingConfig = SamplingConfig()
    codec: CodecConfig = IdentityCodec()
    """How the model's data becomes pixels."""
    id2label: tuple[str, ...] = ()
    """Class names in label order."""
    steps: PositiveInt | None = None
    """Optimiser steps behind the weights."""

    @field_validator("model", mode="before")
    @classmethod
    def _family(cls, value: Any) -> Any:
        return model_from(value) if isinstance(value, dict) else value

    @field_validator("codec", mode="before")
    @classmethod
    def _codec(cls, value: Any) -> Any:
        return codec_from(value)  # the kind alone says enough of some

    @staticmethod
    def of(run: Run, steps: int | None = None) -> SystemConfig:
        """What a run trains."""
        return SystemConfig(
            model=run.model,
            diffusion=run.diffusion,
            sampling=run.sampling,
            codec=run.codec,
            id2label=run.id2label,
            steps=steps,
        )
