"""``config.json`` of a model folder."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from udit.data.codec_config import AnyCodec, IdentityCodec
from udit.data.condition_config import AnyCondition
from udit.diffusion.config import DDPMConfig, DiffusionConfig, SamplingConfig
from udit.errors import UserError
from udit.run.classes import Classes
from udit.run.config import AnyModel, Run
from udit.spec.base import Spec
from udit.text.config import TextConfig

EXPORTED = "export.json"
"""The file that marks a folder as an exported graph, which holds its own weights (``exporting``)."""


class SystemConfig(Spec):
    """``config.json`` of a model folder: all that sampling from the weights beside it takes."""

    format: Literal[1] = 1
    model: AnyModel
    diffusion: DiffusionConfig = DDPMConfig()
    sampling: SamplingConfig = SamplingConfig()
    codec: AnyCodec = IdentityCodec()
    """Converts what the model generates to pixels."""
    text: TextConfig | None = None
    """The language model that makes conditions of prompts; None for a model that takes none."""
    condition: AnyCondition = None
    """Makes what the network sees beside the noisy image of a whole one."""
    id2label: tuple[str, ...] = ()
    """Class names in label order."""
    steps: PositiveInt | None = None
    """Optimiser steps that the weights were trained for."""

    @property
    def prompted(self) -> TextConfig:
        """The language model of a model that takes texts.

        Raises:
            UserError: the model takes none.
        """
        if self.text is None:
            takes = f"has {self.model.num_classes} classes" if self.model.num_classes else "has no condition"
            raise UserError(f"a prompt was given and the model {takes}; leave it out, or take a model that takes texts")
        return self.text

    @property
    def classes(self) -> Classes:
        """Names and numbers of the model's classes."""
        return Classes(self.model.num_classes, self.id2label, self.model.null_label)

    @staticmethod
    def of(run: Run, steps: int | None = None) -> SystemConfig:
        """The config of the model that a run trains."""
        return SystemConfig(
            model=run.model,
            diffusion=run.diffusion,
            sampling=run.sampling,
            codec=run.codec,
            text=run.text,
            condition=run.data.condition,
            id2label=run.id2label,
            steps=steps,
        )
