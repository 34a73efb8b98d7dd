"""What tests of the studio's page share: a tiny run, a server in this process, and gradio's own protocol over HTTP."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runs import image_folder, train
from udit.studio.serve import Server, open_studio

STEPS = (3, 6)
"""Of the checkpoints of the tiny run."""


def tiny_run(out: Path, *overrides: str) -> Path:
    """A run of two classes of 8x8 images, saved at steps 3 and 6, with a sample grid."""
    root = out.parent / f"images-of-{out.name}"
    train(
        out,
        *image_folder(root),
        "training.steps=6",
        "training.sample_every=3",
        "sampling.steps=4",
        "diffusion.steps=20",
        *overrides,
    )
    return out


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Server]:
    """The page of a place at a free port."""
    server = open_studio(root, port=0, device="cpu").start()
    try:
        yield server
    finally:
        server.close()


class Client:
    """One browser tab, as far as the server can tell."""

    def __init__(self, server: Server) -> None:
        self.url = server.url
        self.session = uuid.uuid4().hex
        with urllib.request.urlopen(f"{self.url}config") as answer:
            self.config = json.load(answer)

    def join(self, name: str, data: list[Any]) -> str:
        """Asks for work; the id of its event.

        Raises:
            HTTPError: it is refused.
        """
        [index] = [each["id"] for each in self.config["dependencies"] if each["api_name"] == name]
        body = {"data": data, "fn_index": index, "session_hash": self.session}
        request = urllib.request.Request(
            f"{self.url}gradio_api/queue/join", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["event_id"]

    def listen(self) -> Any:
        """The open stream of what the server tells."""
        return urllib.request.urlopen(f"{self.url}gradio_api/queue/data?session_hash={self.session}", timeout=60)

    def messages(self, stream: Any) -> Iterator[dict[str, Any]]:
        """What is told, until the work is done."""
        for line in stream:
            if line.startswith(b"data: "):
                message = json.loads(line[6:])
                yield message
                if message["msg"] in ("process_completed", "close_stream", "unexpected_error"):
                    return


def values(key: str, seeds: str = "0", steps: int = 4) -> list[Any]:
    """The fields of the Draw tab."""
    return [key, [], seeds, "own", "ddim", steps, 1, 0, 1, 0, False, "ema", "x0"]
