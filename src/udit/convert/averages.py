"""Names of averaged weights, as programs of the field give them."""

from __future__ import annotations

import re

AVERAGES = ("ema", "emas", "avg", "swa", "shadow", "polyak", "average", "averages", "averaged", "averaging")
"""Words in such names: ``model_ema``, ``ema_model``, ``state_dict_ema``, ``ModelEMA``, ``averaged_net`` ..."""
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
MOMENTS = re.compile(r"(exp|square|grad)_avg", re.IGNORECASE)
"""In the name of an optimiser's averages, which are no weights."""
COUNTER = "n_averaged"
"""What torch's ``AveragedModel`` keeps beside its weights."""


def is_average(name: str) -> bool:
    """Whether a path of keys, joined by dots, is that of averaged weights."""
    return any(
        word.lower() in AVERAGES
        for part in name.split(".")
        if not MOMENTS.search(part) and part != COUNTER
        for word in WORD.findall(part)
    )
