"""ADM's U-Net (Dhariwal & Nichol 2021)."""
