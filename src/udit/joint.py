"""Networks and noising processes put together: the denoiser of a model, the loss of a run, and step caching."""

from __future__ import annotations

from typing import Any

from udit.diffusion.cache import StepCache
from udit.diffusion.config import SamplingConfig
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.objective import Objective
from udit.errors import UserError
from udit.models.config import ModelConfig
from udit.run.config import Run
from udit.run.system import SystemConfig


def denoiser_of(config: SystemConfig, backbone: Any) -> Denoiser:
    """The denoiser of a network, or of anything called like one (DDP, a compiled module)."""
    model, schedule = config.model, config.diffusion.build()
    backbone, time = schedule.precondition(backbone, model.time)
    return Denoiser(
        backbone=backbone,
        schedule=schedule,
        target=schedule.target,
        learn_sigma=model.learn_sigma,
        time=time,
        null_label=model.null_label,
        num_classes=model.num_classes,
        reversed_flow=model.reversed_flow,
    )


def objective_of(run: Run) -> Objective:
    """The training loss of a run."""
    training = run.training
    levels = (run.model.label_levels or 1) if training.independent_level_dropout else 1
    precision = "float32" if training.precision == "auto" else training.precision  # only where no device is known
    return Objective(run.seed, training.label_dropout, levels, precision, training.batch_size)


def step_cache(model: ModelConfig, sampling: SamplingConfig) -> StepCache | None:
    """Step caching in the network's own units of time; None where all steps run in full.

    Raises:
        UserError: every N-th step is cached, which needs a network whose time falls to 0 at the data.
    """
    if sampling.refresh:
        return StepCache(refresh=sampling.refresh, forecast=sampling.forecast, guidance=sampling.keep_guidance)
    if sampling.cache == 1:
        return None
    if model.reversed_flow:
        raise UserError(
            f"cache is {sampling.cache} and {model.family} counts time from noise to data (reversed flow), so that its "
            "last steps cannot be recognised by a time near 0; set cache to 1, or name evaluations in refresh"
        )
    final_time = {"index": 20.0, "unit": 0.02, "sigma": 0.02 / 0.98}[model.time]
    return StepCache(sampling.cache, final_time, forecast=sampling.forecast, guidance=sampling.keep_guidance)
