"""Samples of a score are the same images after interruptions and on any number of ranks."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import succeeds
from runs import environment, finish, free_port, train
from udit.cli import main
from udit.errors import UserError
from udit.evaluation.judge import Judge
from udit.evaluation.report import Report
from udit.evaluation.shards import Shards, labels_for

KEY = {"weights": "abc"}


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 4, 4), np.uint8)


def test_shards_come_back_in_order_and_cover_every_image_once(tmp_path: Path) -> None:
    shards, images = Shards(tmp_path, KEY, 10, 4), random_images(10)
    assert [i for s in range(len(shards)) for i in shards.places(s)] == list(range(10))
    assert list(shards.missing(0, 2)) == [0, 2]
    assert list(shards.missing(1, 2)) == [1]
    for shard in (2, 0, 1):
        shards.write(shard, images[list(shards.places(shard))])
    assert list(shards.missing()) == []
    assert shards.images().shape == (1, 4, 4)
    assert np.array_equal(np.concatenate(list(shards.images().chunks(3))), images)
    picked = np.array([9, 0, 5, 4])
    assert np.array_equal(shards.images().read(picked), images[picked])
    shards.remove()
    assert list(tmp_path.iterdir()) == []


def test_truncated_altered_or_short_shard_is_sampled_again(tmp_path: Path) -> None:
    shards, images = Shards(tmp_path, KEY, 10, 4), random_images(10)
    for shard in range(3):
        shards.write(shard, images[list(shards.places(shard))])
    files = sorted(shards.folder.iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-30])
    data = bytearray(files[1].read_bytes())
    data[200] ^= 1
    files[1].write_bytes(data)
    assert list(shards.missing()) == [0, 1]
    assert list(Shards(tmp_path, KEY, 11, 4).missing()) == [0, 1, 2]  # the last holds 3 now
    with pytest.raises(UserError, match=r"2 shards of .* are missing; run the same command again"):
        shards.images()


def test_other_weights_or_settings_have_shards_of_their_own(tmp_path: Path) -> None:
    folders = {Shards(tmp_path, key, 10, size).folder for key in (KEY, {"weights": "d"}) for size in (4, 5)}
    assert len(folders) == 4


def test_labels_are_balanced_or_keyed_by_the_seed() -> None:
    assert labels_for(5, 3, "balanced", 7) == [0, 1, 2, 0, 1]
    drawn = labels_for(3000, 3, "random", 0)
    assert np.bincount(drawn).min() > 900
    assert labels_for(10, 3, "random", 5) == drawn[5:15]


# -- real processes ------------------------------------------------------------------------------------------------

WORDS = ("--n", "60", "--steps", "3", "--no-progress")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(out, "training.steps=3", "evaluation.batch_size=5", "evaluation.judge_steps=5", "evaluation.bootstrap=10")
    return out


def evaluate(run: Path, ranks: int = 1) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "udit", "eval", str(run), *WORDS]
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} if ranks > 1 else {}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    each = [{"RANK": str(rank), **group} if group else {} for rank in range(ranks)]
    return [subprocess.Popen(command, env=environment(**extra), **quiet) for extra in each]


def outcome(run: Path) -> tuple[str, str]:
    """Hashes of the samples and of the scores; the files are removed."""
    with np.load(run / "evaluation" / "samples.npz") as file:
        samples = hashlib.sha256(file["arr_0"].tobytes()).hexdigest()
    scores = hashlib.sha256((run / "evaluation" / "metrics.json").read_bytes()).hexdigest()
    for path in (run / "evaluation").iterdir():
        path.unlink()  # an error if shards are left: folders cannot be unlinked
    return samples, scores


@pytest.mark.slow
def test_drawing_or_scoring_that_died_anywhere_ends_at_the_same_files(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(run), *WORDS]
    succeeds(capsys, *words)
    wanted = outcome(run)
    for owner, method, lasts in ((Shards, "write", 3), (Judge, "save", 0), (Report, "write", 0), (Shards, "remove", 0)):
        honest, calls = getattr(owner, method), []

        def dying(*given: object) -> object:
            calls.append(1)  # noqa: B023
            if len(calls) > lasts:  # noqa: B023
                raise KeyError("pulled the plug")
            return honest(*given)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(owner, method, dying)
            with pytest.raises(KeyError):
                main(words)
        succeeds(capsys, *words)
        assert outcome(run) == wanted, method


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_draw_the_same_samples_and_score(run: Path) -> None:
    assert [code for code, _ in finish(evaluate(run))] == [0]
    wanted = outcome(run)
    ended = finish(evaluate(run, ranks=2))
    assert [code for code, _ in ended] == [0, 0], ended
    assert outcome(run) == wanted
