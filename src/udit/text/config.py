"""Config of the language model whose hidden states condition a network; free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from udit.spec.base import Spec
from udit.spec.digest import Sha256

if TYPE_CHECKING:
    import torch

    from udit.text.model import LanguageModel


class TextConfig(Spec):
    """A frozen decoder language model, and what a network reads of it.

    What is left out is filled in when a run is resolved, from the language model's own files.
    """

    source: str
    """A folder as `transformers` saves it, a .gguf file, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub; the commit, once it is resolved."""
    tokens: PositiveInt = 77
    """Most tokens of a text, with the one that stands before it; of longer ones the rest is left out."""
    layers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """The layer that each block of the network reads, counted from 1. By default block i of n reads layer
    round(1 + i (L - 1) / (n - 1)) of L, and a network that reads one layer reads the last."""
    width: PositiveInt | None = None
    """Channels of a hidden state."""
    depth: PositiveInt | None = None
    """L, its layers."""
    sha256: Sha256 | None = None
    """Of the .gguf file, or of weights and tokenizer of a folder; another model is refused."""

    def build(self, device: torch.device | str = "cpu") -> LanguageModel:
        """The loaded language model.

        Raises:
            UserError: it is not where ``source`` says, is another one, or a library is missing.
        """
        from udit.text.model import LanguageModel

        return LanguageModel(self, device)


def layers_of(readers: int, depth: int) -> tuple[int, ...]:
    """The layer, from 1 to ``depth``, that each of ``readers`` blocks reads: evenly spread, first and last included."""
    if readers == 1:
        return (depth,)
    return tuple(round(1 + i * (depth - 1) / (readers - 1)) for i in range(readers))
