"""A stand-in for the worker process of a server: it draws nothing, loads no torch, and does what a seed tells it to.

Seed s gives the one pixel s modulo 256. Seeds from 1000 on: 1000 ends the process; 1001 ends it the first time, which a
file records; 1002 takes a step every hundredth of a second until it is stopped; 1003 is a setting that does not fit.
"""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from udit.models.catalog import CATALOG
from udit.run.system import SystemConfig
from udit.serving.wire import Message, receive
from udit.serving.worker import Source

DIES, DIES_ONCE, UNLIMITED, MISFIT = 1000, 1001, 1002, 1003


def config() -> SystemConfig:
    """Of a model with four classes, two of them with names."""
    return SystemConfig(model=CATALOG["U-DiT-tiny"].config.replace(num_classes=4), id2label=("cat", "dog"))


def facts(fingerprint: str) -> dict[str, object]:
    """What a worker tells first."""
    setting = {"steps": 7}
    quality = {"draft": setting, "good": setting, "best": setting}
    return {
        "config": config().model_dump(mode="json"),
        "fingerprint": fingerprint,
        "quality": quality,
        "shape": [1, 1, 1],
        "training": None,
    }


def main(connection: Connection, source: Source) -> None:
    """As ``udit.serving.worker.main``; ``source.model`` is a folder for what is to be remembered."""
    folder = Path(source.model)
    if (folder / "broken").exists():
        Message("unusable", values={"text": f"no model at {folder}"}).send(connection)
        return
    fingerprint = (folder / "weights").read_text() if (folder / "weights").exists() else "same"
    Message("ready", values=facts(fingerprint)).send(connection)
    try:
        while True:
            if (order := receive(connection)).kind == "draw":
                draw(order, folder).send(connection) if UNLIMITED not in order.values["seeds"] else step(
                    order, connection
                )
    except (EOFError, OSError):
        return


def draw(order: Message, folder: Path) -> Message:
    """The answer to a batch."""
    seeds = order.values["seeds"]
    with (folder / "batches").open("a") as file:
        file.write(f"{seeds}\n")
    if DIES in seeds or (DIES_ONCE in seeds and not (folder / "died").exists()):
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if MISFIT in seeds:
        return Message("error", order.batch, {"text": "steps is 7; it does not fit", "status": 422})
    settings = [{"seed": seed} for seed in seeds]
    return Message("images", order.batch, {"shape": [1, 1, 1], "settings": settings}, bytes(s % 256 for s in seeds))


def step(order: Message, connection: Connection) -> None:
    """Steps until the batch is stopped."""
    while not (connection.poll() and receive(connection) == Message("stop", order.batch)):
        Message("step", order.batch).send(connection)
        time.sleep(0.01)
    Message("stopped", order.batch).send(connection)
