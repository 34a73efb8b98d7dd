"""What fields, conditions beside the noisy image and alignment must fit; ``rules`` lists these with all others."""

from __future__ import annotations

from udit.data.config import DataInfo
from udit.run.config import Run


def codec_is_the_data_s(run: Run, seen: DataInfo) -> str | None:
    """Fields are floats and keep them; images are bytes."""
    fields, codec = run.data.kind == "fields", run.codec.kind
    if fields == (codec == "field"):
        return None
    if fields:
        return f"codec.kind is {codec} and fields are no images of 8 bits; leave codec out"
    return f"codec.kind is field and data.kind {run.data.kind}, whose images are of 8 bits; set codec.kind=identity"


def condition_is_of_pixels(run: Run, seen: DataInfo) -> str | None:
    """A condition is made of what the network sees, which must be pixels or fields."""
    if run.data.condition is None or run.codec.kind in ("identity", "field"):
        return None
    return (
        f"data.condition is made of pixels and codec.kind is {run.codec.kind}; set codec.kind=identity, or leave "
        "data.condition out"
    )


def condition_is_of_images(run: Run, seen: DataInfo) -> str | None:
    """Clips have no condition beside them."""
    if run.data.condition is None or run.model.clip_frames is None:
        return None
    return f"data.condition is for images and {run.model.family} draws clips; leave data.condition out"


def previous_state_is_of_fields(run: Run, seen: DataInfo) -> str | None:
    """Only fields have an order in time."""
    if run.data.condition is None or run.data.condition.kind != "previous" or run.data.kind == "fields":
        return None
    return f"data.condition is previous and data.kind {run.data.kind} has no order in time; take data.kind=fields"


def condition_channels_are_the_condition_s(run: Run, seen: DataInfo) -> str | None:
    """The network takes what the condition has."""
    wanted = 0 if run.data.condition is None else run.data.condition.channels(seen)
    if run.model.condition_channels == wanted:
        return None
    return (
        f"model.condition_channels is {run.model.condition_channels} and data.condition has {wanted}; leave "
        "condition_channels out"
    )


def alignment_is_of_whole_weights(run: Run, seen: DataInfo) -> str | None:
    """A projector is not split over ranks."""
    if run.training.align is None or run.training.parallel == "ddp":
        return None
    return (
        f"training.align needs all weights on each rank and training.parallel is {run.training.parallel}; set it to ddp"
    )
