"""What texts, a language model and a network that reads it must fit; ``rules`` lists these rules with all others."""

from __future__ import annotations

from udit.data.config import DataInfo
from udit.run.config import Run


def vectors_are_those_of_texts(run: Run, seen: DataInfo) -> str | None:
    """A model that takes vectors gets those that a language model makes of captions."""
    if not run.model.condition_shape or run.text is not None:
        return None
    if not seen.captioned and run.model.readers == 1:
        return "model.context takes vectors and the data gives labels; leave context out"
    return "the model takes texts and no language model is named for them; set text.source=FOLDER"


def texts_are_for_a_model_that_takes_them(run: Run, seen: DataInfo) -> str | None:
    """A language model is for a model that takes vectors."""
    if run.text is None or run.model.condition_shape:
        return None
    return (
        f"text names a language model and {run.model.family} with its settings takes no texts; take U-DiT-text, or a "
        "U-DiT or U-ViT without classes"
    )


def texts_are_captions(run: Run, seen: DataInfo) -> str | None:
    """A model that takes texts needs images with captions."""
    if run.text is None or not run.model.condition_shape or seen.captioned:
        return None
    return (
        "the model takes texts and the images have none; set data.captions=files or metadata, or data.caption of a "
        "table's column or of shards"
    )


def context_is_the_language_model_s(run: Run, seen: DataInfo) -> str | None:
    """The vectors that a model takes are as wide, and as many, as the language model makes them."""
    shape = run.model.condition_shape
    if run.text is None or not shape or (shape[-2], shape[-1]) == (run.text.tokens, run.text.width):
        return None
    if shape[-1] == run.text.width:
        return f"text.tokens is {run.text.tokens} and model.context.tokens {shape[-2]}; leave the latter out"
    return (
        f"the language model {run.text.source!r} is {run.text.width} channels wide and model.context.width is "
        f"{shape[-1]}; leave that out, or give the language model that the weights were trained with"
    )
