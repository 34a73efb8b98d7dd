"""How far decoded images are from the ones that were encoded: PSNR and SSIM."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PEAK = 255.0
WINDOW, SIGMA = 11, 1.5
"""Side of SSIM's Gaussian window and its standard deviation, in pixels (Wang et al. 2004, Sec. III-B)."""
K1, K2 = 0.01, 0.03


def psnr(a: NDArray[np.generic], b: NDArray[np.generic]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each pair of images, in dB.

    Args:
        a: [N, C, H, W] in 0..255.
        b: of the same shape.

    Returns:
        [N]: 10 log10(255**2 / mean squared error over channels and pixels); infinite where they are equal.
    """
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(PEAK**2 / error))


def ssim(a: NDArray[np.generic], b: NDArray[np.generic]) -> NDArray[np.float64]:
    """Structural similarity of each pair of images (Wang et al. 2004, eq. 13), averaged over channels and places.

    The window is Gaussian and lies wholly within the image. Of an image with a shorter side it has the largest odd
    side that fits.

    Args:
        a: [N, C, H, W] in 0..255.
        b: of the same shape.

    Returns:
        [N], at most 1.
    """
    x, y = (torch.from_numpy(np.asarray(each, np.float64)) for each in (a, b))
    side = min(WINDOW, *(length - 1 + length % 2 for length in x.shape[2:]))
    at = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-(at**2) / (2 * SIGMA**2))
    line = line / line.sum()

    def mean(values: Tensor) -> Tensor:
        flat = values.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(flat, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similar = similar / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    found: NDArray[np.float64] = similar.view(*x.shape[:2], -1).mean(dim=(1, 2)).numpy()
    return found
