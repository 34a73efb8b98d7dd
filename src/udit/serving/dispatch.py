"""One model's queue and worker process: a thread hands batches to the process and its images to those who wait.

The process is started again when it ends. What it was drawing is drawn once more, each request in batches of its own,
and answered with an error when that fails as well. Free of torch and of HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from udit.diffusion.config import Level, SamplingConfig
from udit.errors import UserError
from udit.run.classes import Classes
from udit.run.system import SystemConfig
from udit.serving import limits as refusals
from udit.serving.limits import Limits, Refusal
from udit.serving.metrics import Metrics
from udit.serving.queue import Batch, Drawn, Job, Order, Queue
from udit.serving.wire import Message, receive
from udit.serving.worker import Source, main
from udit.spec.base import parse

log = logging.getLogger(__name__)
PATIENCE = 30.0
"""Seconds that the worker may take to stop, and between attempts to start it, at most."""


@dataclass(frozen=True)
class Facts:
    """What a worker tells of the model that it has loaded."""

    config: SystemConfig
    classes: Classes
    fingerprint: str
    quality: dict[Level, SamplingConfig]
    shape: tuple[int, int, int]
    """(C, H, W) of its images."""
    training: str | None
    """One line, of a run that is not at its end."""

    @staticmethod
    def of(values: dict[str, Any]) -> Facts:
        """From a worker's first message."""
        config = parse(SystemConfig, values["config"])
        quality = {level: parse(SamplingConfig, setting) for level, setting in values["quality"].items()}
        channels, height, width = values["shape"]
        return Facts(
            config, config.classes, values["fingerprint"], quality, (channels, height, width), values["training"]
        )


class Dispatcher:
    """Accepts requests for one model, and answers each of them: with images, or with a ``Refusal``."""

    def __init__(self, name: str, source: Source, limits: Limits) -> None:
        self.name = name
        self.source = source
        self.limits = limits
        self.metrics = Metrics()
        self._facts: Facts | None = None
        self._lock = threading.RLock()
        self._queue = Queue()
        self._open: set[Job] = set()
        self._pace = 0.0
        """Seconds that an image took lately."""
        self._closing = self._ended = False
        self._wake_out, self._wake_in = multiprocessing.Pipe(duplex=False)
        self._started = threading.Event()
        self._cause: str | None = None
        """Why there is no worker, after one could not be started."""
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._ready = False
        self._next_start, self._delay = 0.0, 0.0
        self._batch: Batch | None = None
        self._sent = self._stopped = 0.0
        """When the batch was sent, and when it was told to stop; 0 if it was not."""
        self._thread = threading.Thread(target=self._run, name=f"udit-serve-{name}", daemon=True)

    # ---- for any thread

    @property
    def facts(self) -> Facts:
        """Of the model; ``start`` has returned."""
        assert self._facts is not None
        return self._facts

    @property
    def up(self) -> bool:
        """Whether a worker is there to draw."""
        return self._ready and not self._ended

    @property
    def pid(self) -> int | None:
        """Of the worker process."""
        process = self._process
        return None if process is None else process.pid

    def begin(self) -> None:
        """Begins to load the model in a worker process."""
        self._thread.start()

    def start(self) -> Facts:
        """Loads the model in a worker process, and waits until it is there.

        Raises:
            UserError: there is no such model, or it cannot be served.
        """
        if not self._thread.is_alive() and not self._started.is_set():
            self.begin()
        self._started.wait()
        if self._facts is None:
            self.close()
            raise UserError(self._cause or f"{self.source.model} cannot be served")
        return self._facts

    @contextlib.contextmanager
    def accepted(self, order: Order) -> Iterator[Job]:
        """A place in the queue, until the answer is on its way; leaving early cancels the request.

        Raises:
            Refusal: no more requests are accepted now.
        """
        job = Job(order, time.monotonic() + self.limits.seconds)
        with self._lock:
            if self._closing:
                raise refusals.closing()
            if self._cause is not None:
                raise refusals.lost(self._cause)
            if len(self._open) >= self.limits.queue:
                raise refusals.full(len(self._open), self._estimate())
            self._open.add(job)
            self._queue.add(job)
        self._wake()
        try:
            yield job
        finally:
            self.cancel(job)
            with self._lock:
                self._open.discard(job)
            self._wake()

    def cancel(self, job: Job) -> None:
        """Answers a request as cancelled, if it is not answered yet; a batch for it alone stops within one step."""
        with self._lock:
            job.refuse(refusals.cancelled())
        self._wake()

    def gauges(self) -> dict[str, float]:
        """What is true now, for the metrics."""
        with self._lock:
            waiting = len(self._queue)
            return {"open_requests": len(self._open), "waiting_requests": waiting, "worker_up": float(self.up)}

    def close(self) -> None:
        """Ends the worker; what is not answered yet is refused."""
        with self._lock:
            self._closing = self._ended = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join()

    def _wake(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if not self._wake_out.poll():
                self._wake_in.send_bytes(b"!")

    def _estimate(self) -> int:
        """Seconds until the requests that are open now may be answered."""
        images = sum(len(job.order.seeds) - len(job.drawn) for job in self._open)
        return max(1, min(600, math.ceil(images * self._pace)))

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._ended:
                with self._lock:
                    timeout = self._advance(time.monotonic())
                self._listen(timeout)
        except Exception:
            log.exception("serving %s failed", self.name)
            self._cause = "the server failed; see its log"
        finally:
            with self._lock:
                self._ended = self._closing = True
                self._end_worker()
                for job in list(self._open):
                    job.refuse(refusals.closing())
                self._wake_in.close()
            self._started.set()

    def _advance(self, now: float) -> float | None:
        """Does what can be done now; returns the seconds until there may be more, or None for news only."""
        for job in self._open:
            if now >= job.deadline:
                job.refuse(refusals.late(self.limits.seconds))
        due = [job.deadline for job in self._open if not job.done]
        if self._process is None:
            if now >= self._next_start:
                self._launch()
            else:
                due.append(self._next_start)
        elif self._ready and self._batch is None:
            self._send()
        elif self._batch is not None and not self._batch.wanted:
            if not self._stopped:
                self._stopped = now
                self._tell(Message("stop", self._batch.number))
            elif now >= self._stopped + PATIENCE:
                log.warning("the worker of %s did not stop within %g s; it is ended", self.name, PATIENCE)
                self._process.kill()
            due.append(max(now + 0.1, self._stopped + PATIENCE))
        return max(0.0, min(due) - now) if due else None

    def _launch(self) -> None:
        """Starts a worker, which Ctrl-C does not interrupt: it inherits this thread's blocked signals."""
        context = multiprocessing.get_context("spawn")
        own, its = context.Pipe()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = context.Process(target=main, args=(its, self.source), daemon=True)
            self._process.start()
        except OSError as error:
            own.close()
            self._process = None
            self._no_worker(f"no worker process can be started ({error.strerror or error})")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            its.close()
        self._connection = own
        self.metrics.starts += 1

    def _send(self) -> None:
        """Hands the next batch to the worker."""
        self._batch = self._queue.take(self.limits.batch)
        if self._batch is None:
            return
        batch, self._sent, self._stopped = self._batch, time.monotonic(), 0.0
        values: dict[str, Any] = {"seeds": batch.seeds, "labels": batch.labels}
        values |= {"prompts": batch.prompts, "negative": batch.negative}
        values["sampling"] = batch.sampling.model_dump(mode="json")
        self._tell(Message("draw", batch.number, values))

    def _tell(self, message: Message) -> None:
        assert self._connection is not None
        with contextlib.suppress(OSError):  # it has ended, which ``_listen`` finds
            message.send(self._connection)

    def _listen(self, timeout: float | None) -> None:
        """Waits for news: of clients, or of the worker."""
        sources: list[Any] = [self._wake_out]
        if self._process is not None and self._connection is not None:
            sources += [self._connection, self._process.sentinel]
        heard = wait(sources, timeout)
        if self._wake_out in heard:
            self._wake_out.recv_bytes()
        if self._connection in heard:
            assert self._connection is not None
            try:
                message = receive(self._connection)
            except (OSError, EOFError):
                with self._lock:
                    self._lost()
                return
            with self._lock:
                self._hear(message)
        elif self._process is not None and self._process.sentinel in heard:
            with self._lock:
                self._lost()

    def _hear(self, message: Message) -> None:
        batch, values = self._batch, message.values or {}
        if message.kind == "ready":
            self._welcome(Facts.of(values))
        elif message.kind == "unusable":
            self._end_worker()
            self._no_worker(values["text"])
        elif message.kind == "step":
            self.metrics.steps += 1
        elif batch is not None and batch.number == message.batch:
            self._batch = None
            if message.kind == "images":
                self._deliver(batch, values, message.payload)
            elif message.kind == "error":
                for job in batch.jobs:
                    job.refuse(_failure(values["text"], values["status"]))
            elif batch.wanted:  # stopped
                self._queue.restore(batch)

    def _welcome(self, facts: Facts) -> None:
        if self._facts is not None and self._facts.fingerprint != facts.fingerprint:
            self._end_worker()
            self._no_worker(f"the files of {self.source.model} have changed; start the server again to serve them")
            return
        if self._facts is not None:
            log.info("the worker of %s is there again", self.name)
        self._facts = self._facts or facts
        self._cause, self._delay, self._ready = None, 0.0, True
        self._started.set()

    def _deliver(self, batch: Batch, values: dict[str, Any], payload: bytes) -> None:
        channels, height, width = values["shape"]
        size = channels * height * width
        seconds, count = time.monotonic() - self._sent, len(batch.parts)
        self._pace = seconds / count if not self._pace else 0.8 * self._pace + 0.2 * seconds / count
        self.metrics.batch(count)
        for place, (job, i) in enumerate(batch.parts):
            pixels = payload[place * size : (place + 1) * size]
            job.put(i, Drawn(pixels, (channels, height, width), values["settings"][place]))

    def _lost(self) -> None:
        """The worker has ended by itself."""
        assert self._process is not None
        self._process.join(5)
        code = self._process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        text, batch, was_ready = f"the worker process of {self.name} ended ({how})", self._batch, self._ready
        log.warning("%s", text)
        self._end_worker()
        if batch is not None:
            for job in batch.jobs:
                job.lost += 1
                if job.lost > 1:
                    job.refuse(refusals.lost(f"{text} twice while it drew this request"))
            self._queue.restore(batch)
        if not was_ready:
            self._no_worker(f"{text} while it loaded the model")

    def _no_worker(self, cause: str) -> None:
        """A worker could not be started: refuses all that waits, and tries again later."""
        if self._facts is None:
            self._cause, self._ended = cause, True
            return
        self._delay = min(PATIENCE, 2 * self._delay or 1.0)
        self._next_start = time.monotonic() + self._delay
        log.warning("%s; next attempt in %g s", cause, self._delay)
        self._cause = cause
        for job in self._queue.take_all():
            job.refuse(refusals.lost(cause))

    def _end_worker(self) -> None:
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        self._ready, self._batch = False, None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.join(5)


def _failure(text: str, status: int) -> Refusal:
    if status == 422:
        return refusals.mistaken(text)
    return Refusal(status, text, "failed", 1 if status == 503 else None)
