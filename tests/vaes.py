"""Small VAEs that tests make for themselves."""

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


def trained_vae(folder: Path, pixels: torch.Tensor, steps: int = 600, seed: int = 0) -> Path:
    """Writes an AutoencoderKL of ``tiny_vae``'s shape that has learned some images, uint8 [N, 1, 8, 8]."""
    from diffusers import AutoencoderKL

    tiny_vae(folder, seed=seed, block_out_channels=(16, 32))
    vae = AutoencoderKL.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    chance = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = pixels[torch.randint(len(pixels), (32,), generator=chance)] / 127.5 - 1
        posterior = vae.encode(x).latent_dist
        decoded = vae.decode(posterior.sample(generator=chance)).sample
        loss = (decoded - x).square().mean() + 1e-4 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    vae.eval().save_pretrained(folder)
    return folder
