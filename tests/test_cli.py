"""The command line answers fast where it needs no torch, and reports every user error in one line."""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import udit
from conftest import ErrorOf, succeeds
from runs import RECIPE, SMALL, environment, image_folder, state_hash
from udit.run.recipes import load_run, parse_yaml

# -- before torch --------------------------------------------------------------------------------------------------

SLIPS: dict[str, tuple[list[str], str]] = {
    "no command": (["trian"], "no command 'trian'; did you mean 'train'?"),
    "unknown option": (["train", "digits", "--progess"], "--progess"),
    "no recipe": (["train"], "name a recipe"),
    "unknown recipe": (["train", "digit"], "no recipe 'digit'; did you mean 'digits'?"),
    "no file": (["train", "no/such.yaml"], "no recipe file 'no/such.yaml'"),
    "no override": (["train", "digits", "lr"], "'lr' is no override; write KEY.PATH=VALUE"),
    "unknown section": (["train", "digits", "trainig.lr=1"], "unknown key 'trainig'; did you mean 'training'?"),
    "unknown key": (["train", "digits", "training.learning_rate=1"], "'training.learning_rate'; did you mean 'lr'?"),
    "unknown model key": (["train", "digits", "model.widht=8"], "unknown key 'model.widht'; did you mean 'width'?"),
    "unknown model": (["train", "digits", "model.name=U-DiT-XL"], "U-DiT-XL"),
    "word for a number": (["train", "digits", "training.lr=fast"], "lr is 'fast'; it takes a number"),
    "fraction of a step": (["train", "digits", "training.steps=1.5"], "training.steps is 1.5"),
    "number for a switch": (["train", "digits", "training.compile=1"], "compile is 1; it takes true, false or 'auto'"),
    "NaN": (["train", "digits", "training.lr=.nan"], "training.lr is nan; it must be finite"),
    "infinity": (["train", "digits", "training.clip_norm=.inf"], "training.clip_norm is inf"),
    "negative rate": (["train", "digits", "training.lr=-1"], "training.lr is -1; it must be greater than 0"),
    "negative seed": (["train", "digits", "seed=-1"], "seed is -1"),
    "zero steps": (["train", "digits", "training.steps=0"], "training.steps is 0"),
    "too few kept": (["train", "digits", "training.keep=1"], "training.keep is 1"),
    "share above one": (["train", "digits", "data.test_share=1.5"], "data.test_share is 1.5"),
    "nothing left": (["train", "digits", "data.judge_share=0.9", "data.test_share=0.1"], "leave nothing to train on"),
    "odd head width": (
        ["train", "digits", "model.width=6", "model.heads=1"],
        "RoPE needs a multiple of 4",
    ),
    "heads": (["train", "digits", "model.width=8", "model.heads=3"], "width 8 does not split over 3 heads"),
    "levels": (["train", "digits", "model.depths=[1,1]"], "depths has 2 entries; a U needs an odd number"),
    "size of the data": (["train", "digits", "model.input_size=16"], "the data is 8x8"),
    "classes": (["train", "digits", "model.num_classes=3"], "the data has 10 classes"),
    "parts of a batch": (["train", "digits", "training.batch_size=10", "training.accumulation=4"], "does not split"),
    "sampler": (["train", "digits", "sampling.sampler=dmd"], "sampling.sampler is 'dmd'"),
    "guiding nothing": (["train", "digits", "model.num_classes=0", "sampling.guidance=2"], "has no null label"),
    "section for a value": (["train", "digits", "training=fast"], "training is 'fast'; it is a section"),
    "no data folder": (
        ["train", "digits", "data={kind: folder, root: /nowhere}"],
        "'/nowhere', no folder",
    ),
    "no kind of data": (["train", "digits", "data.kind=imagenet"], "data.kind is 'imagenet'"),
    "bad YAML": (["train", "digits", "model.depths=[1,"], "is not valid YAML; quote it"),
    "deep nesting": (["train", "digits", "model.depths=" + "[" * 3000], "is not valid YAML"),
    "no seeds": (["sample", "model", "--seeds", "a-b"], "--seeds has 'a-b'"),
    "backward seeds": (["sample", "model", "--seeds", "9-1"], "a range runs upwards"),
    "no images": (["sample", "model", "--n", "0"], "--n is 0"),
    "no batch": (["sample", "model", "--batch-size", "0"], "--batch-size is 0"),
    "guidance": (["sample", "model", "--guidance", "nan"], "guidance is nan"),
    "steps": (["sample", "model", "--steps", "-3"], "--steps is -3; it must be greater than 0"),
    "word for steps": (["sample", "model", "--steps", "many"], "steps"),
    "sample what": (["sample"], "`udit sample --help` tells more"),
    "unknown graph": (["export", "onxx", "model"], "onxx"),
    "export of what": (["export", "onnx"], "`udit export --help` tells more"),
    "size of a graph": (["export", "onnx", "model", "--size", "big"], "--size is 'big'; write free, a side or HxW"),
    "export to where": (
        ["export", "onnx", "owner/name"],
        "owner/name is not a folder, so the export has no default place",
    ),
    "unknown engine": (["sample", "model", "--engine", "onnx"], "onnx"),
    "unnamed weights": (["convert", RECIPE, "out"], "does not say which model it is; add --model NAME"),
    "unknown weights": (["convert", RECIPE, "out", "--model", "U-DiT"], "U-DiT"),
    "unknown entry": (["models", "U-DiT-XL"], "U-DiT-XL"),
}

NO_TORCH = """
import contextlib, io, json, sys
from udit.cli import main
told = []
for words in json.loads(sys.argv[1]):
    errors = io.StringIO()
    code = None
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code
    told.append((code, errors.getvalue(), "torch" in sys.modules))
sys.stdout.write(json.dumps(told))
"""


def torch_free(commands: list[list[str]]) -> list[tuple[int, str, bool]]:
    """Exit code, standard error, and whether torch had been imported, of commands in one fresh process."""
    words = [sys.executable, "-c", NO_TORCH, json.dumps(commands)]
    return json.loads(subprocess.run(words, env=environment(), capture_output=True, text=True, check=True).stdout)


def test_a_flag_in_place_of_a_command_names_a_help_that_exists(error_of: ErrorOf) -> None:
    assert error_of("--versio").endswith("(`udit --help` tells more)")


def test_every_mistake_is_one_line_with_exit_code_2_before_torch_is_imported() -> None:
    for name, (code, errors, torch) in zip(SLIPS, torch_free([words for words, _ in SLIPS.values()]), strict=True):
        assert (code, torch) == (2, False), f"{name}: {errors}"
        assert errors.startswith("udit: error: "), name
        assert errors.count("\n") == 1, f"{name}: {errors}"
        assert SLIPS[name][1] in errors, name


def test_mistakes_in_a_folder_of_images_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    def words(root: Path, *more: str) -> list[str]:
        return ["train", RECIPE, "data.kind=folder", f"data.root={root}", "data.size=8", "data.channels=1", *more]

    (tmp_path / "empty").mkdir()
    image_folder(tmp_path / "hollow", each=1)
    (tmp_path / "hollow" / "bird").mkdir()
    image_folder(tmp_path / "whole", each=1)
    cases = {
        "holds no class folders": words(tmp_path / "empty"),
        "bird' holds no PNG": words(tmp_path / "hollow"),
        "must be multiples of 4, e.g. 8x8": words(tmp_path / "whole", "data.size=10"),
        "data.size is 0": words(tmp_path / "whole", "data.size=0"),
        "data.channels is 2": words(tmp_path / "whole", "data.channels=2"),
    }
    for wanted, (code, errors, torch) in zip(cases, torch_free(list(cases.values())), strict=True):
        assert (code, torch) == (2, False), errors
        assert wanted in errors
        assert errors.count("\n") == 1


def test_help_and_lists_answer_without_torch() -> None:
    commands = [["--help"], ["--version"], ["train", "--list"]]
    commands += [[name, "--help"] for name in ("train", "sample", "eval", "encode", "convert", "models", "parity")]
    assert [(code, errors, torch) for code, errors, torch in torch_free(commands)] == [(0, "", False)] * len(commands)


def seconds(*words: str) -> float:
    """Processor time of a run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], env=environment(), capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize(
    ("words", "times"), [(["--help"], 2), (["train", "--help"], 2), (["train", "digits", "training.lr=-1"], 3)]
)
def test_help_and_errors_take_little_more_than_the_imports_that_they_need(words: list[str], times: float) -> None:
    """Side by side, as processors differ; torch alone would add several times as much."""
    needed = ("-c", "import cyclopts, numpy, pydantic, ruamel.yaml")
    assert any(seconds("-m", "udit", *words) < times * seconds(*needed) for _ in range(5))


IMPORT = """
import sys, time
import torch
before = time.process_time()
import udit
taken = time.process_time() - before
assert "diffusers" not in sys.modules
udit.build, udit.load, udit.Trainer, udit.sample
assert "diffusers" not in sys.modules
import udit.models.udit.network
assert "torch._dynamo" not in sys.modules  # takes seconds to import, and only compiled graphs need it
sys.stdout.write(str(taken))
"""


@pytest.mark.slow
def test_importing_udit_costs_little_and_leaves_diffusers_and_the_compiler_of_graphs_out() -> None:
    words = [sys.executable, "-c", IMPORT]
    assert float(subprocess.run(words, env=environment(), capture_output=True, text=True, check=True).stdout) <= 0.3


# -- runs ----------------------------------------------------------------------------------------------------------


def test_run_is_trained_found_finished_and_its_folder_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", RECIPE, *SMALL, "training.steps=4", f"out={tmp_path}", "--no-progress"]
    said = succeeds(capsys, *words)
    assert said == f"finished: 4 steps in {tmp_path} (model/, samples/, loss.png); next: udit eval {tmp_path}\n"
    before = state_hash(tmp_path)
    assert succeeds(capsys, *words) == said
    assert state_hash(tmp_path) == before


def test_dry_run_prints_the_run_that_would_be_trained(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    printed = succeeds(capsys, "train", RECIPE, "training.lr=1e-3", f"out={tmp_path / 'o'}", "--dry-run")
    assert parse_yaml(printed, "it") == load_run(RECIPE, ["training.lr=1e-3", f"out={tmp_path / 'o'}"]).plain()
    assert not (tmp_path / "o").exists()


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    first, versions, *rest = succeeds(capsys, "--version").splitlines()
    kernels = " ".join(rest)  # wrapped, where the cache's path is long
    assert first == f"udit {udit.__version__}"
    assert f"torch {metadata.version('torch')}" in versions
    assert re.match("kernels: ([0-9] of 7 compiled in|none compiled yet)", kernels)


def test_corrupt_image_is_named_before_the_first_step(tmp_path: Path, error_of: ErrorOf) -> None:
    data = image_folder(tmp_path / "data", each=5)
    (tmp_path / "data" / "dog" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    line = error_of("train", RECIPE, *data, f"out={tmp_path / 'out'}")
    assert str(tmp_path / "data" / "dog" / "3.png") in line
    assert not (tmp_path / "out").exists()


def test_changed_key_of_a_run_is_named(tmp_path: Path, error_of: ErrorOf, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", RECIPE, *SMALL, "training.steps=1", f"out={tmp_path}", "--no-progress"]
    succeeds(capsys, *words)
    assert error_of(*words, "model.width=16").startswith("model.width was 8 in ")
    (tmp_path / "run.yaml").unlink()
    assert "step-00000001/manifest.json and is 16 now" in error_of(*words, "model.width=16")


def test_file_in_the_place_of_the_run_folder_is_refused(tmp_path: Path, error_of: ErrorOf) -> None:
    (tmp_path / "file").write_text("mine")
    assert "cannot write to run folder" in error_of("train", RECIPE, *SMALL, f"out={tmp_path / 'file'}")


def test_impossible_device_is_refused(tmp_path: Path, error_of: ErrorOf) -> None:
    for device in ("gpu", "cuda:x", "meta"):
        assert f"device is '{device}'" in error_of("train", RECIPE, f"out={tmp_path}", f"training.device={device}")


RANK_1 = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 but RANK, MASTER_ADDR, MASTER_PORT is not set; start with `torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"}, "but MASTER_PORT is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is -1"),
        (RANK_1 | {"RANK": "2"}, "ranks count from 0 to 1"),
        (RANK_1, "rank 1 of 2 met no peers at 127.0.0.1:1 within 1 s (Connection refused)"),
        (RANK_1 | {"MASTER_ADDR": "no.such.host.invalid"}, "met no peers at no.such.host.invalid:1"),
        (RANK_1 | {"MASTER_PORT": "x"}, "met no peers at 127.0.0.1:x"),
        (RANK_1 | {"MASTER_PORT": "70000"}, "met no peers at 127.0.0.1:70000"),
    ],
)
def test_incomplete_launcher_environment_is_refused(
    tmp_path: Path, error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], wanted: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wanted in error_of("train", RECIPE, f"out={tmp_path / 'out'}", "training.timeout=1")
    assert not (tmp_path / "out").exists()


def test_ctrl_c_before_training_is_one_line(tmp_path: Path, error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("udit.training.trainer.Trainer.__init__", interrupt)
    assert error_of("train", RECIPE, f"out={tmp_path}", code=130) == "interrupted"


def test_ctrl_c_while_the_command_line_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "udit.cli", Interrupted("udit.cli"))
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("udit.__main__").main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "udit: error: interrupted\n")


LOGS = """
import contextlib, logging
from udit.cli import main
with contextlib.suppress(SystemExit):
    main(["--version"])
logging.getLogger("torch._subclasses.fake_tensor").info("FakeTensor cache stats:")
logging.getLogger("other").warning("disk nearly full")
logging.getLogger("udit.data").info("a note")
"""


def test_of_other_libraries_warnings_alone_are_printed() -> None:
    """Interrupted while it is imported, torch has not yet silenced its own notes, and prints some as it ends."""
    done = subprocess.run([sys.executable, "-c", LOGS], env=environment(), capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["udit: disk nearly full", "udit: a note"]


def test_unexpected_disk_error_is_one_line(error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **choices: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr("udit.run.recipes.load_run", refuse)
    assert error_of("train", "digits", code=1) == "Permission denied: /somewhere"


def test_closed_pipe_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "udit", "train", "--list"]
    with os.fdopen(writing, "w") as stream:
        ended = subprocess.run(words, stdout=stream, stderr=subprocess.PIPE, env=environment(), text=True, check=False)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize("words", [["bench", "DiT-tiny", "--empty-work"], ["ema", "sweep", "r", "--empty-sigma-rels"]])
def test_lists_have_no_flag_that_empties_them(words: list[str], error_of: ErrorOf) -> None:
    """cyclopts makes one for every option that takes several values, unless told otherwise."""
    told = error_of(*words)
    assert told.startswith(f"no option {words[-1]}")
    assert told.count("--empty-") == 1


def test_mistyped_run_folder_names_the_one_that_is_there(
    tmp_path: Path, error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / "run.yaml").touch()
    for words in (
        ["sample", "runs/digit"],
        ["export", "onnx", "runs/digit", "--out", "x"],
        ["push", "runs/digit", "a/b"],
    ):
        assert error_of(*words).startswith(
            "no folder 'runs/digit' (did you mean 'runs/digits'?), and the hub gave none"
        )
    for words in (["eval", "runs/digit"], ["tune", "runs/digit"], ["fork", "runs/digit", "runs/new"]):
        assert "did you mean 'runs/digits'?" in error_of(*words)
    for words in (["sample", "digits"], ["train", "digits", "init_from=digits", "out=new"]):
        assert error_of(*words).endswith("; did you mean 'runs/digits'?")
