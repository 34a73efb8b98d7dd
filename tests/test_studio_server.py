"""The studio's server: who is served what, in which order, and what a client that goes away costs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from runs import environment
from studio_page import Client, draw_values, messages, serving, slow_steps, tiny_run
from udit.studio.serve import MOST_BYTES, Server

pytestmark = pytest.mark.slow
KEY = "run@newest"
CLIENTS = 50


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("place") / "run")


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    with serving(run) as made:
        yield made


def get(server: Server, path: str, host: str | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(server.url + path, headers={} if host is None else {"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def text_of(message: dict[str, Any]) -> str:
    """The status line of a drawing's message."""
    return json.dumps(message["output"])


def test_a_drawing_is_told_step_by_step(server: Server) -> None:
    client = Client(server.url)
    client.join("draw", draw_values(KEY))
    told = list(messages(client.listen()))
    assert [each["msg"] for each in told].count("process_generating") >= 5
    assert told[-1]["success"]
    assert "2 images in" in text_of(told[-1]) or any("2 images in" in text_of(each) for each in told[-2:-1])


def test_an_error_is_a_line_in_the_page_and_no_traceback(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    for values in (draw_values("other@newest"), draw_values(KEY, seeds="x"), draw_values(KEY, steps="many")):  # type: ignore[arg-type]
        client = Client(server.url)
        client.join("draw", values)
        told = list(messages(client.listen()))
        assert told[-1]["success"], told[-1]
        assert "problem" in json.dumps(told)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_client_that_goes_away_stops_its_drawing_within_a_step(server: Server) -> None:
    with slow_steps(0.3) as ended:
        client = Client(server.url)
        client.join("draw", draw_values(KEY, steps=40))
        stream = client.listen()
        for told in messages(stream):
            if told["msg"] == "process_generating" and len(ended) >= 2:
                break
        done = len(ended)
        stream.close()
        time.sleep(2)
        assert len(ended) <= done + 1
        other = Client(server.url)  # which the queue serves next
        other.join("draw", draw_values(KEY, steps=1))
        assert list(messages(other.listen()))[-1]["success"]


def test_a_waiting_client_that_goes_away_is_passed_over(server: Server) -> None:
    with slow_steps(0.1) as ended:
        first, gone = Client(server.url), Client(server.url)
        first.join("draw", draw_values(KEY, steps=10))
        gone.join("draw", draw_values(KEY, steps=30))
        streams = [first.listen(), gone.listen()]
        next(messages(streams[1]))
        streams[1].close()
        assert list(messages(streams[0]))[-1]["success"]
        time.sleep(1)
        assert len(ended) <= 11


def drawn_by(server: Server, results: list[Any], starts: list[int], number: int) -> None:
    """One client; appends its number to ``starts`` when its drawing begins."""
    client = Client(server.url)
    try:
        client.join("draw", draw_values(KEY, seeds=str(number), steps=2))
    except urllib.error.HTTPError as error:
        results[number] = (error.code, error.read().decode())
        return
    results[number] = "waits"
    for told in messages(client.listen()):
        if told["msg"] == "process_starts":
            starts.append(number)
        results[number] = told


def test_fifty_clients_are_answered_in_order(server: Server) -> None:
    results: list[Any] = [None] * CLIENTS
    starts: list[int] = []
    with slow_steps(0.02):
        threads = []
        for number in range(CLIENTS):
            thread = threading.Thread(target=drawn_by, args=(server, results, starts, number))
            thread.start()
            threads.append(thread)
            while results[number] is None:  # so that the order of asking is known
                time.sleep(0.001)
        for thread in threads:
            thread.join(120)
    assert all(isinstance(told, dict) and told["success"] for told in results)
    assert starts == list(range(CLIENTS))


def test_clients_beyond_the_queue_are_refused_at_once_and_the_others_answered(run: Path) -> None:
    with mock.patch("udit.studio.page.QUEUED", 10), serving(run) as server, slow_steps(0.05):
        results: list[Any] = [None] * CLIENTS
        starts: list[int] = []
        threads = [
            threading.Thread(target=drawn_by, args=(server, results, starts, number)) for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    answered = [told for told in results if isinstance(told, dict)]
    refused = [told for told in results if isinstance(told, tuple)]
    assert len(answered) + len(refused) == CLIENTS
    assert 10 <= len(answered) < CLIENTS
    assert all(told["success"] for told in answered)
    assert {code for code, _ in refused} == {503}
    assert all("Queue is full" in text for _, text in refused)


def test_nothing_of_the_disk_is_served_but_what_was_drawn(server: Server, run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    inside = server.studio.folder
    for path in (
        f"gradio_api/file={secret}",
        f"gradio_api/file={run}/run.yaml",
        f"gradio_api/file={inside}/../{secret.relative_to('/')}",
        "gradio_api/file=" + os.path.relpath(secret),
        "gradio_api/file=http://127.0.0.1:1/",
        f"gradio_api/file=%2e%2e{secret}",
        "gradio_api/proxy=http://127.0.0.1:1/",
        "static/../../../../etc/passwd",
        "static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "assets/..%2f..%2f..%2fetc/passwd",
        "monitoring",
        "gradio_api/runs",
        "gradio_api/openapi.json",
    ):
        code, text = get(server, path)
        assert code in (403, 404), path
        assert b"secret" not in text
        assert b"root:" not in text
    client = Client(server.url)
    client.join("draw", draw_values(KEY))
    told = json.dumps(list(messages(client.listen())))
    saved = next(inside.glob("saved-*/*.png"))
    assert str(saved.name) in told
    assert get(server, f"gradio_api/file={saved}")[1] == saved.read_bytes()


def test_a_page_of_another_name_is_refused(server: Server) -> None:
    """A name of another host that is pointed at 127.0.0.1 would otherwise read the page."""
    port = server.url.rstrip("/").rpartition(":")[2]
    assert get(server, "config", host=f"evil.example:{port}")[0] == 403
    assert get(server, "config", host=f"localhost:{port}")[0] == 200


def test_an_upload_that_is_too_large_is_refused(server: Server) -> None:
    def upload(size: int) -> int:
        head = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        )
        request = urllib.request.Request(
            f"{server.url}gradio_api/upload",
            head + b"0" * size + b"\r\n--x--\r\n",
            {"content-type": "multipart/form-data; boundary=x"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)[0].startswith(str(server.studio.folder))
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert upload(1000) == 200
    assert upload(MOST_BYTES + 1000) == 413


def test_the_server_listens_on_this_machine_alone(server: Server) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert [each.getsockname()[0] for each in server._sockets] == ["127.0.0.1"]


@contextlib.contextmanager
def running(run: Path, folder: Path, *before: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, whose environment asks for what it must not do; yields its address."""
    wants = {"GRADIO_SHARE": "True", "GRADIO_ANALYTICS_ENABLED": "True", "GRADIO_SERVER_NAME": "0.0.0.0"}
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "udit", "studio", str(run), "--port", "0", "--device", "cpu"],
        env=environment(TMPDIR=str(folder), **wants),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith(f"studio of {run}: http://127.0.0.1:")
        yield process, line.partition(": ")[2].partition(" ")[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what a program before it has started
        process.communicate()


def config_of(url: str) -> dict[str, Any]:
    """What the page is told of itself; waits until it answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{url}config", timeout=30) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_command_ends_with_ctrl_c_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    with running(run, tmp_path) as (process, url):
        assert config_of(url)["analytics_enabled"] is False
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "", "")
    assert not [path for path in tmp_path.iterdir() if "udit-studio" in path.name]


def test_the_server_calls_no_other_host(run: Path, tmp_path: Path) -> None:
    """Nor looks for a name: every connection that it opens is to this machine."""
    calls = tmp_path / "calls"
    with running(run, tmp_path, "strace", "-f", "-qq", "-e", "trace=connect,sendto", "-o", str(calls)) as (_, url):
        config_of(url)
        client = Client(url)
        client.join("draw", draw_values(KEY))
        assert list(messages(client.listen()))[-1]["success"]
    found = re.findall(r"sa_family=AF_INET6?, .*", calls.read_text(errors="replace"))
    assert [call for call in found if 'inet_addr("127.0.0.1")' not in call and '"::1"' not in call] == []
