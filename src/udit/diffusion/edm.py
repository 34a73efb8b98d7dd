"""EDM's preconditioning (Karras et al. 2022, Sec. 5): a network of unit scales becomes a denoiser at every noise level.

With x = x0 + sigma n and data of standard deviation sigma_data, the network F sees c_in x and says F, and

    D(x, sigma) = c_skip x + c_out F(c_in x, sigma)

is the guess of x0. HDiT was published in this form. Its sampler is ``Karras`` in
``sample.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from udit.diffusion.denoise import Backbone, Denoiser, mix
from udit.diffusion.objective import Losses
from udit.diffusion.schedule import EDM, TimeUnit

Path = Literal["exploding", "preserving", "linear"]
"""Signal scale alpha where sigma / alpha = s: 1; 1 / sqrt(1 + s**2) as in ``DDPM``; 1 / (1 + s) as in ``Flow``."""


Weighting = Literal["edm", "soft-min-snr"]


@dataclass(frozen=True)
class Preconditioned:
    """A network F as a backbone whose target is x0 and whose time is sigma, the ratio of noise to signal.

    ``Denoiser(Preconditioned(network, path="preserving"), DDPM.linear(), target="x0", time="sigma")`` samples with any
    sampler of that schedule.

    Attributes:
        backbone: F.
        sigma_data: standard deviation of the data.
        path: how the noised input was scaled.
        time: F's unit of time; this one's is sigma.
    """

    backbone: Backbone
    sigma_data: float = 0.5
    path: Path = "exploding"
    time: TimeUnit = "sigma"

    def __call__(self, x: Tensor, sigma: Tensor, y: Tensor | None = None, /) -> Tensor:
        """x [B, C, H, W] = alpha (x0 + sigma n), sigma [B], y as the network takes it -> x0 [B, C, H, W]."""
        ratio = sigma.to(torch.promote_types(x.dtype, torch.float32)).view(-1, *[1] * (x.ndim - 1))
        if self.path != "exploding":
            x = x * ((1 + ratio**2).sqrt() if self.path == "preserving" else 1 + ratio)
        variance = ratio**2 + self.sigma_data**2
        output = self.backbone((x * variance.rsqrt()).to(x.dtype), EDM().network_time(sigma, self.time), y)
        return self.sigma_data**2 / variance * x + ratio * self.sigma_data * variance.rsqrt() * output


@dataclass(frozen=True)
class WeightedLoss:
    """Squared error of x0, weighed by the noise level; called like ``flow_loss``.

    Attributes:
        sigma_data: of the preconditioning.
        weighting: ``edm`` is 1 / c_out**2, under which every level weighs the same at the start (Karras et al. 2022,
            Table 1); ``soft-min-snr`` is 1 / (sigma**2 + sigma_data**2) (Crowson et al. 2024, Eq. 5).
    """

    sigma_data: float = 0.5
    weighting: Weighting = "soft-min-snr"

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
        """x0 and noise [B, C, H, W], t [B] noise levels, y [B] labels, some dropped, or None -> losses [B]."""
        prediction, _ = denoiser.raw(mix(denoiser.schedule, x0, noise, t), t, y)
        mse = (prediction.float() - x0).square().mean(dim=(1, 2, 3))
        weight = 1 / (t**2 + self.sigma_data**2)
        if self.weighting == "edm":
            weight = 1 / (weight * (t * self.sigma_data) ** 2)
        return Losses(weight * mse, mse)
