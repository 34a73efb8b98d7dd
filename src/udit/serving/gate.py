"""What every request passes before the API: who may ask, from where, how much and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import Any

from udit.serving.limits import Limits, Refusal, mistaken

OPEN = ("/health", "/docs", "/openapi.json")
"""Paths that tell nothing about the models, and need no key."""
HELD = "udit.held"
"""Where a request's scope keeps what is given back when its answer has been sent."""
ARRIVAL = 10.0
"""Seconds that a request's body may take to arrive, and an answer to be taken, beyond the time to make it."""

DRAINED, DRAIN_SECONDS = 2**20, 2.0
"""Bytes that are taken of a refused request's body, and for how long."""

App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
log = logging.getLogger(__name__)


class Gate:
    """An ASGI application in front of another.

    Args:
        app: the API.
        limits: of requests.
        key: that clients must send as ``Authorization: Bearer KEY``; None on loopback only.
        hosts: names by which the server may be asked, without port; None for any. They keep a page of another site
            from reaching a server without a key through a name of its own that it points at this machine.
    """

    def __init__(self, app: App, limits: Limits, key: str | None, hosts: frozenset[str] | None) -> None:
        self.app = app
        self.limits = limits
        self._digest = None if key is None else _digest(key.encode())
        self._hosts = hosts

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Passes on what may pass."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        try:
            self._check(scope["path"], headers)
        except Refusal as refusal:
            await _drain(receive)
            await answer(send, refusal)
            return
        begun = False

        async def tell(event: dict[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(event)

        with ExitStack() as held:
            scope[HELD] = held
            try:
                async with asyncio.timeout(self.limits.seconds + 2 * ARRIVAL):
                    await self.app(scope, receive, tell)
            except TimeoutError:
                if not begun:
                    await answer(send, Refusal(504, "the answer took too long; ask again later", "late", 5))

    def _check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuses what comes without the key or by a strange name, or is too large.

        Raises:
            Refusal: 401, 403 or 413.
        """
        if self._hosts is not None and _name(headers.get(b"host", b"")) not in self._hosts:
            raise mistaken("the server is asked by another name than this machine's; use 127.0.0.1 or localhost", 403)
        if self._digest is not None and path not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(_digest(given.strip()), self._digest):
                raise mistaken("the key is missing or wrong; send the header Authorization: Bearer KEY", 401)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 15 or int(length) > self.limits.body:
            raise mistaken(f"the body is too long; it takes at most {self.limits.body} bytes", 413)


async def _drain(receive: Any) -> None:
    """Takes what a refused client still sends, up to a limit: closed on it, a connection loses the answer as well."""
    taken = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while taken < DRAINED:
                event = await receive()
                if event["type"] != "http.request" or not event.get("more_body", False):
                    return
                taken += len(event.get("body", b""))


async def answer(send: Any, refusal: Refusal) -> None:
    """Sends a refusal."""
    body, headers = error_body(refusal), [(b"content-type", b"application/json")]
    headers += [(key.encode(), value.encode()) for key, value in error_headers(refusal).items()]
    headers.append((b"content-length", str(len(body)).encode()))
    with contextlib.suppress(OSError):
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def error_body(refusal: Refusal) -> bytes:
    """``{"error": LINE}``; ASCII, as a client's text may hold what UTF-8 cannot."""
    line = " ".join(str(refusal).split())
    return json.dumps({"error": line if len(line) <= 500 else f"{line[:497]}..."}).encode("ascii")


def error_headers(refusal: Refusal) -> dict[str, str]:
    """Of an answer with an error."""
    headers = {"cache-control": "no-store"}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def _digest(key: bytes) -> bytes:
    """Of equal length for all keys, so that comparing takes the same time."""
    return hashlib.sha256(key).digest()


def _name(host: bytes) -> str:
    """The name in a Host header, without the port."""
    text = host.decode("latin-1").lower()
    return text.partition("]")[0].removeprefix("[") if text.startswith("[") else text.partition(":")[0]
