"""What all rows of one paper have in common, in words for a reader."""

from __future__ import annotations

from udit.spec.base import Spec


class About(Spec):
    """What all rows of one paper have in common, in words for a reader."""

    paper: str
    """arXiv identifier."""
    code: str
    """Licence of the official program. None of its code is in this library."""
    attention: str
    ffn: str
    skips: str
    exact: str
    """What is checked against the official program, and what is not checked or not implemented."""


SAME = "outputs, keys, parameters and MACs equal the official program's"
UDIT = About(
    paper="2405.02730",
    code="CC BY-NC 4.0",
    attention="cosine, RoPE, within 2x2 interleaved sub-grids behind a depthwise filter",
    ffn="GELU with re-parameterised depthwise convolutions",
    skips="concatenated, one per level",
    exact=SAME,
)
UDIT_VIDEO = UDIT.replace(
    attention=f"{UDIT.attention}; along time after every stage",
    exact="sizes are ours: U-DiT on each frame and attention along time between its stages; no paper has it",
)
VANILLA = UDIT.replace(
    attention="scaled dot product within 2x2 interleaved sub-grids behind a depthwise filter", ffn="GELU MLP"
)
DIT = About(
    paper="2212.09748",
    code="CC BY-NC 4.0",
    attention="global, sin-cos positions",
    ffn="GELU MLP",
    skips="none",
    exact=SAME,
)
SIT = DIT.replace(
    paper="2401.08740",
    code="MIT",
    exact=f"{SAME}; so do its losses, its SDE, and Euler's and Heun's methods; its dopri5 "
    "(udit.diffusion.adaptive.Dopri5) is torchdiffeq's and checked on a Gaussian",
)
REPA = DIT.replace(
    paper="2410.06940",
    code="MIT",
    exact=f"{SAME}, the projections as well; so do its losses and samplers (udit.diffusion.transport). Training by "
    "its alignment loss is not implemented, nor is qk_norm",
)
SKIPDIT = DIT.replace(
    paper="2411.17616",
    code="Apache-2.0; parts after DiT, CC BY-NC 4.0",
    skips="concatenated, first half to second, block by block",
    exact=f"{SAME}, cached inference as well",
)
LIGHTNING = DIT.replace(
    paper="2501.01423",
    code="MIT",
    attention="global, RoPE and sin-cos positions",
    ffn="SwiGLU",
    exact=f"{SAME}; qk_norm and shift=false are not checked, nor its loss (diffusion.cosine=1) and the shift of its "
    "sampler's times (diffusion.shift) against its program",
)
MPDIT = DIT.replace(
    paper="2603.26357",
    code="no licence",
    attention="global, sin-cos positions; coarse patches first, fine ones last; labels are tokens",
    skips="the input's patches, one per finer level",
    exact=f"{SAME}; not exported: rounding grows beyond the limit in its graph; of three levels, keys, parameters "
    "and MACs only; the MLP of the time is not checked",
)
FIT = DIT.replace(
    paper="2402.12376",
    code="Apache-2.0",
    attention="within each image of a row of tokens, RoPE",
    ffn="SwiGLU",
    exact=f"{SAME}; so do rows of several images, and rotary tables in each mode of extrapolation. Our output is not "
    "multiplied by the image's number in its row, and times are not clamped to 1",
)
MMDIT = About(
    paper="2403.03206",
    code="Apache-2.0",
    attention="global over image and text together, sin-cos positions; separate weights for each",
    ffn="GELU MLP",
    skips="none",
    exact=f"{SAME} (diffusers'); a label in place of a text is ours, and so is the initialisation; the text encoders, "
    "and Stable Diffusion's settings of sampling, are not part of it; sizes of 3.5 are not verified",
)
LATTE = DIT.replace(
    paper="2401.03048",
    code="Apache-2.0",
    attention="within each frame and along time, in turn, sin-cos positions",
    exact="outputs, keys and parameters equal the official program's; so do MACs, once adaLN's products, which it "
    "repeats for each frame and each place, are added; each frame is patched alone, and no attention spans space and "
    "time at once; texts and joint training on images are not built; graphs are not exported",
)
WAN = About(
    paper="2503.20314",
    code="Apache-2.0",
    attention="global over space and time together, RoPE of three axes; text by cross-attention",
    ffn="GELU MLP",
    skips="none",
    exact=f"{SAME} (diffusers'); a label in place of a text is ours; the text encoder and the VAE of clips are not "
    "part of it; graphs are not exported",
)
UVIT = About(
    paper="2209.12152",
    code="MIT",
    attention="global, learned positions; time and condition are tokens",
    ffn="GELU MLP",
    skips="concatenated, first half to second, block by block",
    exact=f"{SAME}; the VP-SDE of its pixel models is not implemented",
)
DIC = About(
    paper="2501.00603",
    code="CC BY-NC 4.0",
    attention="none: 3x3 convolutions",
    ffn="none",
    skips="concatenated, every third block",
    exact=SAME,
)
DICO = About(
    paper="2505.11196",
    code="Apache-2.0",
    attention="none: depthwise 3x3 convolutions and channel attention",
    ffn="GELU MLP",
    skips="concatenated, one per level",
    exact=SAME,
)
PDE = About(
    paper="2505.24717",
    code="Apache-2.0",
    attention="cosine, learned relative positions; shifted windows",
    ffn="GELU MLP",
    skips="concatenated, one per level",
    exact=f"{SAME}; the form with separate channels is not built",
)
ADM = About(
    paper="2105.05233",
    code="MIT",
    attention="global at coarse levels, between residual 3x3 convolutions",
    ffn="none",
    skips="concatenated, every block",
    exact=f"{SAME}; no classifier guidance",
)
HDIT = About(
    paper="2401.11605",
    code="MIT",
    attention="cosine, axial RoPE; neighbourhoods or shifted windows at fine levels, global at the coarsest",
    ffn="GEGLU",
    skips="learned mixture, one per level",
    exact=f"{SAME}; neighbourhood attention is checked against its definition",
)


DIMSUM = About(
    paper="2411.04168",
    code="BSD-3-Clause",
    attention="Mamba over space and over Haar wavelets, fused by attention; one shared global block every fourth",
    ffn="gated GELU",
    skips="none",
    exact="outputs, keys and parameters equal the official program's; so do MACs, once wavelets, cond_proj (which has "
    "no effect) and the shared block's repeated adaLN are added; scans and wavelets are not in the MACs; the scan is "
    "checked against a sequential one; adaptive guidance is not implemented",
)
PLAYGROUND = About(
    paper="2409.10695",
    code="closed; no code or weights are public",
    attention="image and text in one softmax, RoPE, normalised queries and keys; fewer keys in the middle",
    ffn="GELU MLP",
    skips="concatenated, first half to second, block by block",
    exact="after Playground v3, of which too little is public to compare: sizes are ours, and so are the reducer of "
    "keys and values and the join of skips; not exported",
)
