"""``udit serve`` over HTTP, with its real worker: what is answered, refused and cancelled, under load and fuzzing."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import udit
from conftest import TINY, ErrorOf, perturb
from runs import image_folder, train
from udit.assemble import System
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.evaluation import npz
from udit.images import PNG_KEY, grid, read_settings
from udit.run.system import SystemConfig
from udit.serving.limits import Limits
from udit.serving.server import Server, open_server

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = ("ant", "bee", "cow", "dog", "elk")
KEY = "k" * 24


@pytest.fixture(scope="module")
def clients() -> Iterator[SimpleNamespace]:
    """The modules of benchmarks/ that load and fuzz a server."""
    sys.path.insert(0, str(BENCHMARKS))
    import serve_clients
    import serve_fuzz
    import serve_load

    yield SimpleNamespace(http=serve_clients, load=serve_load, fuzz=serve_fuzz)
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder whose weights are noise: its images show every difference."""
    network = perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1, "learn_sigma": False}), 0.05)
    sampling = SamplingConfig(sampler="flow-euler", steps=3, guidance=1.5)
    config = SystemConfig(model=network.config, diffusion=FlowConfig(), sampling=sampling, id2label=NAMES)
    return str(udit.save(System(config, network), tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def server(model: str) -> Iterator[Server]:
    """A server of the model under two names, in a thread."""
    limits = Limits(queue=6, batch=4, steps=100_000, seconds=60)
    server = open_server([model, f"other={model}"], port=0, limits=limits).start()
    yield server
    server.close()


@pytest.fixture
def ask(server: Server, clients: SimpleNamespace) -> Any:
    """Sends one request: path and JSON (POST), or a method and a path."""
    port = int(server.url.rpartition(":")[2])

    def send(path: str, values: Any = None, method: str = "", **headers: str) -> Any:
        body = b"" if values is None else json.dumps(values).encode()
        method = method or ("GET" if values is None else "POST")
        return asyncio.run(clients.http.exchange(port, clients.http.http(method, path, body, **headers)))

    return send


def error(reply: Any) -> tuple[int, str]:
    [(key, line)] = json.loads(reply.body).items()
    assert key == "error"
    return reply.status, line


def test_a_png_is_the_one_of_udit_sample(ask: Any, model: str, tmp_path: Path) -> None:
    udit.generate(model, [17], ["cow"], sampling={"steps": 5}).save_pngs(tmp_path)
    reply = ask("/sample", {"seeds": [17], "labels": ["cow"], "sampling": {"steps": 5}})
    assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
    served = Image.open(io.BytesIO(reply.body))
    served.load()
    assert json.loads(served.text[PNG_KEY]) == read_settings(tmp_path / "000000.png")
    wanted = np.asarray(Image.open(tmp_path / "000000.png")).astype(int)
    assert np.abs(np.asarray(served).astype(int) - wanted).max() <= 1


def test_several_images_come_as_json_npz_or_grid(ask: Any, model: str, tmp_path: Path) -> None:
    body = {"seeds": [1, 2, 3], "labels": ["dog", 0]}
    wanted = udit.generate(model, [1, 2, 3], ["dog", 0]).images().numpy().astype(int)
    images = json.loads(ask("/sample", body | {"model": "other"}).body)["images"]
    assert [(image["settings"]["seed"], image["settings"]["class"]) for image in images] == [
        (1, "dog"),
        (2, "ant"),
        (3, "dog"),
    ]
    found = np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(image["png"])))) for image in images])
    assert np.abs(found - wanted[:, 0]).max() <= 1
    (tmp_path / "x.npz").write_bytes(ask("/sample", body | {"output": "npz"}).body)
    contents = npz.read(tmp_path / "x.npz")
    assert contents.images is not None and contents.labels is not None
    assert contents.labels.tolist() == [3, 0, 3]
    assert np.abs(contents.images.astype(int) - wanted).max() <= 1
    assert [each["seed"] for each in contents.facts["images"]] == [1, 2, 3]
    sheet = Image.open(io.BytesIO(ask("/sample", body | {"output": "grid"}).body))
    assert sheet.size == grid(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), ["dog", "ant", "dog"]).size
    assert [each["label"] for each in json.loads(sheet.info[PNG_KEY])["images"]] == [3, 0, 3]


def test_prompts_are_answered_with_the_images_of_udit_sample(tmp_path: Path, clients: SimpleNamespace) -> None:
    """Whatever they share a batch with; the language model is looked for when the server starts."""
    from test_prompts import system_of
    from text_models import language_model

    language = language_model(tmp_path / "language")
    udit.save(system_of(language, depth=2, width=16, heads=2), tmp_path / "texts")
    server = open_server([str(tmp_path / "texts")], port=0, limits=Limits(batch=4)).start()
    port = int(server.url.rpartition(":")[2])

    def bodies() -> Iterator[bytes]:
        for prompt in ("a cat", "a dog above a cat", ""):
            body = json.dumps({"seeds": [4], "prompt": prompt, "negative": "a dog", "output": "json"}).encode()
            yield clients.http.http("POST", "/sample", body)

    async def together() -> list[Any]:
        return await asyncio.gather(*(clients.http.exchange(port, each) for each in bodies()))

    try:
        replies = asyncio.run(together())
    finally:
        server.close()
    for reply, prompt in zip(replies, ("a cat", "a dog above a cat", ""), strict=True):
        [image] = json.loads(reply.body)["images"]
        assert (image["settings"]["prompt"], image["settings"]["negative"]) == (prompt, "a dog")
        wanted = udit.generate(tmp_path / "texts", [4], prompts=prompt, negative="a dog").images().numpy().astype(int)
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["png"])))).astype(int)
        assert np.abs(found - wanted[0, 0]).max() <= 1
    language.rename(tmp_path / "moved")
    with pytest.raises(udit.errors.UserError, match="is not there"):
        open_server([str(tmp_path / "texts")], port=0)
    open_server([str(tmp_path / "texts")], port=0, text_model=str(tmp_path / "moved")).start().close()


def test_settings_that_do_not_fit_the_model_are_one_line(ask: Any) -> None:
    assert error(ask("/sample", {"sampling": {"guidance_channels": 7}})) == (
        422,
        "guidance_channels is 7 and the model predicts 1; leave it out to guide all",
    )
    assert error(ask("/sample", {"seeds": [1, 2], "output": "png"}))[0] == 422
    assert error(ask("/sample", {"model": "tny"})) == (404, "no model 'tny'; did you mean 'tiny'?")
    assert error(ask("/sample", {}, content_type="text/plain"))[0] == 415
    assert error(ask("/sample", {}, host="evil.example"))[0] == 403
    assert error(ask("/nope"))[0] == 404
    assert error(ask("/sample"))[0] == 405


def wait_for(server: Server, what: str, value: float) -> None:
    for _ in range(1000):
        if server.dispatchers["tiny"].gauges()[what] == value:
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} is {server.dispatchers['tiny'].gauges()[what]}, not {value}")


def connected(server: Server, clients: SimpleNamespace, values: Any) -> Any:
    """A connection on which a request has been sent."""
    import socket

    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    connection.sendall(clients.http.http("POST", "/sample", json.dumps(values).encode()))
    return connection


LONG = {"sampling": {"steps": 100_000}}


def stopped(server: Server) -> None:
    """The worker takes no step any more; the one that is under way may end, on a busy machine a while later."""
    wait_for(server, "open_requests", 0)
    metrics = server.dispatchers["tiny"].metrics
    for _ in range(10):
        steps = metrics.steps
        time.sleep(0.5)
        if metrics.steps == steps:
            return
    pytest.fail(f"{metrics.steps} steps, and still counting")


def test_a_client_that_leaves_stops_its_work(ask: Any, server: Server, clients: SimpleNamespace) -> None:
    connection = connected(server, clients, LONG)
    wait_for(server, "open_requests", 1)
    connection.close()
    stopped(server)
    assert ask("/sample", {}).status == 200


def test_delete_cancels_by_id(ask: Any, server: Server, clients: SimpleNamespace) -> None:
    with contextlib.closing(connected(server, clients, LONG | {"id": "mine"})) as connection:
        wait_for(server, "open_requests", 1)
        assert error(ask("/sample", {"id": "mine"}))[0] == 409
        assert json.loads(ask("/sample/mine", method="DELETE").body) == {"id": "mine", "cancelled": True}
        assert b"409" in connection.recv(100)
    stopped(server)
    assert error(ask("/sample/mine", method="DELETE"))[0] == 404


def test_a_full_queue_refuses_and_says_when_to_ask_again(ask: Any, server: Server, clients: SimpleNamespace) -> None:
    waiting = []
    for number in range(6):
        waiting.append(connected(server, clients, LONG))
        wait_for(server, "open_requests", number + 1)
    reply = ask("/sample", {})
    assert error(reply)[0] == 429
    assert int(reply.headers["retry-after"]) >= 1
    for connection in waiting:
        connection.close()
    stopped(server)


def test_pages_load_nothing_from_other_hosts(ask: Any, model: str) -> None:
    reply = ask("/docs")
    page = reply.body.decode()
    assert not re.findall(r"""(?:src|href)=(?!['"]?(?:/openapi.json|data:,)['"])""", page)
    assert "url(" not in page and "<script" not in page and "@import" not in page
    assert reply.headers["content-security-policy"].startswith("default-src 'none'")
    assert "POST /sample" in page and "guidance_interval" in page
    description = json.loads(ask("/openapi.json").body)
    assert set(description["paths"]) == {"/sample", "/sample/{id}", "/models", "/health", "/metrics"}
    assert json.loads(ask("/health").body) == {"status": "ok"}
    [first, second] = json.loads(ask("/models").body)["models"]
    assert (first["name"], second["name"], first["classes"]) == ("tiny", "other", list(NAMES))
    assert first["weights"] == udit.load(model).fingerprint
    assert 'udit_worker_up{model="other"} 1' in ask("/metrics").body.decode()


def test_a_run_that_trains_is_served_from_a_copy(tmp_path: Path, clients: SimpleNamespace) -> None:
    """Its newest checkpoint; a worker that is replaced still draws the same, though the run has gone on."""
    data = image_folder(tmp_path / "data")
    run = tmp_path / "run"
    train(run, *data, "training.steps=3")
    text = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(re.sub(r"steps: 3\b", "steps: 9", text))
    with contextlib.ExitStack() as undo:
        server = open_server([str(run)], port=0).start()
        undo.callback(server.close)
        port, dispatcher = int(server.url.rpartition(":")[2]), server.dispatchers["run"]
        assert (
            dispatcher.facts.training
            == "its newest checkpoint, of step 3 of 9; start the server again to serve a later one"
        )
        body = {"seeds": [4], "labels": ["dog"], "sampling": {"steps": 3}}
        before = asyncio.run(clients.http.post(port, body))
        train(run, *data, "training.steps=9")
        assert dispatcher.pid is not None
        os.kill(dispatcher.pid, signal.SIGKILL)
        assert asyncio.run(clients.http.post(port, body)).body == before.body


def test_models_that_cannot_be_served_are_one_line(tmp_path: Path, error_of: ErrorOf, model: str) -> None:
    assert error_of("serve", "no-such", "--port", "0").startswith("no model at 'no-such'; give a model folder")
    (tmp_path / "run").mkdir()
    assert "holds neither config.json nor run.yaml" in error_of("serve", str(tmp_path / "run"), "--port", "0")
    assert "no graph for onnxruntime" in error_of("serve", model, "--port", "0", "--engine", "onnxruntime")


def test_memory_is_limited_and_the_worker_lives_on(model: str, clients: SimpleNamespace) -> None:
    """A batch whose conditions of all steps do not fit is refused in one line."""
    limits = Limits(memory=0.05, steps=10_000_000, images=500, batch=500, seconds=60)
    with contextlib.ExitStack() as undo:
        server = open_server([model], port=0, limits=limits).start()
        undo.callback(server.close)
        port, dispatcher = int(server.url.rpartition(":")[2]), server.dispatchers["tiny"]
        reply = asyncio.run(clients.http.post(port, {"sampling": {"steps": 3_000_000}}))
        assert reply.status == 503
        assert "more memory than the server may take" in error(reply)[1]
        assert dispatcher.metrics.starts == 1
        assert asyncio.run(clients.http.post(port, {})).status == 200


def test_ctrl_c_answers_what_was_accepted(model: str, clients: SimpleNamespace) -> None:
    with clients.http.served(model) as at:

        async def ends() -> Any:
            wanted = asyncio.create_task(
                clients.http.post(at.port, {"sampling": {"steps": 200}, "seeds": list(range(8))})
            )
            for _ in range(500):
                page = await clients.http.exchange(at.port, clients.http.http("GET", "/metrics"))
                if b'udit_open_requests{model="tiny"} 1' in page.body:
                    break
                await asyncio.sleep(0.01)
            at.process.send_signal(signal.SIGINT)
            return await wanted

        assert asyncio.run(ends()).status == 200
        assert at.process.wait(30) == 0


def test_a_key_is_read_from_a_file_or_the_environment_and_never_shown(
    model: str, tmp_path: Path, clients: SimpleNamespace
) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    with clients.http.served(model, "--key-file", str(tmp_path / "key")) as at:
        listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
        assert "udit serve" in listed and KEY not in listed
        body = json.dumps({}).encode()
        without = clients.http.http("POST", "/sample", body)
        given = clients.http.http("POST", "/sample", body, authorization=f"Bearer {KEY}")
        assert asyncio.run(clients.http.exchange(at.port, without)).status == 401
        assert asyncio.run(clients.http.exchange(at.port, given)).status == 200


def test_load_is_answered_with_the_images_of_single_requests(model: str, clients: SimpleNamespace) -> None:
    wanted = clients.load.reference(model)
    with clients.http.served(model, "--queue", "16") as at:
        asyncio.run(clients.load.load(at.port, 40, 60, wanted))
        before = at.memory()
        found = asyncio.run(clients.load.load(at.port, 200, 200, wanted))
        after = at.memory()
    assert (found.answered, dict(found.errors)) == (200, {})
    assert found.largest_difference <= 1
    assert found.refusals, "200 clients are more than 16 places"
    assert clients.load.percentile(found.refusals, 0.5) < 1, "the benchmark measures them on quiet cores"
    assert all(after[name] - before[name] < 60 for name in before), "megabytes; they do not grow with requests"


def test_killed_workers_lose_no_request_without_an_error(model: str, clients: SimpleNamespace) -> None:
    wanted = clients.load.reference(model)
    with clients.http.served(model) as at:
        found = asyncio.run(clients.load.load_and_kill(at, 20, 120, wanted, kills=2))
    assert found.answered + sum(found.errors.values()) == 120
    assert all(line.startswith("503: the worker process of tiny ended") for line in found.errors)
    assert found.largest_difference <= 1


def test_fuzzed_requests_neither_crash_nor_hang_nor_run_code(
    model: str, tmp_path: Path, clients: SimpleNamespace
) -> None:
    with clients.http.served(model, "--max-steps", "8") as at:
        found = asyncio.run(clients.fuzz.fuzz(at.port, 400, tmp_path / "canary", seconds=200))
        metrics = asyncio.run(clients.http.exchange(at.port, clients.http.http("GET", "/metrics"))).body.decode()
        assert asyncio.run(clients.http.post(at.port, {})).status == 200
    assert found.faults == []
    assert found.hung == 0
    assert found.statuses[200] > 20 and found.statuses[422] > 20
    assert not (tmp_path / "canary").exists()
    assert 'udit_worker_starts_total{model="tiny"} 1' in metrics
