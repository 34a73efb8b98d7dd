"""TensorBoard's event file, written record by record: its own writer would report a full disk as a traceback."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.summary.writer.record_writer import RecordWriter

_STRING = 7
"""DT_STRING of tensors."""


class EventLog:
    """Scalars over steps, for TensorBoard to show; ``metrics.jsonl`` is the log that counts."""

    def __init__(self, folder: Path, step: int) -> None:
        """Opens a new event file for the steps after ``step``; TensorBoard drops what older files hold of these.

        Raises:
            OSError: the disk refuses it.
        """
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() / 1e9:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb", buffering=0))
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, scalars: dict[str, float], texts: Mapping[str, str]) -> None:
        """Adds the scalars of a step, and texts under "alarms/".

        Raises:
            OSError: the disk refuses it.
        """
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        values += [_text(f"alarms/{name}", text) for name, text in texts.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def image(self, step: int, path: Path) -> None:
        """Adds a PNG as "samples".

        Raises:
            OSError: the disk refuses it.
        """
        data = path.read_bytes()
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))  # of the PNG's first chunk
        image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=data)
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag="samples", image=image)])))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        """Closes the file."""
        self._records.close()


def _text(tag: str, text: str) -> Summary.Value:
    """A text as TensorBoard's page of texts shows it."""
    kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=tag, metadata=kind, tensor=TensorProto(dtype=_STRING, string_val=[text.encode()]))
