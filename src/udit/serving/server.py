"""``open_server``: models behind HTTP, on a port of this machine."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from udit.errors import UserError, missing_extra
from udit.serving.dispatch import Dispatcher
from udit.serving.gate import Gate
from udit.serving.limits import Limits
from udit.serving.requests import named
from udit.serving.worker import Source

if TYPE_CHECKING:
    import uvicorn

HOST, PORT = "127.0.0.1", 8000
KEY_VARIABLE = "UDIT_SERVE_KEY"
SHORTEST_KEY = 16
log = logging.getLogger(__name__)


class Server:
    """Models that are being served."""

    def __init__(
        self, dispatchers: dict[str, Dispatcher], limits: Limits, bound: socket.socket, key: str | None, local: bool
    ) -> None:
        from udit.serving.api import application

        self.dispatchers = dispatchers
        host, port = bound.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._socket = bound
        hosts = frozenset({"127.0.0.1", "localhost", "::1", host}) if local and key is None else None
        gate = Gate(application(dispatchers, limits), limits, key, hosts)
        self._server = _uvicorn(gate, limits)
        self._end = contextlib.ExitStack()
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serves until Ctrl-C or ``close``: then no request is accepted any more, and those that were are answered.

        A second Ctrl-C ends at once.
        """
        before = None
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:  # uvicorn sends the signal once more when it has ended
            log.info("ended")
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)
            for dispatcher in self.dispatchers.values():
                dispatcher.close()
            self._end.close()

    def start(self) -> Server:
        """Serves in a thread, until ``close``; returns when it answers."""
        self._thread = threading.Thread(target=self.run, daemon=True, name="udit-serve")
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.02)
        return self

    def close(self) -> None:
        """Ends what ``start`` began, as Ctrl-C does."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()


def open_server(
    models: Sequence[str],
    *,
    host: str = HOST,
    port: int = PORT,
    key_file: str | Path | None = None,
    limits: Limits | None = None,
    device: str = "auto",
    weights: Literal["ema", "raw"] = "ema",
    engine: Literal["torch", "onnxruntime", "openvino"] | None = None,
    text_model: str | None = None,
) -> Server:
    """Loads models, each in a worker process of its own, and takes a port; ``run`` or ``start`` of the result serves.

    Args:
        models: run folders, model folders or hub ids, or NAME=MODEL, as requests name them.
        host: the address to listen at; any but this machine's own needs a key.
        port: 0 takes any free one.
        key_file: a file that holds the key; if None, the environment variable ``UDIT_SERVE_KEY`` does.
        limits: of requests.
        device: auto, cpu, cuda, cuda:N or mps.
        weights: "ema" (averaged) or "raw".
        engine: "torch", or the engine of the graph that ``udit.export`` put into the model's folder.
        text_model: the language model of the models that take texts, where it was moved.

    Raises:
        UserError: a model cannot be served, a port is in use, a key or the packages are missing.
    """
    limits, sources = limits or Limits(), named(list(models))
    key = _key(None if key_file is None else Path(key_file))
    local = _is_loopback(host)
    if key is None and not local:
        raise UserError(
            f"host is {host}, which others can reach, and there is no key; put one into a file (--key-file FILE) or "
            f"into {KEY_VARIABLE}, or serve at {HOST}"
        )
    with contextlib.ExitStack() as undo:
        bound = undo.enter_context(_bound(host, port))
        _require_packages()
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="udit-serve-")))
        dispatchers: dict[str, Dispatcher] = {}
        for number, (name, model) in enumerate(sources.items()):
            source = Source(model, weights, device, engine, str(folder / str(number)), limits.memory, text_model)
            dispatcher = dispatchers[name] = Dispatcher(name, source, limits)
            undo.callback(dispatcher.close)
            dispatcher.begin()
        for dispatcher in dispatchers.values():
            if (line := dispatcher.start().training) is not None:
                log.info("%s is not at its end: serving %s", dispatcher.source.model, line)
        server = Server(dispatchers, limits, bound, key, local)
        server._end = undo.pop_all()
        return server


def _uvicorn(gate: Gate, limits: Limits) -> uvicorn.Server:
    import uvicorn

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return uvicorn.Server(
        uvicorn.Config(
            gate,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            limit_concurrency=limits.connections,
            backlog=1024,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(limits.seconds) + 1,
            server_header=False,
            proxy_headers=False,
        )
    )


def _require_packages() -> None:
    """Refuses to begin without what serving needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise missing_extra("`udit serve`", error.name, "serve") from None


def _key(file: Path | None) -> str | None:
    """The key that clients must send, or None.

    Raises:
        UserError: the file cannot be read, or the key is short or has letters that a header cannot carry.
    """
    if file is not None:
        try:
            key, where = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise UserError(f"cannot read the key in {file}: {reason}; name a file that holds it alone") from None
    else:
        key, where = os.environ.get(KEY_VARIABLE, "").strip(), KEY_VARIABLE
        if not key:
            return None
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"the key in {where} must have at least {SHORTEST_KEY} letters and digits and no spaces; make one: "
            "openssl rand -hex 24"
        )
    return key


def _is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    Raises:
        UserError: it is no address of this machine.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"host is {host!r}: {reason}; give an address of this machine, e.g. {HOST}") from None
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def _bound(host: str, port: int) -> socket.socket:
    """A socket at a port.

    Raises:
        UserError: the port is taken, or is no port, or the host is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}; ports run from 1 to 65535, and 0 takes any free one")
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(1024)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"host is {host}, which is no address of this machine; e.g. {HOST}") from None
        cause = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UserError(f"port {port} {cause}; give another one, or 0 for any free one: --port 0") from None
    return bound
