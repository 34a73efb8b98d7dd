"""The HTTP API: its routes, as a FastAPI application over dispatchers."""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from udit import __version__
from udit.serving.answers import Answer, encode
from udit.serving.dispatch import Dispatcher
from udit.serving.gate import ARRIVAL, HELD, error_body, error_headers
from udit.serving.limits import Limits, Refusal, mistaken
from udit.serving.metrics import TYPE, page
from udit.serving.page import HEADERS
from udit.serving.page import page as docs_page
from udit.serving.queue import Drawn, Job
from udit.serving.requests import SampleRequest, chosen, order_of, read_request, schema

ENCODERS = 2
"""Threads that make PNGs."""
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The body is no JSON object."},
    401: {"description": "The key is missing or wrong."},
    404: {"description": "No such model, request or path."},
    409: {"description": "The request was cancelled, or its id is in use."},
    413: {"description": "The body is too long."},
    415: {"description": "The body is not application/json."},
    422: {"description": "An unknown key, or a value that does not fit; nothing was drawn."},
    429: {"description": "As many requests wait as may; Retry-After says when to ask again."},
    500: {"description": "Sampling failed; the server's log has the reason."},
    503: {"description": "No worker, out of memory, or about to end; Retry-After says when to ask again."},
    504: {"description": "Not answered in time."},
}
SAMPLE_BODY = {"content": {"application/json": {"example": {"seeds": [0, 1], "sampling": {"steps": 20}}}}}


class Api:
    """What the routes share."""

    def __init__(self, dispatchers: Mapping[str, Dispatcher], limits: Limits) -> None:
        self.dispatchers = dispatchers
        self.limits = limits
        self.named: dict[str, Job] = {}
        """Requests on their way that their clients gave an id."""
        self.encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="udit-serve-encode")

    async def sample(self, request: Request) -> Response:
        """Answers one request for images."""
        begun = time.monotonic()
        wanted = read_request(await _body(request, self.limits.body))
        dispatcher = self.dispatchers[chosen(wanted.model, list(self.dispatchers))]
        try:
            answer = await self._answer(request, wanted, dispatcher)
        except Refusal as refusal:
            dispatcher.metrics.answer(refusal.outcome)
            raise
        dispatcher.metrics.answer("answered", time.monotonic() - begun)
        return Response(answer.body, media_type=answer.media_type, headers={"cache-control": "no-store"})

    async def _answer(self, request: Request, wanted: SampleRequest, dispatcher: Dispatcher) -> Answer:
        facts = dispatcher.facts
        output = wanted.output or ("png" if len(wanted.seeds) == 1 else "json")
        if output == "png" and len(wanted.seeds) > 1:
            raise mistaken(f"output is png and seeds are {len(wanted.seeds)}; take grid, npz or json, or one seed")
        order = order_of(wanted, facts, self.limits)
        if wanted.id is not None and wanted.id in self.named:
            raise mistaken(f"id is {wanted.id!r}, of a request that is on its way; give each its own", 409)
        held = request.scope[HELD]
        job = held.enter_context(dispatcher.accepted(order))
        if wanted.id is not None:
            self.named[wanted.id] = job
            held.callback(self.named.pop, wanted.id)
        images = await _unless_gone(job, request, dispatcher)
        return await asyncio.get_running_loop().run_in_executor(self.encoders, encode, images, output, facts.classes)

    def cancel(self, name: str) -> dict[str, Any]:
        """Cancels a request by its id."""
        job = self.named.get(name)
        if job is None:
            raise mistaken(f"no request {name[:64]!r} is on its way; it is answered, or was sent without this id", 404)
        for dispatcher in self.dispatchers.values():
            dispatcher.cancel(job)
        return {"id": name, "cancelled": True}

    def health(self) -> tuple[int, dict[str, Any]]:
        """Whether every model can be sampled from."""
        down = [name for name, dispatcher in self.dispatchers.items() if not dispatcher.up]
        return (503, {"status": "no worker"}) if down else (200, {"status": "ok"})

    def models(self) -> dict[str, Any]:
        """What is served."""
        return {"models": [_described(each) for each in self.dispatchers.values()], "limits": self.limits.model_dump()}

    def metrics(self) -> str:
        """Of all models, for Prometheus."""
        lines = [line for name, each in self.dispatchers.items() for line in each.metrics.text(name, each.gauges())]
        return page(lines)


def application(dispatchers: Mapping[str, Dispatcher], limits: Limits) -> FastAPI:
    """The API of some models, which have been started."""
    api = Api(dispatchers, limits)
    app = FastAPI(
        title="udit serve",
        version=__version__,
        description="Images of diffusion models. The same seed, label or prompt, and setting give the same image. "
        'Errors are JSON: {"error": "one line"}.',
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    sample_body = {**SAMPLE_BODY, "required": True}
    sample_body["content"]["application/json"]["schema"] = schema()  # type: ignore[index]
    types: dict[str, Any] = {kind: {} for kind in ("image/png", "application/json", "application/octet-stream")}
    answers = {**ERRORS, 200: {"description": "The images, as output says.", "content": types}}

    @app.post("/sample", responses=answers, response_class=Response, openapi_extra={"requestBody": sample_body})
    async def sample(request: Request) -> Response:
        """Sample images. Closing the connection cancels the request."""
        return await api.sample(request)

    @app.delete("/sample/{id}", responses={404: ERRORS[404]})
    async def cancel(id: str) -> dict[str, Any]:  # noqa: A002 - the path's name for it
        """Cancel a request that was sent with this id; what is drawn for it alone stops within one step."""
        return api.cancel(id)

    @app.get("/models")
    async def models() -> dict[str, Any]:
        """What is served: classes, settings, image sizes, and the server's limits."""
        return api.models()

    @app.get("/health", responses={503: {"description": "A model has no worker process at the moment."}})
    async def health() -> Response:
        """Whether every model can be sampled from."""
        code, values = api.health()
        return Response(f'{{"status":"{values["status"]}"}}', code, media_type="application/json")

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(api.metrics(), headers={"content-type": TYPE})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """This API for people."""
        return Response(docs_page(app.openapi()), media_type="text/html", headers=HEADERS)

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return _error(refusal)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path[:100]}"
        return _error(mistaken(f"there is no {where}; GET /docs lists what there is", error.status_code))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _error(Refusal(500, f"the server failed ({type(error).__name__}); see its log", "failed"))

    return app


def _error(refusal: Refusal) -> Response:
    body, headers = error_body(refusal), error_headers(refusal)
    return Response(body, refusal.status, media_type="application/json", headers=headers)


def _described(dispatcher: Dispatcher) -> dict[str, Any]:
    facts = dispatcher.facts
    channels, height, width = facts.shape
    return {
        "name": dispatcher.name,
        "weights": facts.fingerprint,
        "steps_trained": facts.config.steps,
        "image": {"channels": channels, "height": height, "width": width},
        "prompts": facts.config.text is not None,
        "classes": [facts.classes.title(label) for label in range(facts.classes.count)],
        "sampling": facts.config.sampling.model_dump(mode="json"),
        "quality": {level: setting.model_dump(mode="json") for level, setting in facts.quality.items()},
        "samplers": facts.config.diffusion.samplers(),
    }


async def _body(request: Request, most: int) -> bytes:
    """The body, if it is JSON, arrives in time and is not too long.

    The media type keeps other sites' pages out: a browser asks before it sends JSON elsewhere, and is not allowed to.

    Raises:
        Refusal: 408, 413 or 415.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise mistaken("the body is not application/json; send the header Content-Type: application/json", 415)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(ARRIVAL):
            while True:
                event = await request.receive()
                if event["type"] == "http.disconnect":
                    raise Refusal(400, "the client is gone", "cancelled")
                parts.append(event.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise mistaken(f"the body is too long; it takes at most {most} bytes", 413)
                if not event.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise mistaken(f"the body took longer than {ARRIVAL:g} s; send it at once", 408) from None


async def _unless_gone(job: Job, request: Request, dispatcher: Dispatcher) -> list[Drawn]:
    """The images of a request, which is cancelled when its client closes the connection.

    Raises:
        Refusal: it is not answered with images.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    images, watch = asyncio.wrap_future(job.future), asyncio.create_task(gone())
    both: set[asyncio.Future[Any]] = {images, watch}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not images.done():
            dispatcher.cancel(job)
        return await asyncio.shield(images)
    finally:
        watch.cancel()
        images.add_done_callback(lambda future: future.cancelled() or future.exception())
