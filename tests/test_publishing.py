"""Models go to the hub and come back with their bits; a local server stands in for the hub."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import nn

import udit
from conftest import ErrorOf, perturb, same_bits, succeeds
from hub_stand_in import serving, use
from hub_writes import READER, TOKEN, WritableHub, taking_uploads
from runs import environment, small_run, train
from udit import store
from udit.assemble import System
from udit.data.codec_config import VAECodec
from udit.data.vae import VAE_WEIGHTS, complete
from udit.errors import UserError
from udit.evaluation.standard import Score, Scores
from udit.hub import PIPELINE_FILES
from udit.publishing.card import Facts, card, is_ours
from udit.run.system import SystemConfig
from vaes import tiny_vae

OneLine = Callable[[BaseException], str]
NAME = "me/digits"
FILES = ["README.md", "config.json", "model.safetensors", "samples.png"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """The stand-in, and a token that may write."""
    with taking_uploads() as hub:
        use(hub, tmp_path / "hf", monkeypatch)  # type: ignore[arg-type]
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(out, "training.steps=4")
    return out


@pytest.fixture
def folder(tiny: nn.Module, tmp_path: Path) -> Path:
    """A model folder without a run."""
    return udit.save(
        System(SystemConfig(model=tiny.config, id2label=tuple("abcde"), steps=7), tiny), tmp_path / "model"
    )


def pictures(model: str | Path) -> torch.Tensor:
    system = udit.load(model)
    return torch.cat(list(system.generate(range(3), [0, 1, 0], sampling=system.config.sampling.replace(steps=2))))


def test_pushed_run_is_loaded_by_its_name_with_equal_pictures(run: Path, hub: WritableHub) -> None:
    pushed = udit.push(run, NAME)
    there = hub.repositories[NAME]
    assert sorted(pushed.files) == FILES
    assert sorted(there.files()) == sorted([".gitattributes", *FILES])
    assert len(there.commits) == 2, "the first one is that of the empty repository"
    assert there.files()["samples.png"] == (run / "samples" / "step-00000004.png").read_bytes()
    assert pushed.changed and pushed.commit == there.branches["main"]
    assert torch.equal(pictures(NAME), pictures(run))


def test_pushing_again_sends_nothing_and_makes_no_commit(run: Path, hub: WritableHub) -> None:
    first = udit.push(run, NAME)
    sent = hub.sent()
    again = udit.push(run, NAME)
    assert (again.changed, again.commit, hub.sent()) == (False, first.commit, sent)


def test_raw_weights_are_pushed_where_asked_for_and_removed_with_the_next_push(run: Path, hub: WritableHub) -> None:
    udit.push(run, NAME, raw=True)
    assert same_bits(
        udit.load(NAME, weights="raw").backbone.state_dict(), udit.load(run, weights="raw").backbone.state_dict()
    )
    sent = hub.sent()
    udit.push(run, NAME)
    assert sorted(hub.repositories[NAME].files()) == sorted([".gitattributes", *FILES])
    assert hub.sent() == sent


def test_model_folder_without_a_run_draws_its_grid(folder: Path, hub: WritableHub) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["sampling"]["steps"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    pushed = udit.push(folder, NAME, license="mit")
    assert hub.repositories[NAME].files()["samples.png"].startswith(b"\x89PNG")
    assert "license: mit" in pushed.card
    assert "the data is not recorded" in pushed.card


def test_card_tells_data_training_and_only_scores_of_these_weights(run: Path, tmp_path: Path, hub: WritableHub) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    for weights, value in ((udit.load(run).fingerprint, 12.5), ("0" * 16, 99.5)):
        scores = Scores(
            scores={"fid": Score(value=value)}, subject={"weights": weights}, protocol={"name": "p", "n": 50}
        )
        (out / "evaluation").mkdir(exist_ok=True)
        scores.write(out / "evaluation" / f"metrics-{weights}.json")
    text = udit.push(out, NAME).card
    assert text.startswith("---\nlibrary_name: udit\nlicense: unknown\n")
    for wanted in (
        "12.5",
        "n: 50",
        "trained for 4 steps",
        "weights; `config.json` has all",
        'udit.load("me/digits")',
        "](samples.png)",
        "digits",
    ):
        assert wanted in text
    assert "99.5" not in text
    assert str(tmp_path) not in text
    assert hub.repositories[NAME].files()["README.md"].decode() == text


def test_run_that_has_not_ended_is_pushed_as_it_is_and_says_so(run: Path, tmp_path: Path, hub: WritableHub) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    values = (out / "run.yaml").read_text()
    (out / "run.yaml").write_text(re.sub(r"\bsteps: 4\b", "steps: 900", values))
    pushed = udit.push(out, NAME, grid=False)
    assert (pushed.step, pushed.last_step) == (4, 900)
    assert "trained for 4 steps of 900: training had not ended" in pushed.card
    assert "samples.png" not in hub.repositories[NAME].files()


def test_card_that_somebody_edited_stays_until_it_is_to_be_replaced(run: Path, hub: WritableHub) -> None:
    udit.push(run, NAME)
    there = hub.repositories[NAME]
    edited = there.files()["README.md"].replace(b"## Scores", b"## My scores")
    there.commit("main", there.files() | {"README.md": edited})
    assert udit.push(run, NAME, license="mit").kept_card
    assert there.files()["README.md"] == edited
    assert not udit.push(run, NAME, license="mit", replace_card=True).kept_card
    assert b"license: mit" in there.files()["README.md"]


def test_own_card_is_recognised_until_it_is_edited(folder: Path) -> None:
    text = card(store.read_config(folder / "config.json"), Facts(NAME, 9, "mit", None, [], FILES))
    assert is_ours(text)
    assert is_ours(text.rstrip("\n"))
    assert not is_ours(text.replace("mit", "apache-2.0"))
    assert not is_ours("# By hand\n")


def test_revision_is_a_branch_of_its_own(run: Path, hub: WritableHub) -> None:
    udit.push(run, NAME, revision="tuned")
    there = hub.repositories[NAME]
    assert sorted(there.files("main")) == [".gitattributes"]
    assert torch.equal(pictures(f"{NAME}@tuned"), pictures(run))


def test_private_repository_is_made_and_a_public_one_refused(run: Path, hub: WritableHub, one_line: OneLine) -> None:
    udit.push(run, NAME, private=True)
    assert hub.repositories[NAME].private
    hub.add("me/public", {})
    with pytest.raises(UserError, match="it exists and is public") as error:
        udit.push(run, "me/public", private=True)
    one_line(error.value)
    assert list(hub.repositories["me/public"].files()) == [".gitattributes"]


def test_dry_run_lists_and_contacts_nobody(
    run: Path, hub: WritableHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    text = succeeds(capsys, "push", str(run), NAME, "--dry-run", "--license", "mit")
    assert not hub.asked
    for wanted in ("model.safetensors", "license: mit", "would push 4 files", ", step 4; nothing was sent"):
        assert wanted in text


def test_command_says_what_it_pushed_and_never_the_token(
    run: Path, hub: WritableHub, capsys: pytest.CaptureFixture[str]
) -> None:
    text = succeeds(capsys, "push", str(run), NAME)
    assert (
        f": {hub.endpoint}/me/digits (commit {hub.repositories[NAME].branches['main'][:12]}); next: udit sample" in text
    )
    assert "the card states no licence" in text
    assert "nothing to push" in succeeds(capsys, "push", str(run), NAME, "--license", "unknown")
    assert TOKEN not in text + capsys.readouterr().err


def test_class_whose_name_has_a_comma_is_one_in_the_card(tiny: nn.Module, tmp_path: Path, hub: WritableHub) -> None:
    named = SystemConfig(model=tiny.config, id2label=("tench, Tinca tinca", "goldfish", *"cde"), steps=7)
    udit.push(udit.save(System(named, tiny), tmp_path / "model"), NAME, grid=False)
    card = hub.repositories[NAME].files()["README.md"].decode()
    assert "- classes: `tench, Tinca tinca`, goldfish, c, d, e\n" in card


# -- autoencoders --------------------------------------------------------------------------------------------------


@pytest.fixture
def latent(tiny: nn.Module, tmp_path: Path) -> Path:
    """A model folder in the latents of a VAE that lies in a folder of this machine."""
    vae = complete(VAECodec(source=str(tiny_vae(tmp_path / "vae"))))
    config = SystemConfig(model=tiny.config, id2label=tuple("abcde"), codec=vae)
    return udit.save(System(config.replace(sampling=config.sampling.replace(steps=1)), tiny), tmp_path / "latent")


@pytest.mark.slow
def test_vae_of_this_machine_goes_along_and_its_place_is_not_told(
    latent: Path, tmp_path: Path, hub: WritableHub
) -> None:
    udit.push(latent, NAME, grid=False)
    files = hub.repositories[NAME].files()
    assert files[f"vae/{VAE_WEIGHTS}"] == (tmp_path / "vae" / VAE_WEIGHTS).read_bytes()
    assert not [name for name, data in files.items() if str(tmp_path).encode() in data]
    shutil.move(tmp_path / "vae", tmp_path / "elsewhere")
    assert udit.load(NAME).codec.config.sha256 == hashlib.sha256(files[f"vae/{VAE_WEIGHTS}"]).hexdigest()
    pulled = udit.pull(NAME, tmp_path / "pulled")
    assert torch.equal(pictures(pulled.folder), pictures(NAME))


def test_vae_of_this_machine_cannot_be_left_out_and_another_one_is_refused(
    latent: Path, tmp_path: Path, hub: WritableHub
) -> None:
    with pytest.raises(UserError, match="which nobody else has; push it too"):
        udit.push(latent, NAME, vae=False, grid=False)
    tiny_vae(tmp_path / "vae", seed=1)
    with pytest.raises(UserError, match="and this model's latents came from"):
        udit.push(latent, NAME, grid=False)
    assert not hub.repositories


def test_vae_of_the_hub_is_named_by_its_digest_or_copied(latent: Path, tmp_path: Path, hub: WritableHub) -> None:
    files = {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()}
    hub.add("other/vae", files)
    system = udit.load(latent)
    codec = system.config.codec.replace(source="other/vae")
    named = udit.save(System(system.config.replace(codec=codec), system.backbone), tmp_path / "named")
    udit.push(named, NAME, grid=False)
    config = json.loads(hub.repositories[NAME].files()["config.json"])
    assert (config["codec"]["source"], config["codec"]["sha256"]) == ("other/vae", codec.sha256)
    assert not (udit.pull(NAME, tmp_path / "without").folder / "vae").exists()
    pulled = udit.pull(NAME, tmp_path / "with", vae=True).folder
    assert udit.load(pulled).config.codec.source == str(pulled / "vae")
    udit.push(named, "me/copied", vae=True, grid=False)
    assert hub.repositories["me/copied"].files()[f"vae/{VAE_WEIGHTS}"] == files[VAE_WEIGHTS]


def test_vae_is_asked_for_only_where_there_is_one(folder: Path, hub: WritableHub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model is in no VAE's latents"):
        udit.push(folder, NAME, vae=True)
    udit.push(folder, NAME, grid=False)
    with pytest.raises(UserError, match="is in no VAE's latents"):
        udit.pull(NAME, tmp_path / "out", vae=True)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "token", "wanted"),
    [
        ("digits", TOKEN, "give owner/name, with your name on the hub"),
        ("me/a/b", TOKEN, "Repo id must be in the form"),
        ("me/with space", TOKEN, "Repo id must use alphanumeric chars"),
        (NAME, "", "without a token; make one that may write on the hub's page, and `hf auth login`"),
        (NAME, "hf_stale", "the hub does not take the token; make one that may write"),
        (NAME, READER, "the token may not write there; give a name of yours, or a token that may write"),
        ("other/taken", TOKEN, "the token may not write there"),
        ("me/pipeline", TOKEN, "it holds diffusers' DiTPipeline, whose files would be replaced; choose another name"),
        ("me/foreign", TOKEN, "it holds a model of another library, whose files would be replaced"),
        ("me/graph", TOKEN, "it holds an exported graph"),
    ],
)  # fmt: skip
def test_what_the_hub_does_not_take_is_one_line_and_changes_nothing(
    name: str,
    token: str,
    wanted: str,
    folder: Path,
    hub: WritableHub,
    monkeypatch: pytest.MonkeyPatch,
    error_of: ErrorOf,
) -> None:
    hub.add("other/taken", {})
    hub.add("me/pipeline", {"model_index.json": b'{"_class_name": "DiTPipeline"}'})
    hub.add("me/foreign", {"config.json": b'{"model_type": "bert"}'})
    hub.add("me/graph", {"config.json": b"{}", "export.json": b"{}"})
    before = {key: len(value.commits) for key, value in hub.repositories.items()}
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
    told = error_of("push", str(folder), name, "--no-grid")
    assert told.startswith(f"cannot push to {name!r}")
    assert wanted in told
    assert token not in told or not token
    assert {key: len(value.commits) for key, value in hub.repositories.items()} == before


def test_licence_that_the_hub_does_not_know_is_one_line(folder: Path, hub: WritableHub, error_of: ErrorOf) -> None:
    told = error_of("push", str(folder), NAME, "--no-grid", "--license", "wrong")
    assert "cannot push to 'me/digits': Invalid metadata in README.md. - \"license\" must be one of" in told
    assert list(hub.repositories[NAME].files()) == [".gitattributes"]


def test_hub_that_cannot_be_reached_is_one_line(
    folder: Path, hub: WritableHub, error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    told = error_of("push", str(folder), NAME, "--no-grid")
    assert "http://127.0.0.1:1 cannot be reached (" in told and "check the network" in told
    assert "cannot be reached" in error_of("pull", NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set; unset it" in error_of("push", str(folder), NAME, "--no-grid")
    assert "HF_HUB_OFFLINE is set, and " in error_of("pull", NAME)


def test_run_without_a_checkpoint_is_one_line(tmp_path: Path, hub: WritableHub, error_of: ErrorOf) -> None:
    from udit.training.folder import write_run

    run = small_run(tmp_path / "begun")
    run.out.mkdir()
    write_run(run)
    assert "has no complete checkpoint yet" in error_of("push", str(run.out), NAME)
    assert "no model at '/nowhere'" in error_of("push", "/nowhere", NAME)
    assert not hub.asked


@pytest.mark.parametrize("told", ["the hub hung up", ""])
def test_connection_that_breaks_while_a_file_is_sent_is_one_line(
    told: str, folder: Path, hub: WritableHub, monkeypatch: pytest.MonkeyPatch, error_of: ErrorOf
) -> None:
    """The client wraps it in a RuntimeError; the other way of sending raises one of its own."""

    def break_off(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error while uploading 'model.safetensors' to the Hub.") from (
            OSError(told) if told else None
        )

    monkeypatch.setattr("huggingface_hub._commit_api._upload_lfs_files", break_off)
    wanted = told or "Error while uploading 'model.safetensors' to the Hub."
    assert error_of("push", str(folder), NAME, "--no-grid") == f"cannot push to {NAME!r}: {wanted}"
    assert list(hub.repositories[NAME].files()) == [".gitattributes"]


def test_push_of_another_meanwhile_is_told(
    run: Path, hub: WritableHub, monkeypatch: pytest.MonkeyPatch, one_line: OneLine
) -> None:
    udit.push(run, NAME)
    there = hub.repositories[NAME]
    from huggingface_hub import HfApi

    commit = HfApi.create_commit

    def late(self: HfApi, *args: object, **kwargs: object) -> object:
        there.commit("main", there.files() | {"notes.md": b"x"})
        return commit(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(UserError, match="somebody else has pushed to it meanwhile; push again") as error:
        udit.push(run, NAME, license="mit")
    one_line(error.value)


# -- pulling -------------------------------------------------------------------------------------------------------


def test_pulled_folder_is_a_model_and_a_revision_an_older_one(
    run: Path, tiny: nn.Module, folder: Path, hub: WritableHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = udit.push(folder, NAME, grid=False)
    udit.push(
        udit.save(System(udit.load(folder).config, perturb(copy.deepcopy(tiny))), tmp_path / "newer"),
        NAME,
        grid=False,
    )
    old = udit.pull(f"{NAME}@{first.commit}", tmp_path / "old").folder
    assert same_bits(udit.load(old).backbone.state_dict(), udit.load(folder).backbone.state_dict())
    told = succeeds(capsys, "pull", NAME, "--out", str(tmp_path / "new"))
    assert f"wrote {tmp_path / 'new'}: commit {hub.repositories[NAME].branches['main'][:12]}; next: udit sample" in told
    assert same_bits(
        udit.load(tmp_path / "new").backbone.state_dict(), udit.load(tmp_path / "newer").backbone.state_dict()
    )


def test_pull_is_served_from_the_cache_offline(
    folder: Path, hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    udit.push(folder, NAME, grid=False)
    udit.pull(NAME, tmp_path / "first")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert same_bits(
        udit.load(udit.pull(NAME, tmp_path / "again").folder).backbone.state_dict(),
        udit.load(folder).backbone.state_dict(),
    )
    assert len(hub.asked) == asked


def test_folder_that_is_there_is_replaced_only_on_demand(
    folder: Path, hub: WritableHub, tmp_path: Path, error_of: ErrorOf, capsys: pytest.CaptureFixture[str]
) -> None:
    udit.push(folder, NAME, grid=False)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    assert "exists and is no model folder" in error_of("pull", NAME, "--out", str(tmp_path / "notes"))
    assert "exists and is no model folder" in error_of("pull", NAME, "--out", str(tmp_path / "notes"), "--overwrite")
    assert "holds a model already; --overwrite replaces it" in error_of("pull", NAME, "--out", str(folder))
    succeeds(capsys, "pull", NAME, "--out", str(folder), "--overwrite")
    assert "has no model.raw.safetensors; leave out --raw" in error_of(
        "pull", NAME, "--raw", "--out", str(tmp_path / "x")
    )
    assert not (tmp_path / "x").exists()


def test_gated_or_unknown_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error_of: ErrorOf) -> None:
    with serving({"config.json": b"{}"}) as hub:
        use(hub, tmp_path / "hf", monkeypatch)
        told = error_of("pull", "o/gated")
        assert "it is gated; ask for access on its page there, and set HF_TOKEN or run `hf auth login`" in told
        assert "it knows none of that name" in error_of("pull", "o/nosuch")
        assert "it has no revision 'v9'" in error_of("pull", "o/m", "--revision", "v9")


def test_demo_is_pushed_with_the_data_of_its_recipe(hub: WritableHub) -> None:
    pushed = udit.push("demo:digits", NAME, license="apache-2.0", grid=False, dry_run=True)
    assert "handwritten digits" in pushed.card


# -- a push that is killed -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_push_leaves_the_branch_whole_and_the_next_one_sends_what_is_missing(run: Path, tmp_path: Path) -> None:
    with taking_uploads() as hub:
        hub.stall = Event()
        command = [sys.executable, "-m", "udit", "push", str(run), NAME, "--raw"]
        variables = environment(HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1", HF_HOME=str(tmp_path))
        process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert hub.stall.wait(60), process.communicate()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        there = hub.repositories[NAME]
        assert sorted(there.files()) == [".gitattributes"]
        sent = dict(hub.large)
        assert sent
        hub.stall = None
        ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert len(there.commits) == 2
        assert sorted(there.files()) == sorted([".gitattributes", "model.raw.safetensors", *FILES])
        assert sorted(f"PUT /large/{oid}" for oid in sent) == sorted(x for x in hub.asked if x.split("/")[-1] in sent)


# -- as a pipeline of diffusers ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pipeline_is_pushed_loaded_and_pulled_by_udit(run: Path, hub: WritableHub, tmp_path: Path) -> None:
    udit.push(run, NAME, raw=True)
    pushed = udit.push(run, NAME, diffusers=True)
    there = hub.repositories[NAME].files()
    assert there is not None
    assert sorted(there) == sorted([".gitattributes", "README.md", "samples.png", *PIPELINE_FILES])
    assert f'DiffusionPipeline.from_pretrained("{NAME}", trust_remote_code=True)' in pushed.card
    assert "executes `pipeline.py`" in pushed.card and "averaged (EMA) weights, fused" in pushed.card
    wanted = pictures(run)
    assert (pictures(NAME).int() - wanted.int()).abs().max() <= 1, "fused weights round otherwise"
    pulled = udit.pull(NAME, tmp_path / "here").folder
    assert torch.equal(pictures(pulled), pictures(NAME))
    assert not udit.push(run, NAME, diffusers=True).changed
    udit.push(run, NAME, grid=False)
    there = hub.repositories[NAME].files()
    assert there is not None and sorted(there) == [".gitattributes", "README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("option", [{"raw": True}, {"vae": False}], ids=str)
def test_pipeline_has_no_place_for(option: dict[str, bool], run: Path, hub: WritableHub) -> None:
    with pytest.raises(UserError, match="--diffusers exclude each other"):
        udit.push(run, NAME, diffusers=True, **option)
