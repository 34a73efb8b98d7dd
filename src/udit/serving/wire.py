"""Messages between the server and its worker process: a line of JSON, and bytes behind it; free of torch.

Both ends are processes of one program on one machine. Nothing that a client sends is unpickled or run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

Kind = Literal["draw", "stop", "ready", "unusable", "step", "images", "stopped", "error"]


@dataclass(frozen=True)
class Message:
    """One message."""

    kind: Kind
    """draw and stop go to the worker; it answers the others."""
    batch: int = 0
    values: dict[str, Any] | None = None
    payload: bytes = b""

    def send(self, connection: Connection) -> None:
        """Sends it.

        Raises:
            OSError: the other process is gone.
        """
        head = json.dumps([self.kind, self.batch, self.values]).encode()
        connection.send_bytes(head + b"\n" + self.payload)


def receive(connection: Connection) -> Message:
    """The next message.

    Raises:
        OSError, EOFError: the other process is gone.
    """
    head, _, payload = connection.recv_bytes().partition(b"\n")
    kind, batch, values = json.loads(head)
    return Message(kind, batch, values, payload)
