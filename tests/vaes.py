"""Small random VAEs that tests make for themselves."""

from __future__ import annotations

from pathlib import Path

import torch


def tiny_vae(folder: Path, channels: int = 1, seed: int = 0, **changes: object) -> Path:
    """Writes an AutoencoderKL of two levels, 16 thousand random weights: [C, 8, 8] pixels are [2, 4, 4] latents."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    values = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "latent_channels": 2,
        "norm_num_groups": 4,
        "sample_size": 8,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
    }
    AutoencoderKL(**{**values, **changes}).save_pretrained(folder)
    return folder
