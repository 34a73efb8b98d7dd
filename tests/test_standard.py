"""Any samples, any reference: the numbers are right, and those of different protocols are listed separately."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import ErrorOf, succeeds
from udit.data.codec_config import IdentityCodec, VAECodec
from udit.data.vae import VAE_WEIGHTS, cached_sha256
from udit.errors import UserError
from udit.evaluation import gathered, npz, standard
from udit.evaluation.fidelity import Features
from udit.evaluation.frechet import Statistics, distance
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judge import JudgeFeatures, train_judge
from udit.evaluation.protocol import PROTOCOLS, check_model, find_protocol
from udit.evaluation.sets import read_images, read_reference, reference_of
from udit.evaluation.standard import Scores, require_same_protocol, score, tables

pytest.importorskip("torch_fidelity")


class Pixels:
    """An extractor whose features are pixels, so that closed forms are known."""

    name = "pixels"
    sha256 = "0" * 64
    inception = False

    def __call__(self, images: np.ndarray) -> Features:
        flat = images.reshape(len(images), -1).astype(np.float64)
        return Features(flat[:, :4], flat[:, 4:8], flat[:, :3] / 64)


class Published(Pixels):
    """The same in the place of the literature's Inception."""

    name = "inception-v3-compat, pixels"
    inception = True


def random_images(count: int, shift: int = 0, seed: int = 0) -> np.ndarray:
    g = np.random.default_rng(seed)
    return (g.integers(0, 100, (count, 3, 8, 8)) + shift).astype(np.uint8)


def pixels_of(path: Path) -> np.ndarray:
    return np.concatenate(list(read_images(path).chunks()))


@pytest.fixture(scope="module")
def scored() -> Scores:
    reference = reference_of(random_images(400, seed=1), Published())
    return score(random_images(300, 20), Published(), reference, subject={"run": "a"}, protocol={"name": "test"})


def test_every_score_says_what_made_it(scored: Scores) -> None:
    manifolds = {"precision", "recall", "density", "coverage"}
    assert set(scored.scores) == {"fid", "sfid", "inception_score", "kid", "mind"} | manifolds
    assert all("pixels" in found.beside for found in scored.scores.values())
    assert scored.protocol["num_samples"] == 300
    assert scored.protocol["reference_count"] == 400
    assert scored.protocol["extractor_sha256"] == Pixels.sha256


def test_only_inceptions_numbers_have_the_names_of_the_literature(scored: Scores) -> None:
    reference = reference_of(random_images(400, seed=1), Pixels())
    found = score(random_images(300, 20), Pixels(), reference, subject={}, protocol={})
    manifolds = {"precision", "recall", "density", "coverage"}
    assert set(found.scores) == {"frechet_distance", "kernel_distance", "sliced_distance"} | manifolds
    assert found.distance.value == scored.distance.value == scored.scores["fid"].value
    assert found.scores["sliced_distance"].value == scored.scores["mind"].value
    of_older = found.replace(scores={"fid": found.distance})
    assert "frechet_distance" in tables([("old", of_older)])
    assert "| fid" not in tables([("old", of_older)])


def test_one_pass_scores_in_several_spaces_and_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathered, "KEPT", 100)
    monkeypatch.setattr(standard, "KEPT", 100)
    whole = random_images(400, 20)
    images, read = ImageSet.of(whole), []

    def reading(ids: np.ndarray) -> np.ndarray:
        read.append(len(ids))
        return images.read(ids)

    spaces = [(kind(), reference_of(random_images(400, seed=1), kind())) for kind in (Pixels, Published)]
    kept: list[gathered.Gathered] = []
    ours, theirs = standard.score_panel(
        ImageSet(400, images.shape, reading), spaces, subject={}, protocol={}, keep=lambda seen, _: kept.append(seen)
    )
    assert sum(read) == 400
    assert [len(seen.rows) for seen in kept] == [100, 100]
    assert np.array_equal(kept[0].rows, Pixels()(whole[::4]).pool)
    exact = Statistics.of(Pixels()(whole).pool)
    assert kept[0].statistics.cov == pytest.approx(exact.cov)
    assert ours.distance.value == pytest.approx(distance(exact, spaces[0][1].pool)) == theirs.distance.value
    assert ours.distance.interval is not None
    assert ours.protocol["manifolds_of"] == 100


def test_agreement_of_a_judge_is_one_of_the_scores() -> None:
    class Judging(Pixels):
        def __call__(self, images: np.ndarray) -> Features:
            return Features(super().__call__(images).pool, classes=np.zeros(len(images), np.int64))

    reference = reference_of(random_images(40), Judging())
    labels = np.arange(40) % 4
    (found,) = standard.score_panel(
        random_images(40, 20), [(Judging(), reference)], subject={}, protocol={}, labels=labels
    )
    assert found.scores["class_agreement"].value == 0.25
    assert found.scores["class_agreement"].interval is not None


@pytest.mark.parametrize("name", ["fid", "sfid"])
def test_distances_are_near_the_closed_form_with_interval_and_spread(scored: Scores, name: str) -> None:
    found = scored.scores[name]
    assert found.interval is not None
    assert found.debiased is not None
    assert found.interval[0] < found.debiased < found.value
    assert found.interval[0] < 4 * 20**2 < found.interval[1]  # four features, each 20 off
    assert len(found.spread) == 5
    assert np.mean(found.spread) > found.value  # fewer samples seem farther away


def test_scores_come_back_from_disk(scored: Scores, tmp_path: Path) -> None:
    scored.write(tmp_path / "metrics.json")
    assert Scores.read(tmp_path / "metrics.json") == scored
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="holds no scores"):
        Scores.read(tmp_path / "metrics.json")


def test_different_protocols_are_listed_separately_and_not_compared(scored: Scores) -> None:
    other = scored.replace(protocol=scored.protocol | {"num_samples": 50_000})
    same = scored.replace(subject={"run": "b"})
    text = tables([("a", scored), ("b", same), ("c", other)])
    assert text.count("| samples") == 2
    first, second = text.split("Another protocol")
    assert "| b " in first
    assert "| c " not in first
    assert "it differs in num_samples" in second
    require_same_protocol([("a", scored), ("b", same)])
    with pytest.raises(UserError, match="a and c were scored under protocols that differ in num_samples"):
        require_same_protocol([("a", scored), ("c", other)])


def test_statistics_alone_give_distances_and_nothing_that_needs_images(tmp_path: Path) -> None:
    made = reference_of(random_images(400, seed=1), Published())
    npz.write(tmp_path / "ref.npz", pool=made.pool, spatial=made.spatial)
    reference = read_reference(tmp_path / "ref.npz", Published())
    found = score(random_images(300, 20), Published(), reference, subject={}, protocol={})
    assert set(found.scores) == {"fid", "sfid", "inception_score"}
    assert found.scores["fid"].value == pytest.approx(
        score(random_images(300, 20), Published(), made, subject={}, protocol={}).scores["fid"].value
    )


def test_statistics_of_another_extractor_are_refused(tmp_path: Path) -> None:
    made = reference_of(random_images(40), Pixels())
    npz.write(tmp_path / "ref.npz", pool=made.pool, facts={"extractor": "inception", "extractor_sha256": "1" * 64})
    with pytest.raises(UserError, match="use one of them for both"):
        read_reference(tmp_path / "ref.npz", Pixels())
    npz.write(tmp_path / "bare.npz", pool=Statistics.of(random_images(40)[:, 0, 0, :3]))
    with pytest.raises(UserError, match="the reference has 3 features and pixels gives 4"):
        score(random_images(30), Pixels(), read_reference(tmp_path / "bare.npz", Pixels()), subject={}, protocol={})


def test_folder_and_npz_of_the_same_images_are_the_same(tmp_path: Path) -> None:
    images = random_images(12)
    npz.write(tmp_path / "a.npz", images=images)
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{i:06d}.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "grid.png")
    assert np.array_equal(pixels_of(tmp_path), pixels_of(tmp_path / "a.npz"))
    Image.new("RGB", (9, 9)).save(tmp_path / "odd.png")
    with pytest.raises(UserError, match=r"is 9x9 and the first, .*000000\.png', is 8x8"):
        pixels_of(tmp_path)


# -- protocols ---------------------------------------------------------------------------------------------------------


def test_adm_256_pins_what_a_published_number_depends_on() -> None:
    protocol = find_protocol("adm-256")
    assert (protocol.sampling.sampler, protocol.sampling.steps, protocol.sampling.guidance) == ("ddpm", 250, 1.0)
    assert protocol.num_samples == 50_000
    assert protocol.labels == "random"
    assert protocol.codec == "stabilityai/sd-vae-ft-ema"
    guided = PROTOCOLS["adm-256-cfg1.5"].sampling
    assert (guided.guidance, guided.guidance_channels) == (1.5, 3)
    with pytest.raises(UserError, match="did you mean 'adm-256'"):
        find_protocol("adm256")


def test_protocol_refuses_a_model_it_is_not_for() -> None:
    protocol = find_protocol("adm-256")
    codec = VAECodec(source="stabilityai/sd-vae-ft-ema")
    check_model("adm-256", protocol, shape=(4, 32, 32), num_classes=1000, codec=codec, cached_sha256=cached_sha256)
    with pytest.raises(UserError, match="is for models of 4x32x32 and 1000 classes"):
        check_model("adm-256", protocol, shape=(1, 8, 8), num_classes=10, codec=codec, cached_sha256=cached_sha256)
    with pytest.raises(UserError, match="this model's codec is identity"):
        check_model(
            "adm-256", protocol, shape=(4, 32, 32), num_classes=1000, codec=IdentityCodec(), cached_sha256=cached_sha256
        )


def test_protocol_knows_its_vae_by_the_file_wherever_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(codec: VAECodec) -> None:
        check_model(
            "adm-256",
            find_protocol("adm-256"),
            shape=(4, 32, 32),
            num_classes=1000,
            codec=codec,
            cached_sha256=cached_sha256,
        )

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    weights = b"as if they were weights"
    same, other = (VAECodec(source="/elsewhere", sha256=hashlib.sha256(b).hexdigest()) for b in (weights, b"others"))
    with pytest.raises(UserError, match="this model's codec is /elsewhere; score it"):
        check(same)  # nobody can know
    snapshot = tmp_path / "models--stabilityai--sd-vae-ft-ema" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / VAE_WEIGHTS).write_bytes(weights)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c0ffee")
    check(same)
    check(VAECodec(source="stabilityai/sd-vae-ft-ema"))
    for wrong in (other, other.replace(source="stabilityai/sd-vae-ft-ema")):
        with pytest.raises(UserError, match=rf"\(sha256 {other.sha256[:12]}, not {same.sha256[:12]}\)"):
            check(wrong)


# -- commands ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples and images as .npz, and a judge of two classes."""
    folder = tmp_path_factory.mktemp("files")
    npz.write(folder / "samples.npz", images=random_images(40, 60))
    npz.write(folder / "images.npz", images=random_images(50, seed=1), labels=np.arange(50) % 2)
    images = np.concatenate([random_images(30, seed=2), random_images(30, 100, seed=3)])
    train_judge(images, np.repeat([0, 1], 30), 2, steps=10, seed=0).save(folder / "judge.safetensors")
    return folder


def test_other_tools_samples_are_scored_from_the_command_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = ["--features", "judge", "--weights-file", str(files / "judge.safetensors")]
    made = succeeds(capsys, "ref", "make", str(files / "images.npz"), str(files / "ref.npz"), *judge)
    assert "statistics of 50 images by udit-judge" in made
    shown = succeeds(capsys, "ref", "inspect", str(files / "ref.npz"))
    assert "50 images of 3x8x8" in shown
    assert "mu, sigma" in shown
    out = files / "metrics.json"
    words = ["eval", str(files / "samples.npz"), "--reference", str(files / "ref.npz"), *judge, "--out", str(out)]
    text = succeeds(capsys, *words)
    assert "not Inception" in text
    found = Scores.read(out)
    assert {"frechet_distance", "kernel_distance", "precision", "recall"} <= set(found.scores)
    assert "not Inception" in found.distance.beside
    assert "| frechet_distance" in succeeds(capsys, "scores", str(out), str(out))


def test_mistakes_are_refused(files: Path, error_of: ErrorOf) -> None:
    samples = str(files / "samples.npz")
    assert "images need a --reference" in error_of("eval", samples)
    reference = ["--reference", str(files / "images.npz")]
    assert "need the classifier of a run" in error_of("eval", samples, *reference, "--features", "judge")
    assert "is 'inceptoin'; did you mean 'inception'?" in error_of(
        "eval", samples, *reference, "--features", "inceptoin"
    )
    assert "timm needs a model" in error_of("eval", samples, *reference, "--features", "timm")
    two = ["--features", "judge,inception", "--weights-file", "x.pth"]
    assert "--features names 2; give NAME:FILE" in error_of("eval", samples, *reference, *two)
    assert "--paired compares two and 1 are given" in error_of("scores", "a.json", "--paired")
    assert "--steps is for runs" in error_of("eval", samples, "--steps", "3", *reference)
    assert "is no run folder" in error_of("eval", "nowhere")
    assert "must end in .npz" in error_of("ref", "make", samples, "ref.txt")
    assert "no file" in error_of("ref", "inspect", "none.npz")
    assert "name at least one" in error_of("scores")


def test_judge_is_for_its_own_images_alone(files: Path) -> None:
    from udit.evaluation.judge import Judge

    judge = JudgeFeatures(Judge.load(files / "judge.safetensors"))
    with pytest.raises(UserError, match="the judge knows"):
        judge(np.zeros((2, 3, 9, 9), np.uint8))
