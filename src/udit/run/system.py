"""``config.json`` of a model folder."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, SerializeAsAny, field_validator

from udit.data.codec_config import CodecConfig, IdentityCodec, codec_from
from udit.diffusion.config import DDPMConfig, DiffusionConfig, SamplingConfig
from udit.models.config import ModelConfig
from udit.run.config import Run, model_from
from udit.spec.base import Spec

EXPORTED = "export.json"
"""The file that marks a folder as an exported graph, which holds its own weights (``exporting``)."""


class SystemConfig(Spec):
    """``config.json`` of a model folder: all that sampling from the weights beside it takes."""

    format: Literal[1] = 1
    model: SerializeAsAny[ModelConfig]
    diffusion: DiffusionConfig = DDPMConfig()
    sampling: SamplingConfig = SamplingConfig()
    codec: CodecConfig = IdentityCodec()
    """Converts what the model generates to pixels."""
    id2label: tuple[str, ...] = ()
    """Class names in label order."""
    steps: PositiveInt | None = None
    """Optimiser steps that the weights were trained for."""

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
        """The config of the model that a run trains."""
        return SystemConfig(
            model=run.model,
            diffusion=run.diffusion,
            sampling=run.sampling,
            codec=run.codec,
            id2label=run.id2label,
            steps=steps,
        )
