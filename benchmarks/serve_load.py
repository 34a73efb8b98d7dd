"""Many clients that ask `udit serve` for images at once, while its worker process is killed or not."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import random
import re
import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from serve_clients import Served, exchange, http, post

SETTINGS: list[dict[str, Any]] = [{"steps": 4}, {"steps": 4, "guidance": 2.0}, {"steps": 6}]
SEEDS = 40


@dataclass
class Load:
    """What happened to some requests."""

    answered: int = 0
    images: int = 0
    equal: int = 0
    """Images that are bit-identical to those of single-image batches."""
    largest_difference: int = 0
    """In levels of 255."""
    refusals: list[float] = field(default_factory=list)
    """Seconds of each."""
    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    """Other answers."""

    def summary(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "answered": self.answered,
            "images": self.images,
            "bit_identical_images": self.equal,
            "largest_difference_of_255": self.largest_difference,
            "refused_attempts": len(self.refusals),
            "refusal_seconds_p50": percentile(self.refusals, 0.5),
            "refusal_seconds_p99": percentile(self.refusals, 0.99),
            "answer_seconds_p50": percentile(self.latencies, 0.5),
            "answer_seconds_p99": percentile(self.latencies, 0.99),
            "errors": dict(self.errors),
        }


def percentile(values: list[float], share: float) -> float | None:
    """The smallest value that at least this share is at most."""
    return round(sorted(values)[math.ceil(share * len(values)) - 1], 4) if values else None


def reference(model: str) -> dict[tuple[int, int, int], np.ndarray]:
    """{(setting, seed, label): uint8 [H, W] or [H, W, C]} of every image that the load asks for, each drawn alone."""
    import udit

    found, count = {}, udit.load(model).config.classes.count
    for s, setting in enumerate(SETTINGS):
        for label in range(min(count, 3)):
            drawn = udit.generate(model, range(SEEDS), [label], sampling=setting, batch_size=1)
            for seed, image in enumerate(drawn.images().numpy()):
                found[s, seed, label] = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    return found


async def load(port: int, clients: int, requests: int, wanted: dict[tuple[int, int, int], np.ndarray]) -> Load:
    """Clients that each ask, and ask again when they are refused, until all requests are answered."""
    result, numbers = Load(), iter(range(requests))
    labels = sorted({label for _, _, label in wanted})

    async def client(place: int) -> None:
        await asyncio.sleep(0.02 * place)  # people do not begin in the same instant
        for number in numbers:
            draw = random.Random(number)
            setting, count = draw.randrange(len(SETTINGS)), draw.randint(1, 4)
            keys = [(setting, draw.randrange(SEEDS), draw.choice(labels)) for _ in range(count)]
            body = {"seeds": [k[1] for k in keys], "labels": [k[2] for k in keys], "sampling": SETTINGS[setting]}
            for _ in range(400):
                reply = await post(port, body | {"output": "json"})
                if reply.status != 429:
                    break
                result.refusals.append(reply.seconds)
                await asyncio.sleep(min(3, int(reply.headers["retry-after"])) * draw.uniform(0.5, 1.5))
            if reply.status != 200:
                told = json.loads(reply.body)["error"] if reply.body else "closed without an answer"
                result.errors[f"{reply.status}: {re.sub(r'[0-9]+', 'N', told)}"] += 1
                continue
            result.answered += 1
            result.latencies.append(reply.seconds)
            images = json.loads(reply.body)["images"]
            assert len(images) == len(keys)
            for key, image in zip(keys, images, strict=True):
                assert (image["settings"]["seed"], image["settings"]["label"]) == key[1:]
                pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["png"])))).astype(int)
                worst = int(np.abs(pixels - wanted[key]).max())
                result.images += 1
                result.equal += worst == 0
                result.largest_difference = max(result.largest_difference, worst)

    await asyncio.gather(*(client(place) for place in range(clients)))
    return result


async def load_and_kill(at: Served, clients: int, requests: int, wanted: dict[Any, np.ndarray], kills: int) -> Load:
    """A load during which the worker process is killed several times, each time when there is one."""

    async def kill() -> None:
        for _ in range(kills):
            await asyncio.sleep(1.0)
            for _ in range(200):
                if workers := at.workers():
                    break
                await asyncio.sleep(0.1)
            while json.loads((await exchange(at.port, http("GET", "/health"))).body)["status"] != "ok":
                await asyncio.sleep(0.1)
            workers = at.workers()
            os.kill(workers[0], signal.SIGKILL)

    result, _ = await asyncio.gather(load(at.port, clients, requests, wanted), kill())
    return result
