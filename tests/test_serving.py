"""The parts of ``udit serve`` that need no web framework: queue, requests, the worker's supervision, the gate."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import worker_stand_in
from conftest import ErrorOf
from udit.diffusion.config import SamplingConfig
from udit.errors import missing_extra
from udit.models.catalog import CATALOG
from udit.serving import dispatch
from udit.serving.dispatch import Dispatcher, Facts
from udit.serving.gate import DRAINED, Gate, error_body
from udit.serving.limits import Limits, Refusal, full, late
from udit.serving.metrics import Metrics, page
from udit.serving.queue import Drawn, Job, Order, Queue
from udit.serving.requests import chosen, named, order_of, read_request, schema
from udit.serving.worker import Source
from worker_stand_in import DIES, DIES_ONCE, MISFIT, UNLIMITED

FACTS = Facts.of(worker_stand_in.facts("same"))
LIMITS = Limits(queue=4, seconds=30, batch=4, images=6)


def order(*seeds: int, steps: int = 7) -> Order:
    return Order(seeds, None, SamplingConfig(steps=steps))


def job(*seeds: int, steps: int = 7) -> Job:
    return Job(order(*seeds, steps=steps), time.monotonic() + 30)


def seeds_of(queue: Queue, most: int = 4) -> list[int]:
    batch = queue.take(most)
    return [] if batch is None else batch.seeds


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_requests_of_equal_settings_share_a_batch_and_the_oldest_comes_first() -> None:
    queue = Queue()
    for each in (job(1, 2), job(3, steps=9), job(4), job(5, 6, 7), job(8, steps=9)):
        queue.add(each)
    assert [seeds_of(queue) for _ in range(4)] == [[1, 2, 4, 5], [3, 8], [6, 7], []]
    assert len(queue) == 0


def test_images_with_labels_and_without_are_not_mixed() -> None:
    queue = Queue()
    labelled = Job(Order((5,), (3,), SamplingConfig(steps=7)), 0)
    for each in (job(1), labelled):
        queue.add(each)
    first, second = queue.take(4), queue.take(4)
    assert first is not None and second is not None
    assert (first.seeds, first.labels, second.seeds, second.labels) == ([1], None, [5], [3])


def test_cancelled_requests_leave_the_queue_and_finished_ones_are_answered_in_order_of_their_seeds() -> None:
    queue, kept, gone = Queue(), job(3, 1, 2), job(9)
    queue.add(gone)
    queue.add(kept)
    gone.refuse(late(1))
    batch = queue.take(2)
    assert batch is not None and batch.seeds == [3, 1]
    kept.put(1, Drawn(b"b", (1, 1, 1), {}))
    kept.put(0, Drawn(b"a", (1, 1, 1), {}))
    assert not kept.done and batch.wanted
    assert seeds_of(queue) == [2]
    kept.put(2, Drawn(b"c", (1, 1, 1), {}))
    assert b"".join(image.pixels for image in kept.future.result()) == b"abc"
    assert not batch.wanted


def test_what_a_lost_worker_was_drawing_is_drawn_first_and_each_request_alone() -> None:
    queue, first, second, third = Queue(), job(1, 2, 3), job(4), job(5)
    for each in (first, second, third):
        queue.add(each)
    batch = queue.take(4)
    assert batch is not None and batch.jobs == [first, second]
    for each in batch.jobs:
        each.lost += 1
    queue.restore(batch)
    assert [seeds_of(queue) for _ in range(3)] == [[1, 2, 3], [4], [5]]


# ---- requests --------------------------------------------------------------------------------------------------------


def refusal(call: Callable[[], Any]) -> tuple[int, str]:
    """The status and the one line of what a call refuses."""
    with pytest.raises(Refusal) as refused:
        call()
    body = json.loads(error_body(refused.value))
    assert list(body) == ["error"] and "\n" not in body["error"]
    return refused.value.status, body["error"]


@pytest.mark.parametrize(
    ("values", "status", "said"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"[" * 60000, 400, "the body is no JSON"),
        (b"[1]", 400, "the body is no JSON object; write e.g."),
        ({"labls": [1]}, 422, "unknown key 'labls'; did you mean 'labels'?"),
        ({"seeds": []}, 422, "seeds is []; it takes a list, e.g. [0]"),
        ({"seeds": [-1]}, 422, "seeds.0 is -1; it must be at least 0"),
        ({"seeds": 3}, 422, "seeds is 3; it takes a list"),
        ({"seeds": [True]}, 422, "seeds is [true]; it takes a list, e.g. [0]"),
        ({"output": "gif"}, 422, "output is 'gif'; it takes 'png', 'grid', 'npz' or 'json'"),
        ({"id": "a b"}, 422, "id is 'a b'"),
        ({"seeds": list(range(7))}, 422, "seeds are 7; a request takes at most 6"),
        ({"labels": ["cta"]}, 422, "no class 'cta'; did you mean 'cat'?"),
        ({"labels": [4]}, 422, "label 4 is out of range"),
        ({"labels": ["cat", "dog"]}, 422, "labels are 2 and seeds 1; give a seed for each label"),
        ({"labels": ["\ud800"]}, 422, "no class"),
        ({"sampling": {"stps": 3}}, 422, "unknown key 'sampling.stps'; did you mean 'steps'?"),
        ({"sampling": {"self": 3}}, 422, "unknown key 'sampling.self'"),
        ({"sampling": {"\ud800": 3}}, 422, "unknown key"),
        ({"sampling": {"steps": 251}}, 422, "sampling.steps is 251; this server takes at most 250"),
        ({"sampling": {"steps": 1e400}}, 422, "sampling.steps is inf; it must be finite"),
        ({"sampling": {"sampler": "flow-euler"}}, 422, "flow-euler does not fit a model that was trained with"),
        ({"sampling": {"steps": 3}, "quality": "draft"}, 422, "sampling is given and quality draft sets it"),
        ({"prompt": "a cat"}, 422, "a prompt was given and the model has 4 classes; leave it out"),
        ({"negative": "a cat"}, 422, "negative is given and no prompt"),
        ({"prompt": "a" * 5000}, 422, "prompt is"),
        ({"quality": "bad"}, 422, "quality is 'bad'; it takes 'draft', 'good' or 'best'"),
    ],
)
def test_mistakes_of_requests_are_one_clear_line(values: Any, status: int, said: str) -> None:
    body = values if isinstance(values, bytes) else json.dumps(values).encode()
    code, line = refusal(lambda: order_of(read_request(body), FACTS, LIMITS))
    assert code == status
    assert said in line


def test_requests_mean_what_the_library_means() -> None:
    plain = order_of(read_request(b'{"seeds": [5, 6, 7]}'), FACTS, LIMITS)
    assert (plain.seeds, plain.labels) == ((5, 6, 7), (0, 1, 0)), "all trained classes in turn"
    assert plain.sampling == FACTS.config.sampling
    changed = order_of(read_request(b'{"labels": ["dog"], "sampling": {"guidance": 3}}'), FACTS, LIMITS)
    assert changed.labels == (1,)
    assert changed.sampling == FACTS.config.sampling.replace(guidance=3)
    assert order_of(read_request(b'{"quality": "good"}'), FACTS, LIMITS).sampling.steps == 7


OF_TEXTS = {
    "model": CATALOG["U-DiT-text-tiny"].config.replace(context={"tokens": 6, "width": 32}).model_dump(mode="json"),
    "text": {"source": "language", "tokens": 6, "width": 32, "depth": 4, "layers": [1, 4]},
}


def test_a_model_of_texts_takes_a_prompt_and_those_with_one_negative_prompt_share_a_batch() -> None:
    given = worker_stand_in.facts("same")
    facts = Facts.of(given | {"config": given["config"] | {"id2label": []} | OF_TEXTS})  # type: ignore[operator]
    for values, said in (
        ({}, 'the model takes texts and was given none; give a prompt, or "" for no text'),
        ({"labels": [1]}, "labels were given to a model that takes texts; give a prompt"),
        ({"prompt": "a", "negative": "b", "sampling": {"guidance": 1}}, "guidance 1 compares with nothing"),
    ):
        assert said in refusal(partial(order_of, read_request(json.dumps(values).encode()), facts, LIMITS))[1]
    queue, guided = Queue(), {"guidance": 2.0}
    for prompt, negative in (("a cat", "x"), ("a dog", "x"), ("", ""), ("an eel", "x")):
        body = {"seeds": [1], "prompt": prompt, "negative": negative, "sampling": guided}
        queue.add(Job(order_of(read_request(json.dumps(body).encode()), facts, LIMITS), time.monotonic() + 30))
    batches = [queue.take(4), queue.take(4)]
    assert [(batch.prompts, batch.negative) for batch in batches if batch is not None] == [
        (["a cat", "a dog", "an eel"], "x"),
        ([""], ""),
    ]


def test_pixels_limit_a_request_by_the_models_size() -> None:
    small = Limits(pixels=2)
    assert (
        "takes at most 2 of them" in refusal(lambda: order_of(read_request(b'{"seeds": [1, 2, 3]}'), FACTS, small))[1]
    )


def test_models_have_names() -> None:
    assert named(["runs/a", "b=runs/a", "owner/name", "runs/x=1/c"]) == {
        "a": "runs/a",
        "b": "runs/a",
        "name": "owner/name",
        "c": "runs/x=1/c",
    }
    assert chosen(None, ["a", "b"]) == "a"
    assert refusal(lambda: chosen("digts", ["digits"])) == (404, "no model 'digts'; did you mean 'digits'?")


def test_schema_names_every_field() -> None:
    fields = schema()["properties"]
    assert set(fields) == {"model", "seeds", "labels", "prompt", "negative", "sampling", "quality", "output", "id"}
    assert set(SamplingConfig.model_fields) == set(fields["sampling"]["anyOf"][0]["properties"])
    assert all(field["description"] for field in fields.values())


# ---- the worker's supervision ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def dispatching(folder: Path, limits: Limits = LIMITS) -> Iterator[Dispatcher]:
    """A dispatcher whose worker is the stand-in."""
    with mock.patch.object(dispatch, "main", worker_stand_in.main):
        dispatcher = Dispatcher("m", Source(str(folder)), limits)
        try:
            dispatcher.start()
            yield dispatcher
        finally:
            dispatcher.close()


def until(true: Callable[[], bool]) -> None:
    """Waits for something that is about to be true."""
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it is not true within 30 s")


def drawn(dispatcher: Dispatcher, *seeds: int) -> bytes:
    """The pixels that answer a request."""
    with dispatcher.accepted(order(*seeds)) as accepted:
        return b"".join(image.pixels for image in accepted.future.result(30))


def test_requests_are_answered_refused_in_order_cancelled_and_late(tmp_path: Path) -> None:
    with dispatching(tmp_path) as dispatcher:
        assert dispatcher.facts.fingerprint == "same"
        assert drawn(dispatcher, 1, 2, 3, 4, 5, 6) == bytes([1, 2, 3, 4, 5, 6])
        assert refusal(lambda: drawn(dispatcher, MISFIT)) == (422, "steps is 7; it does not fit")
        with contextlib.ExitStack() as places:
            running = places.enter_context(dispatcher.accepted(order(UNLIMITED)))
            until(lambda: dispatcher.metrics.steps > 0)
            others = [places.enter_context(dispatcher.accepted(order(seed))) for seed in (1, 2, 3)]
            status, line = refusal(lambda: drawn(dispatcher, 9))
            assert (status, line.split("; ")[0]) == (429, "4 requests wait, as many as may")
            begun = time.monotonic()
            dispatcher.cancel(running)
            assert [each.future.result(10)[0].pixels for each in others] == [b"\1", b"\2", b"\3"]
            assert time.monotonic() - begun < 5, "the worker stopped"
            assert refusal(lambda: running.future.result(0))[0] == 409
            steps = dispatcher.metrics.steps
            time.sleep(0.05)
            assert dispatcher.metrics.steps == steps
        assert dispatcher.gauges() == {"open_requests": 0, "waiting_requests": 0, "worker_up": 1}
        dispatcher.limits = Limits(seconds=0.05)
        assert refusal(lambda: drawn(dispatcher, UNLIMITED))[0] == 504
        dispatcher.limits = LIMITS
        assert drawn(dispatcher, 7) == b"\7", "the late request did not keep the worker"
    assert (tmp_path / "batches").read_text().splitlines()[:2] == ["[1, 2, 3, 4]", "[5, 6]"]
    with pytest.raises(Refusal, match="about to end"), dispatcher.accepted(order(1)):
        pass


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_only_what_kills_it_is_lost(tmp_path: Path) -> None:
    with dispatching(tmp_path) as dispatcher:
        answers: dict[str, Any] = {}

        def ask(name: str, *seeds: int) -> None:
            with contextlib.suppress(Refusal), dispatcher.accepted(order(*seeds)) as accepted:
                answers[name] = accepted.future
                with contextlib.suppress(Refusal):
                    accepted.future.result(30)

        with dispatcher.accepted(order(UNLIMITED)) as running:  # the others meet in one batch behind it
            until(lambda: dispatcher.metrics.steps > 0)
            threads = [
                threading.Thread(target=ask, args=args)
                for args in (("kills", DIES), ("innocent", 5), ("once", DIES_ONCE))
            ]
            for number, thread in enumerate(threads):
                thread.start()
                until(lambda least=number: len(answers) > least)
            dispatcher.cancel(running)
            for thread in threads:
                thread.join(30)
        assert answers["innocent"].result(0)[0].pixels == b"\5"
        assert len(answers["once"].result(0)) == 1
        status, line = refusal(lambda: answers["kills"].result(0))
        assert (status, line.split("; ")[0]) == (
            503,
            "the worker process of m ended (signal 9) twice while it drew this request",
        )
        assert dispatcher.metrics.starts == 3
        assert dispatcher.pid is not None
        os.kill(dispatcher.pid, signal.SIGKILL)  # while it is idle: nobody notices
        assert drawn(dispatcher, 8) == b"\10"


@pytest.mark.slow
def test_a_worker_that_does_not_come_back_is_told_of(tmp_path: Path) -> None:
    with mock.patch.object(dispatch, "PATIENCE", 0.05), dispatching(tmp_path) as dispatcher:
        (tmp_path / "weights").write_text("other")
        pid = dispatcher.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        status, line = refusal(lambda: drawn(dispatcher, 1))
        assert (status, line.split("; ")[0]) == (503, f"the files of {tmp_path} have changed")
        assert refusal(lambda: drawn(dispatcher, 1))[0] == 503, "at once, without a worker"
        (tmp_path / "weights").write_text("same")
        until(lambda: dispatcher.up)
        assert drawn(dispatcher, 1) == b"\1"


def test_a_model_that_cannot_be_loaded_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(ValueError, match=f"^no model at {tmp_path}$"), dispatching(tmp_path):
        pass


# ---- the gate --------------------------------------------------------------------------------------------------------


def through(
    gate: Gate, path: str = "/sample", body: Iterator[bytes] | None = None, **headers: str
) -> tuple[int, dict[str, Any]]:
    """Status and body of a request's answer; the request's own body arrives in pieces."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        piece = next(body or iter(()), b"")
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    fields = [(key.replace("_", "-").encode(), value.encode("latin-1")) for key, value in headers.items()]
    asyncio.run(gate({"type": "http", "path": path, "headers": fields}, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


async def _passed(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def _sleeps(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await asyncio.sleep(60)


def test_gate_wants_the_key_and_gives_no_hint() -> None:
    gate = Gate(_passed, LIMITS, "a" * 24, None)
    assert through(gate, authorization="Bearer " + "a" * 24)[0] == 200
    assert through(gate, authorization="bearer  " + "a" * 24)[0] == 200
    answers = [
        through(gate, authorization=text) for text in ("", "Bearer", "Bearer b", "Basic " + "a" * 24, "Bearer \xe9")
    ]
    assert {json.dumps(answer) for answer in [*answers, through(gate)]} == {
        json.dumps((401, {"error": "the key is missing or wrong; send the header Authorization: Bearer KEY"}))
    }
    assert through(gate, "/metrics")[0] == 401
    assert [through(gate, path)[0] for path in ("/health", "/docs", "/openapi.json")] == [200] * 3


def test_gate_refuses_strange_names_and_long_bodies() -> None:
    gate = Gate(_passed, LIMITS, None, frozenset({"127.0.0.1", "::1"}))
    assert through(gate, host="127.0.0.1:80")[0] == through(gate, host="[::1]:80")[0] == 200
    assert through(gate, host="evil.example:80")[0] == through(gate)[0] == 403
    for length in ("65537", "9" * 5000, "-1", "x"):
        assert through(gate, host="127.0.0.1", content_length=length)[0] == 413


def test_gate_takes_what_a_refused_client_still_sends_up_to_a_limit() -> None:
    gate = Gate(_passed, LIMITS, None, None)
    for pieces, left in ((3, 0), (200, 200 - DRAINED // 2**14)):
        body = iter([bytes(2**14)] * pieces)
        assert through(gate, body=body, content_length=str(pieces * 2**14 + 65536))[0] == 413
        assert len(list(body)) == left


def test_gate_ends_what_takes_too_long() -> None:
    with mock.patch("udit.serving.gate.ARRIVAL", 0.01):
        assert through(Gate(_sleeps, Limits(seconds=0.01), None, None))[0] == 504


def test_refusals_say_when_to_ask_again() -> None:
    assert (full(64, 7).status, full(64, 7).retry_after) == (429, 7)
    assert full(64, 0).retry_after == 1


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_are_in_the_text_format() -> None:
    metrics = Metrics()
    metrics.answer("answered", 0.02)
    metrics.answer("refused")
    metrics.batch(3)
    text = page(metrics.text('a"b', {"open_requests": 2}))
    assert 'udit_requests_total{model="a\\"b",outcome="answered"} 1\n' in text
    assert 'udit_request_seconds_bucket{model="a\\"b",le="0.01"} 0\n' in text
    assert 'udit_request_seconds_bucket{model="a\\"b",le="0.03"} 1\n' in text
    assert 'udit_request_seconds_bucket{model="a\\"b",le="+Inf"} 1\n' in text
    assert 'udit_batch_images_sum{model="a\\"b"} 3.000000\n' in text
    assert text.endswith("\n") and text.count("# TYPE udit_request_seconds histogram") == 1


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UDIT_SERVE_KEY", raising=False)


@pytest.mark.usefixtures("no_key")
def test_mistakes_of_the_command_are_one_line_each(
    tmp_path: Path, error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_text("short\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = error_of("serve", "model", "--port", str(port))
        assert said == f"port {port} is in use; give another one, or 0 for any free one: --port 0"
    for words, said in (
        ([], "no model is named; give a run folder"),
        (["a/m", "b/m"], "two models are called 'm'; give one of them another name, e.g. m-2=b/m"),
        (
            ["m", "--host", "0.0.0.0"],
            "host is 0.0.0.0, which others can reach, and there is no key; put one into a file",
        ),
        (["m", "--host", "::"], "host is ::, which others can reach, and there is no key"),
        (["m", "--host", "no.such.host.invalid"], "host is 'no.such.host.invalid'"),
        (["m", "--port", "70000"], "port is 70000; ports run from 1 to 65535"),
        (["m", "--key-file", str(key)], f"the key in {key} must have at least 16 letters and digits"),
        (["m", "--key-file", str(tmp_path / "none")], "cannot read the key in"),
        (["m", "--queue", "0"], "--queue is 0; it must be greater than 0"),
        (["m", "--max-memory", "nan"], "--max-memory is nan; it must be greater than 0"),
    ):
        assert said in error_of("serve", *words)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert error_of("serve", "m", "--port", "0") == str(missing_extra("`udit serve`", "fastapi", "serve"))


def test_a_short_key_of_the_environment_is_refused(error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDIT_SERVE_KEY", "secret key with spaces")
    said = error_of("serve", "m", "--port", "0")
    assert "the key in UDIT_SERVE_KEY must have at least 16" in said
    assert "secret" not in said
