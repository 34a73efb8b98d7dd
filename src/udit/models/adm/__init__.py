"""ADM (Dhariwal & Nichol 2021): a convolutional U-Net with attention at coarse levels."""
