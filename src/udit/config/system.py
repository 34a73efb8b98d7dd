"""What a saved model says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, SerializeAsAny, field_validator

from udit.config.base import Spec
from udit.config.diffusion import DDPMConfig, DiffusionConfig, SamplingConfig
from udit.config.model import ModelConfig
from udit.config.run import Run, model_from


class SystemConfig(Spec):
    """``config.json`` of a model folder: enough to sample from the weights beside it."""

    format: Literal[1] = 1
    model: SerializeAsAny[ModelConfig]
    diffusion: DiffusionConfig = DDPMConfig()
    sampling: SamplingConfig = SamplingConfig()
    codec: Literal["identity"] = "identity"
    """How the model's data becomes pixels: identity is pixels in [-1, 1]."""
    id2label: tuple[str, ...] = ()
    """Class names in label order."""
    steps: PositiveInt | None = None
    """Optimiser steps behind the weights."""

    @field_validator("model", mode="before")
    @classmethod
    def _family(cls, value: Any) -> Any:
        return model_from(value) if isinstance(value, dict) else value

    @staticmethod
    def of(run: Run, steps: int | None = None) -> SystemConfig:
        """What a run trains."""
        return SystemConfig(
            model=run.model, diffusion=run.diffusion, sampling=run.sampling, id2label=run.id2label, steps=steps
        )
