"""U-ViT as reference files describe it."""

from __future__ import annotations

import json
import re

from udit.errors import UserError
from udit.models.parity import Described, Systems, Words, isotropic, label_rows, take
from udit.models.uvit.config import UViTConfig
from udit.spec.base import parse


def u_vit(words: Words, size: tuple[int, int]) -> Described:
    """See ``Builder``."""
    values = {
        **isotropic(words),
        **label_rows(words),
        **take(words, "final_conv", "learn_sigma"),
        "context": _context(words),
    }
    return Described(parse(UViTConfig, values, where="model"))


def _context(words: Words) -> dict[str, int] | None:
    """Number and width of a text's vectors, from whichever words of the file describe one."""
    said = {word: words.pop(word) for word in list(words) if re.search("context|text|clip", word)}
    if not any(said.values()):
        return None
    text = json.dumps(said)
    shape = re.search(r"(\d+), *(\d+) *[\])]", text)
    tokens, width = re.search(r"tokens?\W+(\d+)", text), re.search(r"(?:dim|width|channels)\W+(\d+)", text)
    if tokens and width:
        return {"tokens": int(tokens[1]), "width": int(width[1])}
    if shape is None:
        raise UserError(f"the file describes a text as {text}; give the number of its vectors and their width")
    return {"tokens": int(shape[1]), "width": int(shape[2])}


SYSTEMS: Systems = {"u-vit": u_vit}
