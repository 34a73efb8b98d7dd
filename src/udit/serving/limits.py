"""What a server takes on, and how it says that it does not; free of torch and of HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from udit.errors import UserError
from udit.spec.base import Spec, parse


class Limits(Spec):
    """What one request, and all of them together, may ask for."""

    images: PositiveInt = 16
    """Images of one request."""
    steps: PositiveInt = 250
    """Network evaluations per image."""
    pixels: PositiveInt = 1 << 24
    """Images of one request times their height and width; 16.8 million are 16 images of 1024x1024."""
    seconds: PositiveFloat = 120.0
    """From the arrival of a request to its answer."""
    memory: PositiveFloat = 4.0
    """GiB that the worker process may take beyond the loaded model."""
    queue: PositiveInt = 64
    """Requests that are accepted and not answered yet, of one model."""
    batch: PositiveInt = 16
    """Images that are sampled together."""
    connections: PositiveInt = 1000
    """Open at a time."""
    body: Annotated[int, Field(ge=1024)] = 65536
    """Bytes of a request."""


@dataclass
class Refusal(Exception):
    """A request that is not answered with images: why, as one line."""

    status: int
    """Of HTTP."""
    text: str
    """Value, rule and remedy."""
    outcome: str
    """Under which the metrics count it."""
    retry_after: int | None = None
    """Seconds after which it may be asked again."""

    def __str__(self) -> str:
        """The line."""
        return self.text


def full(waiting: int, seconds: int) -> Refusal:
    """The queue holds as many requests as it may."""
    return Refusal(
        429, f"{waiting} requests wait, as many as may; ask again in {seconds} s", "refused", max(1, seconds)
    )


def late(seconds: float) -> Refusal:
    """A request was not answered in time."""
    return Refusal(
        504, f"not answered within {seconds:g} s; ask for fewer images or steps, or ask again later", "late", 1
    )


def cancelled() -> Refusal:
    """A request was cancelled by DELETE, or its client is gone."""
    return Refusal(409, "the request was cancelled; send it again if it is still wanted", "cancelled")


def closing() -> Refusal:
    """The server ends."""
    return Refusal(503, "the server is about to end; ask again when it is back", "refused", 5)


def lost(detail: str) -> Refusal:
    """The worker process ended twice while it drew a request, or cannot be started."""
    return Refusal(503, f"{detail}; ask again, or see the server's log", "lost", 5)


def mistaken(text: str, status: int = 422) -> Refusal:
    """A request that no server of this model can answer."""
    return Refusal(status, text, "mistaken")


def from_options(options: Mapping[str, float]) -> Limits:
    """Limits by the command line's names for them.

    Raises:
        UserError: one is not positive.
    """
    for option, value in options.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{option} is {value:g}; it must be greater than 0")
    fields = {"batch-size": "batch"}
    words = {option: option.removeprefix("--").removeprefix("max-") for option in options}
    return parse(Limits, {fields.get(words[option], words[option]): value for option, value in options.items()})
