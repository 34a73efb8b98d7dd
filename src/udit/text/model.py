"""A frozen language model: texts in, hidden states of some of its layers out.

A text is one token before it (BOS) and its own tokens; the empty text is that one token. A hidden state is what a layer
returns, divided by its root mean square: the first token's is a hundred times the others' otherwise. Layer L is behind
the model's last norm, as `transformers` returns it.

Axes: t tokens of a text, T the most there may be, l layers that are kept, n layers that are read, E channels.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udit.errors import UserError, missing_extra
from udit.text.config import TextConfig
from udit.text.files import check_same, digest_of, is_gguf, place_of, sizes_of

logger = logging.getLogger(__name__)


class LanguageModel:
    """A causal language model of `transformers`, of which only hidden states are used."""

    def __init__(self, config: TextConfig, device: torch.device | str = "cpu") -> None:
        """Loads tokenizer and weights, in float32.

        Args:
            config: a complete one, of ``text.files.complete``.
            device: where it runs.

        Raises:
            UserError: it is not there, is another one, cannot be read, or a library is missing.
        """
        place = place_of(config)
        check_same(config, sizes_of(place), digest_of(place))
        self.config = config
        self.device = torch.device(device)
        self.layers = sorted(set(config.layers or ()))
        """Those that are kept of a text."""
        self._model, self._tokenizer = _loaded(place, self.device)
        own = (self._tokenizer.bos_token_id, self._model.config.bos_token_id, self._tokenizer.eos_token_id)
        first = next((token for token in own if isinstance(token, int)), None)
        if first is None:
            raise UserError(
                f"the language model {config.source!r} has neither a BOS nor an EOS token to begin a text with; take "
                "another one"
            )
        self.first: int = first
        self._told = False

    def tokens(self, text: str) -> list[int]:
        """Token numbers of a text, BOS first; what is beyond ``config.tokens`` is left out, and told once."""
        found = [self.first, *self._tokenizer(text, add_special_tokens=False).input_ids] if text else [self.first]
        if len(found) > self.config.tokens and not self._told:
            self._told = True
            logger.warning(
                "a text has %d tokens and the model reads %d, so that its end is left out: %.60r",
                *(len(found), self.config.tokens, text),
            )
        return found[: self.config.tokens]

    @torch.no_grad()
    def states(self, text: str) -> Tensor:
        """float16 [t, l, E] on the CPU: what is kept of a text. It depends on the text alone, not on a batch."""
        numbers = torch.tensor([self.tokens(text)], device=self.device)
        found = self._model(input_ids=numbers, output_hidden_states=True, use_cache=False).hidden_states
        kept = torch.stack([found[layer][0] for layer in self.layers], dim=1).float()
        return (kept * kept.square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt()).half().cpu()


def conditions(parts: Sequence[Tensor], config: TextConfig, shape: Sequence[int]) -> Tensor:
    """The states of several texts as a network takes them.

    Args:
        parts: [t, l, E] of each text, see ``LanguageModel.states``.
        config: a complete one.
        shape: the network's ``condition_shape``, (n, T, E) or (T, E).

    Returns:
        float32 [B, n, T, E] or [B, T, E]; rows behind a text's last token are 0.
    """
    assert config.layers is not None and config.width is not None, "an incomplete config"
    place = {layer: i for i, layer in enumerate(sorted(set(config.layers)))}
    which = torch.tensor([place[layer] for layer in config.layers])
    out = torch.zeros(len(parts), len(config.layers), config.tokens, config.width)
    for row, part in zip(out, parts, strict=True):
        row[:, : len(part)] = part.float().transpose(0, 1)[which]
    return out if len(shape) == 3 else out[:, 0]


def _loaded(place: Path, device: torch.device) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or a .gguf file.

    Raises:
        UserError: a library is missing, or the files cannot be read.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if is_gguf(place.name):
            import accelerate  # noqa: F401 - transformers reads a .gguf with both of these
            import gguf  # noqa: F401
    except ImportError as error:
        raise missing_extra("a language model", error.name, "text") from None
    where: tuple[str, dict[str, Any]] = (str(place), {"local_files_only": True})
    if is_gguf(place.name):
        where = (str(place.parent), {"gguf_file": place.name})
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(where[0], **where[1])
            model = AutoModelForCausalLM.from_pretrained(where[0], dtype=torch.float32, **where[1])
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"the language model {str(place)!r} cannot be loaded ({detail}); get it again") from None
    return model.eval().requires_grad_(False).to(device), tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and remarks of `transformers`."""
    from transformers.utils import logging as remarks

    before, shown = remarks.get_verbosity(), remarks.is_progress_bar_enabled()
    remarks.set_verbosity_error()
    remarks.disable_progress_bar()
    try:
        # reading a .gguf has a bar of its own, which no setting hides
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        remarks.set_verbosity(before)
        if shown:
            remarks.enable_progress_bar()
