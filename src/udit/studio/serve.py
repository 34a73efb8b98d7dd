"""The server of the page: on this machine alone, with what the page needs and nothing else."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udit.errors import UserError, missing_extra
from udit.studio.place import find
from udit.studio.session import Studio

if TYPE_CHECKING:
    import uvicorn

HOST = "127.0.0.1"
PORT = 7860
MOST_BYTES = 8_000_000
"""Of an uploaded image."""
CONNECTIONS = 300
"""Open at a time; further ones are answered with 503."""
SERVED = re.compile(
    r"/(?:(?:assets|static)/[\w./-]+|theme\.css|favicon\.ico|manifest\.json|config/?|robots\.txt"
    r"|gradio_api/(?:info/?|startup-events|queue/(?:join|data)|run/predict|cancel|reset/?|upload|upload_progress"
    r"|heartbeat/\w+|file=/.+))?"
)
"""Paths that the page uses. gradio has more, e.g. one that fetches other hosts' files for anyone who asks."""


class Gate:
    """Answers what the page does not use, and what is not asked of this machine by its own name, with 404 and 403.

    The second keeps a page of another host from reading this one through a name that it points at 127.0.0.1.
    """

    def __init__(self, app: Callable[..., Any], files: Path) -> None:
        self.app = app
        self.files = str(files.resolve())

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Passes on what may pass."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").rpartition(":")[0]
        if scope["type"] != "http" or host not in (HOST, "localhost"):
            await _refuse(send, 403)
        elif not self.passes(scope["path"]):
            await _refuse(send, 404)
        else:
            await self.app(scope, receive, send)

    def passes(self, path: str) -> bool:
        """Whether the page uses a path; files are those of this server's own folder."""
        if not SERVED.fullmatch(path):
            return False
        _, is_file, name = path.partition("/gradio_api/file=")
        return not is_file or os.path.realpath(name).startswith(self.files + os.sep)


async def _refuse(send: Any, code: int) -> None:
    await send({"type": "http.response.start", "status": code, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"not here\n" if code == 404 else b"not from there\n"})


class Server:
    """A page that is being served."""

    def __init__(self, studio: Studio, port: int) -> None:
        """Takes the port and builds the page.

        Raises:
            UserError: gradio is missing, or the port is taken.
        """
        self.studio = studio
        with contextlib.ExitStack() as undo:
            undo.callback(studio.close)
            undo.callback(_environment(studio.folder))
            taken = undo.enter_context(_bound(port))
            host, number = taken.getsockname()
            self.url = f"http://{host}:{number}/"
            self._sockets = [taken]
            self._server = _server(studio, number)
            self._end = undo.pop_all()

    def run(self) -> None:
        """Serves until Ctrl-C or ``close``."""
        try:
            self._server.run(sockets=self._sockets)
        except KeyboardInterrupt:  # uvicorn has ended by then
            pass
        finally:
            self._end.close()

    def start(self) -> Server:
        """Serves in a thread, until ``close``; returns when the page answers."""
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.02)
        return self

    def close(self) -> None:
        """Ends what ``start`` began."""
        self._server.should_exit = True
        self._thread.join(10)


def _server(studio: Studio, port: int) -> uvicorn.Server:
    """The page behind its gate, with every limit of gradio and of the server set."""
    try:
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        from udit.studio import page
    except ImportError as error:
        raise missing_extra("`udit studio`", error.name, "studio") from None
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    gr.mount_gradio_app(
        app,
        page.build(studio),
        path="/",
        server_name=HOST,
        server_port=port,
        footer_links=[],
        run_history=False,
        root_path="",
        allowed_paths=[],
        blocked_paths=[],
        show_error=True,
        max_file_size=MOST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=page.theme(),
        css=page.style(),
    )
    config = uvicorn.Config(
        Gate(app, studio.folder),
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="on",
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    return uvicorn.Server(config)


def open_studio(
    root: str | Path = "runs", *, port: int = PORT, device: str = "auto", text_model: str | None = None
) -> Server:
    """The page for a place, which ``run`` or ``start`` serves.

    Args:
        root: a run, a model folder, a folder of them, or what else ``udit.load`` takes.
        port: of 127.0.0.1; 0 takes any free one.
        device: auto, cpu, cuda, cuda:N or mps.
        text_model: the language model that models of texts were trained with, where it was moved.

    Raises:
        UserError: there is no model and no run, gradio is missing, or the port is taken.
    """
    return Server(Studio(find(root), device, text_model), port)


def _bound(port: int) -> socket.socket:
    """A socket at a port of this machine.

    Raises:
        UserError: the port is taken, or is no port.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}; ports run from 1 to 65535, and 0 takes any free one")
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOST, port))
        taken.listen(128)
    except OSError as error:
        taken.close()
        cause = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UserError(f"port {port} {cause}; give another one, or 0 for any free one: --port 0") from None
    return taken


def _environment(folder: Path) -> Callable[[], None]:
    """Tells gradio, which asks the environment, where files go and that nothing is reported; returns what undoes it.

    Of every event it also makes a summary of all before it, for a page of statistics that is not served here.
    """
    ours = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": str(folder)}
    ours |= {"GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000", "GRADIO_ANALYTICS_MAX_EVENTS": "1000"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return restore
