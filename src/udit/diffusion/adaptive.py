"""SiT's adaptive sampler (Ma et al. 2024, arXiv 2401.08740), by torchdiffeq."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from udit.diffusion.guidance import AnyDenoiser
from udit.diffusion.origin import Origin
from udit.diffusion.sample import Noise, Step
from udit.diffusion.transport import path_of, velocity_along
from udit.errors import UserError, missing_extra


@dataclass(frozen=True)
class Dopri5:
    """Dormand and Prince's method (1980) along the probability flow, whose steps follow an estimate of the error.

    SiT's default sampler, by torchdiffeq. Every sample is integrated by itself: with one error for the whole batch its
    steps, and so its image, would depend on the other samples. It asks the network as often as it needs to, which no
    ``steps`` tells beforehand; so it has no name for a run's ``sampling``, and is passed to ``udit.sample`` as it is,
    without a cache.

    Attributes:
        rtol: largest error of a step, relative to the sample.
        atol: the same, absolute. Both are SiT's defaults.
    """

    rtol: float = 1e-3
    atol: float = 1e-6

    def times(self, denoiser: AnyDenoiser, steps: int | str, strength: float = 1.0) -> Tensor:
        """Not known beforehand.

        Raises:
            UserError: always.
        """
        raise UserError("dopri5 chooses its times as it goes; image to image and caches need a sampler with a name")

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        steps: int | str,
        y: Tensor | None,
        noise: Noise,
        origin: Origin | None = None,
    ) -> Iterator[Step]:
        """Yields at ``steps`` equally spaced times, between which it takes steps of its own. Draws no noise.

        Raises:
            UserError: torchdiffeq is missing, the model was not trained with flow matching, or there is an origin.
        """
        try:
            from torchdiffeq import odeint
        except ImportError:
            raise missing_extra("dopri5", "torchdiffeq", "ode") from None
        if origin is not None:
            self.times(denoiser, steps)
        path, grid = path_of(denoiser), torch.linspace(1, 0, int(steps) + 1, dtype=torch.float64)
        each = [velocity_along(denoiser, None if y is None else y[i : i + 1], path) for i in range(len(x))]
        for k, pair in enumerate(pairwise(grid), start=1):
            ends = torch.stack(pair).to(x)
            guesses = [velocity(x[i : i + 1], pair[0])[2] for i, velocity in enumerate(each)]
            x = torch.cat(
                [
                    odeint(
                        lambda t, state, velocity=velocity: velocity(state, t)[0],
                        x[i : i + 1],
                        ends,
                        rtol=self.rtol,
                        atol=self.atol,
                        method="dopri5",
                    )[-1]
                    for i, velocity in enumerate(each)
                ]
            )
            yield Step(k, len(grid) - 1, x, torch.cat(guesses))
