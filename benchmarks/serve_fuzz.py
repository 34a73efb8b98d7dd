"""Broken and odd requests to `udit serve`, from a seed."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_clients import Reply, exchange, http
from serve_load import SEEDS, SETTINGS

WORDS = [
    "",
    "a",
    "ant",
    "0",
    "-1",
    "1e9",
    "null",
    "true",
    "../../etc/passwd",
    "\x00",
    "\ud800",
    "🐜",
    "x" * 3000,
    "%s%n",
]
WORDS += [
    "{{7*7}}",
    "${7*7}",
    "'; DROP TABLE x; --",
    "<script>alert(1)</script>",
    "__proto__",
    "self",
    "__class__",
    "{0}",
]
NUMBERS = [0, 1, -1, 2, 3, 16, 17, 2**31, 2**63 - 1, 2**63, 10**400, -0.0, 0.5, 1e308, 1e-320, 1.0, 3.7]
KEYS = [
    "model",
    "seeds",
    "labels",
    "prompt",
    "negative",
    "sampling",
    "quality",
    "output",
    "id",
    "seed",
    "Model",
    "",
    "steps",
]
FIELDS = ["sampler", "steps", "guidance", "guidance_channels", "guidance_interval", "eta", "clip", "cache", "refresh"]
FIELDS += ["forecast", "keep_guidance", "kind", "self", "stps"]
ALLOWED = {200, 400, 403, 404, 405, 408, 409, 413, 415, 422, 429, 503}


class Fuzzer:
    """Requests from a seed: broken HTTP, broken JSON, wrong values, and valid ones among them."""

    def __init__(self, seed: int, canary: Path) -> None:
        self.draw = random.Random(seed)
        code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
        self.words = [
            *WORDS,
            code,
            f"$(touch {canary})",
            f"`touch {canary}`",
            f"!!python/object/apply:os.system ['{code}']",
        ]

    def value(self, depth: int = 0) -> Any:
        """Any JSON value."""
        kind = self.draw.randrange(7 if depth < 3 else 5)
        if kind < 2:
            return self.draw.choice(self.words)
        if kind < 4:
            return self.draw.choice([*NUMBERS, float("nan"), float("inf")])
        if kind == 4:
            return self.draw.choice([None, True, False])
        if kind == 5:
            return [self.value(depth + 1) for _ in range(self.draw.randrange(4))]
        return {self.draw.choice(self.words): self.value(depth + 1) for _ in range(self.draw.randrange(4))}

    def body(self) -> dict[str, Any]:
        """A request near a valid one."""
        draw = self.draw
        good: dict[str, Any] = {"seeds": [draw.randrange(SEEDS) for _ in range(draw.randint(1, 3))]}
        good["sampling"] = draw.choice([*SETTINGS, {}])
        if draw.random() < 0.5:
            good["labels"] = [0]
        if draw.random() < 0.3:
            good["output"] = draw.choice(["json", "grid", "npz"])
        for _ in range(draw.randrange(3)):
            if draw.random() < 0.5:
                good[draw.choice(KEYS)] = self.value()
            else:
                good["sampling"] = dict(good["sampling"]) if isinstance(good.get("sampling"), dict) else {}
                good["sampling"][draw.choice(FIELDS)] = self.value()
        return good

    def request(self) -> bytes:
        """One request as bytes."""
        draw, kind = self.draw, self.draw.randrange(12)
        if kind < 6:
            return http("POST", "/sample", json.dumps(self.body()).encode())
        if kind == 6:
            return http("POST", "/sample", json.dumps(self.value()).encode() or b"0")
        if kind == 7:
            data = bytearray(json.dumps(self.body()).encode())
            for _ in range(draw.randint(1, 5)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            return http("POST", "/sample", bytes(data))
        if kind == 8:
            body = draw.choice([b"[" * 60000, b'{"a":' * 12000, b"\xff" * 100, b"1" * 5000, b" " * 70000, b'"\\ud800"'])
            return http("POST", "/sample", body)
        if kind == 9:
            method = draw.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"])
            path = draw.choice(
                ["/sample", "/sample/x", "/sample/%00", "/models", "/../etc/passwd", "/docs", "/metrics", "//", "*"]
            )
            return http(method, path, draw.choice([b"", b"{}"]))
        if kind == 10:
            name, text = (
                draw.choice(["content-type", "host", "content-length", "transfer-encoding", "authorization", "cookie"]),
                "",
            )
            text = draw.choice(
                ["", "x", "text/plain", "-1", "99999999999999999999", "chunked", "evil.example", "a" * 5000]
            )
            return http("POST", "/sample", b"{}", **{name: text})
        noise = bytes(draw.randrange(256) for _ in range(draw.randint(1, 200)))
        return draw.choice(
            [
                noise + b"\r\n\r\n",
                b"GET / HTTP/9.9\r\n\r\n",
                b"POST /sample HTTP/1.1\r\n\r\n",
                b"\r\n" * 50 + b"x\r\n\r\n",
            ]
        )


@dataclass
class Fuzzed:
    """What became of fuzzed requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """Answers that should not be."""
    hung: int = 0


async def fuzz(port: int, count: int, canary: Path, seed: int = 0, at_once: int = 16, seconds: float = 1500) -> Fuzzed:
    """Sends fuzzed requests for at most some seconds; some clients leave without waiting for the answer."""
    fuzzer, result, numbers = Fuzzer(seed, canary), Fuzzed(), iter(range(count))

    until = time.monotonic() + seconds

    async def client() -> None:
        for _ in numbers:
            if time.monotonic() > until:
                return
            data = fuzzer.request()
            if fuzzer.draw.random() < 0.05:  # leaves early, in the middle of its request or behind it
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(data[: fuzzer.draw.randint(1, len(data))])
                writer.close()
                result.statuses[-1] += 1
                continue
            try:
                reply = await exchange(port, data)
            except TimeoutError:
                result.hung += 1
                continue
            result.statuses[reply.status] += 1
            if fault := fault_of(reply, data):
                result.faults.append(fault)

    await asyncio.gather(*(client() for _ in range(at_once)))
    return result


def fault_of(reply: Reply, data: bytes) -> str | None:
    """What is wrong with an answer: a status that says that the server failed, or an error that is no single line."""
    about = f"{reply.status} {reply.body[:150]!r} to {data[:300]!r}"
    if reply.status not in ALLOWED:
        return about
    if reply.status < 400 or data.startswith(b"HEAD ") or reply.body.startswith(b"Invalid HTTP request"):
        return None
    try:
        [(key, line)] = json.loads(reply.body).items()
    except (ValueError, AttributeError):
        return about
    return None if key == "error" and line and "\n" not in line and len(line) <= 500 else about
