"""All claims, free of torch: what was said, and where."""

from __future__ import annotations

from udit.claims.claim import Claim
from udit.errors import UserError, nearest

UDIT = "Tian et al. 2024, arXiv 2405.02730"
GAIN = "the gain in distance is positive at each budget, its interval over seeds included"
ALWAYS = (
    "the gain in distance is positive at each budget and at every score of the training, intervals over seeds included"
)

CLAIMS = (
    Claim(
        "attention-costs-a-quarter",
        "Self-attention on tokens that are downsampled by 2 in queries, keys and values costs a quarter.",
        f"{UDIT}, Sec. 3.2",
        "attention",
        "comparing tokens takes a quarter of full attention's MACs at every level, within 1 %",
    ),
    Claim(
        "low-frequencies",
        "The features of a U's backbone are dominated by low frequencies.",
        f"Si et al. 2023 (FreeU), arXiv 2309.11497; the motive of {UDIT}, Sec. 3.2",
        "spectra",
        "at the end of every stage more than half of the power, averaged over times, is at low frequencies",
    ),
    Claim(
        "low-pass",
        "The depthwise filter in front of downsampled attention is a low-pass for its input.",
        f"{UDIT}, Sec. 3.2",
        "spectra",
        "every filter raises the share of low frequencies, its interval over images above 0",
    ),
    Claim(
        "cached-features-change-less",
        "Deep features of networks with long skips change less from one sampling step to the next.",
        "Chen et al. 2024 (Skip-DiT), arXiv 2411.17616, abstract",
        "caching",
        "both networks with skips change less than DiT at more than half of the steps, by intervals that do not meet",
    ),
    Claim(
        "caching-hurts-less",
        "Reusing the deep features over some steps hurts networks with long skips less than it hurts DiT.",
        "Chen et al. 2024 (Skip-DiT), arXiv 2411.17616, abstract",
        "caching",
        "both networks with skips lose less than DiT at more than half of the intervals, by intervals that do not meet",
    ),
    Claim(
        "mamba-is-linear",
        "Backbones built of Mamba scale linearly with the number of tokens.",
        "Phung et al. 2024 (DiMSUM), arXiv 2411.04168",
        "growth",
        "time and memory of a forward grow with an exponent of at most 1.1 between the two largest sizes",
    ),
    Claim(
        "scans-are-linear",
        "The selective scan itself scales linearly with the number of tokens.",
        "Gu & Dao 2023 (Mamba), arXiv 2312.00752, abstract",
        "growth",
        "time and memory of one scan grow with an exponent of at most 1.1 between the two largest sizes",
    ),
    Claim(
        "sizes-of-the-survey",
        "U-DiT-S, B, L and DiT-B/2, L/2 have 30, 83, 220, 90, 231 M parameters and 4.8, 19.4, 59.8, 16.3, 52.1 G MACs.",
        "a survey's table, which circulates",
        "sizes",
        "all numbers are within 1 % of the counted ones",
    ),
    Claim(
        "sizes-of-the-papers",
        "They have 52, 204, 810, 130, 458 M parameters and 6.04, 22.22, 85.00, 23.01, 80.71 G MACs.",
        f"{UDIT}, Table 2; Peebles & Xie 2023 (DiT), arXiv 2212.09748",
        "sizes",
        "all numbers are within 1 % of the counted ones",
    ),
    Claim(
        "u-net-gains-little",
        "DiT's blocks in a U-Net (DiT-UNet) gain little over DiT at equal MACs.",
        f"{UDIT}, Table 1",
        "comparisons",
        "the gain is at most 10 % of DiT's distance (Table 1 has 4.5 %), its interval over seeds included",
    ),
    Claim(
        "qkv-beats-kv",
        "Downsampling queries, keys and values beats downsampling keys and values alone, at equal MACs.",
        f"{UDIT}, Table 1",
        "comparisons",
        GAIN,
    ),
    Claim(
        "cosine-attention-helps",
        "Cosine attention helps.",
        f"{UDIT}, Table 9",
        "comparisons",
        GAIN,
    ),
    Claim(
        "rope-helps",
        "RoPE in two dimensions helps.",
        f"{UDIT}, Table 9",
        "comparisons",
        GAIN,
    ),
    Claim(
        "depthwise-ffn-helps",
        "Depthwise convolutions in the FFN help.",
        f"{UDIT}, Table 9",
        "comparisons",
        GAIN,
    ),
    Claim(
        "re-parameterisation-helps",
        "Re-parameterisation helps.",
        f"{UDIT}, Table 9",
        "comparisons",
        GAIN,
    ),
    Claim(
        "long-skips-help",
        "Long skips help an isotropic transformer at equal MACs.",
        "Bao et al. 2023 (U-ViT), arXiv 2209.12152; Chen et al. 2024 (Skip-DiT), arXiv 2411.17616",
        "comparisons",
        GAIN,
    ),
    Claim(
        "u-dit-beats-dit",
        "U-DiT beats DiT at equal MACs, at several sizes and throughout the training.",
        f"{UDIT}, Table 2",
        "comparisons",
        ALWAYS,
    ),
    Claim(
        "u-dit-beats-u-vit",
        "U-DiT beats U-ViT, which has long skips and no downsampling, at equal MACs.",
        f"{UDIT}, Table 3",
        "comparisons",
        ALWAYS,
    ),
    Claim(
        "a-sixth-of-the-macs",
        "U-DiT with a sixth of the MACs matches or beats the larger DiT.",
        f"{UDIT}, abstract",
        "comparisons",
        "its distance is at most 5 % larger, the interval over seeds included",
    ),
    Claim(
        "dit-scales",
        "DiT with more MACs scores better.",
        "Peebles & Xie 2023 (DiT), arXiv 2212.09748",
        "comparisons",
        "the exponent of distance in MACs is negative, its interval over seeds included",
    ),
    Claim(
        "dico-beats-dit",
        "Convolutions in U-DiT's shell beat DiT at equal MACs.",
        "Ai et al. 2025 (DiCo), arXiv 2505.11196",
        "comparisons",
        GAIN,
    ),
    Claim(
        "mpdit-beats-dit",
        "Coarse tokens first and fine ones last beats DiT at equal MACs.",
        "MPDiT, arXiv 2603.26357",
        "comparisons",
        GAIN,
    ),
    Claim(
        "lightningdit-beats-dit",
        "RMSNorm, SwiGLU and RoPE make a better DiT at equal MACs.",
        "Yao et al. 2025 (LightningDiT), arXiv 2501.01423",
        "comparisons",
        GAIN,
    ),
)


def find(name: str) -> Claim:
    """The claim of a name.

    Raises:
        UserError: there is none.
    """
    found = {claim.name: claim for claim in CLAIMS}
    if name not in found:
        raise UserError(f"no claim {name!r}{nearest(name, found)} (`udit claims` lists all)")
    return found[name]
