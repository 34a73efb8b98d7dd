"""What tests of the studio share: a tiny run, a server in this process, and gradio's own protocol over HTTP."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from runs import image_folder, train
from udit.assemble import System
from udit.studio.serve import Server, open_studio

STEPS = (3, 6)
"""Of the checkpoints of the tiny run."""
ENDS = ("process_completed", "close_stream", "unexpected_error")
"""Messages after which nothing more is told of a drawing."""


def tiny_run(out: Path) -> Path:
    """A run of two classes of 8x8 images, saved at steps 3 and 6, with sample grids."""
    images = image_folder(out.parent / f"images-of-{out.name}")
    train(out, *images, "training.steps=6", "training.sample_every=3", "sampling.steps=4", "diffusion.steps=100")
    return out


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Server]:
    """The page of a place at a free port."""
    server = open_studio(root, port=0, device="cpu").start()
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def slow_steps(seconds: float) -> Iterator[list[float]]:
    """Steps take as long; yields the times at which each has ended."""
    ended: list[float] = []
    real = System.steps

    def slowly(*given: Any, **options: Any) -> Iterator[Any]:
        for step in real(*given, **options):
            time.sleep(seconds)
            ended.append(time.monotonic())
            yield step

    with mock.patch.object(System, "steps", slowly):
        yield ended


class Client:
    """One browser tab, as far as the server can tell."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = uuid.uuid4().hex
        with urllib.request.urlopen(f"{self.url}config", timeout=30) as answer:
            self.events = {each["api_name"]: each["id"] for each in json.load(answer)["dependencies"]}

    def join(self, name: str, data: list[Any]) -> None:
        """Asks for a drawing.

        Raises:
            HTTPError: it is refused.
        """
        body = {"data": data, "fn_index": self.events[name], "session_hash": self.session}
        request = urllib.request.Request(
            f"{self.url}gradio_api/queue/join", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["event_id"]

    def listen(self) -> Any:
        """The open stream of what the server tells."""
        return urllib.request.urlopen(f"{self.url}gradio_api/queue/data?session_hash={self.session}", timeout=120)


def messages(stream: Any) -> Iterator[dict[str, Any]]:
    """What is told, until the drawing has ended."""
    for line in stream:
        if line.startswith(b"data: "):
            message = json.loads(line[6:])
            yield message
            if message["msg"] in ENDS:
                return


def draw_values(key: str, seeds: str = "0", steps: int = 4) -> list[Any]:
    """The fields of the Draw tab, in order."""
    setting = ["own", "ddim", steps, 1, 0, 1, "cfg", 0, 0, False, "", None, "ema"]
    return [key, [], "", "", seeds, *setting, "x0", None, 0.6]
