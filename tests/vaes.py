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


def tiny_flux2(folder: Path, seed: int = 0) -> Path:
    """Writes FLUX.2's kind of VAE: [3, 16, 16] pixels are [2, 8, 8] latents, seen as [8, 4, 4]."""
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(seed)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=4,
        sample_size=16,
    )
    vae.bn.running_mean.copy_(torch.linspace(-1, 1, 8))
    vae.bn.running_var.copy_(torch.linspace(0.5, 4, 8))
    vae.save_pretrained(folder)
    return folder


def tiny_dc(folder: Path, seed: int = 0) -> Path:
    """Writes a deep-compression autoencoder, which has no posterior: [3, 16, 16] pixels are [8, 4, 4] latents."""
    from diffusers import AutoencoderDC

    torch.manual_seed(seed)
    AutoencoderDC(
        latent_channels=8,
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        scaling_factor=0.4,
    ).save_pretrained(folder)
    return folder


def tiny_taesd(folder: Path, seed: int = 0) -> Path:
    """Writes a tiny autoencoder, which has no posterior: [3, 16, 16] pixels are [4, 8, 8] latents."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(folder)
    return folder
