"""int8: NNCF's post-training quantisation, with ranges measured on noised training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from udit.data.batches import batches
from udit.data.buckets import of_first_shape
from udit.data.sources import parts_of
from udit.diffusion.denoiser import mix
from udit.diffusion.objective import draw, drop_labels
from udit.joint import denoiser_of
from udit.run.config import Run
from udit.run.system import SystemConfig

NUM_IMAGES = 256
Inputs = Sequence[NDArray[Any]]
"""The inputs of a graph, in its order."""


class _Recorder:
    """Takes the network's place and records its inputs."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.given: list[Inputs] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Zeros."""
        parts = [x.float(), t.float()] if y is None else [x.float(), t.float(), y]
        self.given.append([part.numpy() for part in parts])
        return x.new_zeros(len(x), self.channels, *x.shape[2:])


def calibration_inputs(run: Run, count: int = NUM_IMAGES) -> list[Inputs]:
    """Inputs of a run's network in training, one image at a time: x_t, its time, and its label or the null label.

    Raises:
        UserError: the run's images are missing.
    """
    source, codec = run.source(), run.codec.build()
    recorder = _Recorder(run.model.out_channels)
    denoiser = denoiser_of(SystemConfig.of(run), recorder)
    part = of_first_shape(source, parts_of(source, run.data).train)
    steps = batches(source, part, seed=run.seed, start=0, stop=count, global_batch=1)
    for (batch,) in steps:
        raw = batch.x if run.encoded else codec.raw(batch.x)
        x0 = codec.normalise(raw, [(run.seed, batch.positions[0])])
        draws = draw(denoiser.schedule, x0.shape[1:], run.seed, "calibrate", [(batch.positions[0],)])
        y = batch.y if run.model.num_classes else None
        if y is not None and run.model.null_label is not None:
            y = drop_labels(y, run.model.null_label, run.training.label_dropout, draws.uniform)
        denoiser.raw(mix(denoiser.schedule, x0, draws.noise, draws.t), draws.t, y)
    return recorder.given


def quantized(model: Any, given: Sequence[Inputs]) -> Any:
    """An OpenVINO model with matrix products and convolutions in int8."""
    import nncf

    return nncf.quantize(
        model,
        nncf.Dataset(given, tuple),
        preset=nncf.QuantizationPreset.MIXED,  # few activations of a transformer are symmetric
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(given),
    )
