"""Configs of the processes that need few evaluations, free of torch: MeanFlow and consistency tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from udit.diffusion.process_config import DensityMean, DensityStd, Level, ProcessConfig

if TYPE_CHECKING:
    from udit.diffusion.consistency import Consistency
    from udit.diffusion.meanflow import MeanFlow


def _check_density(config: MeanFlowConfig | ConsistencyConfig) -> None:
    """Refuses keys of a density that is not chosen (ValueError)."""
    for key in ("density_mean", "density_std"):
        if config.density == "uniform" and getattr(config, key) != type(config).model_fields[key].default:
            raise ValueError(f"{key} belongs to density logit-normal and density is uniform; leave it out")


class MeanFlowConfig(ProcessConfig):
    """MeanFlow: the average velocity of flow matching's linear path, for few evaluations (Geng et al. 2025)."""

    title: ClassVar[str] = "MeanFlow"
    reversible: ClassVar[bool] = True
    has_velocity: ClassVar[bool] = True
    two_times: ClassVar[bool] = True
    sampling_steps: ClassVar[int | None] = 1
    quality: ClassVar[dict[Level, tuple[str, int]]] = {
        "draft": ("flow-average", 1),
        "good": ("flow-average", 2),
        "best": ("flow-average", 4),
    }
    few_step_samplers: ClassVar[tuple[str, ...]] = ("flow-average",)

    without: ClassVar[dict[str, str]] = {
        "shift": "density_mean moves its times towards noise",
        "path": "its averages are of the linear path",
        "predict": "it learns the average velocity",
    }

    kind: Literal["mean-flow"] = "mean-flow"
    share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Of the samples that learn an average, at the price of a forward derivative; the others learn the velocity."""
    density: Literal["uniform", "logit-normal"] = "logit-normal"
    """How both times are drawn, of which the later one is t."""
    density_mean: DensityMean = -0.4
    """Mean of the logit-normal's normal; above 0 favours noise."""
    density_std: DensityStd = 1.0
    """Its standard deviation."""
    power: Annotated[float, Field(ge=0, le=2)] = 1.0
    """p of the adaptive weight 1 / (squared error + 0.001) ** p, with 1 of which the loss is about 1 all the time (see
    ``mse`` in metrics.jsonl); 0 is the squared error."""
    guidance: Annotated[float, Field(ge=1, le=100)] = 1.0
    """Scale of guidance that is learned, so that sampling needs none; 1 means no guidance."""
    guidance_mix: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """kappa: share of the guidance that comes from the network's conditional prediction; needs a third evaluation."""

    @model_validator(mode="after")
    def _check(self) -> MeanFlowConfig:
        _check_density(self)
        if self.guidance_mix and self.guidance == 1:
            raise ValueError(f"guidance_mix is {self.guidance_mix:g} and guidance 1, which is none; leave it out")
        return self

    @classmethod
    def continuing(cls, origin: dict[str, Any]) -> dict[str, Any] | None:
        """Of a flow's velocity on the linear path."""
        path, predict = origin.get("path", "linear"), origin.get("predict", "velocity")
        if (origin.get("kind"), path, predict) == ("flow", "linear", "velocity"):
            return {"kind": "mean-flow"}
        return super().continuing(origin)

    def build(self) -> MeanFlow:
        """The path, and how its averages are learned."""
        from udit.diffusion.learning import Density, Learning
        from udit.diffusion.meanflow import MeanFlow

        learning = Learning(Density(self.density, self.density_mean, self.density_std))
        return MeanFlow(
            learning=learning,
            share=self.share,
            power=self.power,
            guidance=self.guidance,
            guidance_mix=self.guidance_mix,
        )


class ConsistencyConfig(ProcessConfig):
    """Consistency tuning of a trained flow, for few evaluations (Geng et al. 2024, ECT)."""

    title: ClassVar[str] = "consistency tuning"
    reversible: ClassVar[bool] = True
    sampling_steps: ClassVar[int | None] = 2
    quality: ClassVar[dict[Level, tuple[str, int]]] = {
        "draft": ("flow-consistency", 1),
        "good": ("flow-consistency", 2),
        "best": ("flow-consistency", 4),
    }
    few_step_samplers: ClassVar[tuple[str, ...]] = ("flow-consistency",)

    without: ClassVar[dict[str, str]] = {
        "shift": "density_mean moves its times towards noise",
    }

    kind: Literal["consistency"] = "consistency"
    path: Literal["linear", "gvp"] = "linear"
    """That of the trained flow."""
    predict: Literal["velocity", "v"] = "velocity"
    """What the trained network predicts; one of x0 does not return the data at time 0 by itself."""
    stages: Annotated[int, Field(ge=1, le=20)] = 8
    """The pair's lower time is t (1 - 2 ** -stage), stage 1 to this."""
    stage_steps: PositiveInt = 100
    """Training steps of each stage; the last one goes on to the end."""
    density: Literal["uniform", "logit-normal"] = "uniform"
    """How the upper times are drawn."""
    density_mean: DensityMean = 0.0
    """Mean of the logit-normal's normal; above 0 favours noise."""
    density_std: DensityStd = 1.0
    """Its standard deviation."""

    @model_validator(mode="after")
    def _check(self) -> ConsistencyConfig:
        _check_density(self)
        return self

    @classmethod
    def continuing(cls, origin: dict[str, Any]) -> dict[str, Any] | None:
        """Of a flow's velocity or v, whose path and target it has."""
        path, predict = origin.get("path", "linear"), origin.get("predict", "velocity")
        if origin.get("kind") not in ("flow", "consistency") or predict == "x0":
            return None
        return {"kind": "consistency", "path": path, "predict": predict}

    def build(self) -> Consistency:
        """The path, and how its points are compared."""
        from udit.diffusion.consistency import Consistency
        from udit.diffusion.learning import Density, Learning

        learning = Learning(Density(self.density, self.density_mean, self.density_std))
        return Consistency(
            self.path,
            self.predict,
            learning,
            stages=self.stages,
            stage_steps=self.stage_steps,
            stage=self.stages,
        )
