"""Config of the adapter that a run trains in place of all weights, free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from udit.spec.base import Spec


class AdapterConfig(Spec):
    """A low-rank adapter of the weights of ``init_from``, which stay as they are (LoRA, Hu et al. 2022)."""

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = 8
    """r: inner dimension of the product that is added to each weight."""
    alpha: PositiveFloat = 8.0
    """The product is scaled by alpha / rank."""
    targets: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = (
        "*.attention.*",
        "*.ffn.*",
    )
    """Names of the adapted layers, with * and ? as in file names: linear layers and convolutions that are not
    depthwise, of ``udit.build(MODEL).named_modules()``."""
