"""The judge classifies unseen images, and training it again gives the same judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import DATA
from udit.data.sources import InMemory, Parts, digits, split
from udit.errors import UserError
from udit.evaluation.judge import Judge, JudgeFeatures, augment, one_thread, train_judge
from udit.evaluation.judge_network import JudgeNet
from udit.evaluation.trust import Trust


@pytest.fixture(scope="module")
def data() -> tuple[InMemory, Parts]:
    source = digits()
    return source, split(source.labels, source.names, 0.35, 0.15)


@pytest.fixture(scope="module")
def judge(data: tuple[InMemory, Parts]) -> Judge:
    return trained(data, steps=120)


def trained(data: tuple[InMemory, Parts], *, steps: int, seed: int = 0, mirrored: bool = False) -> Judge:
    source, parts = data
    images, labels = source.pixels[parts.judge], source.labels[parts.judge]
    return train_judge(images, labels, 10, steps=steps, seed=seed, mirrored=mirrored)


def accuracy(judge: Judge, source: InMemory, part: np.ndarray) -> float:
    return float((judge.predict(source.pixels[part]) == source.labels[part]).mean())


def textures(count: int, height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy colour images of stripes; class 0 lie, class 1 stand, class 2 are none."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = rng.normal(128, 20, (count, 3, height, width))
    pixels[labels == 0, :, :: max(2, height // 8)] += 60
    pixels[labels == 1, :, :, :: max(2, width // 8)] += 60
    return pixels.clip(0, 255).astype(np.uint8), labels


def test_short_training_already_knows_unseen_digits(judge: Judge, data: tuple[InMemory, Parts]) -> None:
    source, parts = data
    assert accuracy(judge, source, parts.test) > 0.93
    assert accuracy(judge, source, parts.train) > 0.93


@pytest.mark.slow
def test_full_training_is_right_on_98_percent_of_unseen_digits(data: tuple[InMemory, Parts]) -> None:
    source, parts = data
    full = trained(data, steps=600)
    assert accuracy(full, source, parts.test) >= 0.98
    assert accuracy(full, source, parts.train) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(90, 130), (16, 12)])
def test_colour_images_of_any_size_are_classified(height: int, width: int) -> None:
    judge = train_judge(*textures(60, height, width, seed=0), 3, steps=15, seed=0)
    images, labels = textures(60, height, width, seed=1)
    assert (judge.predict(images) == labels).mean() > 0.9


def test_single_pixels_can_be_judged() -> None:
    images = np.zeros((20, 1, 1, 1), np.uint8)
    images[::2] = 255
    labels = np.arange(20) % 2
    assert (train_judge(images, labels, 2, steps=20, seed=0).predict(images) == labels).all()


def test_same_arguments_give_the_same_bits(data: tuple[InMemory, Parts]) -> None:
    torch.manual_seed(1)
    first = trained(data, steps=5).fingerprint
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert trained(data, steps=5).fingerprint == first
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert trained(data, steps=5, seed=1).fingerprint != first
    assert trained(data, steps=6).fingerprint != first
    assert trained(data, steps=5, mirrored=True).fingerprint != first


def test_training_leaves_global_randomness_alone(data: tuple[InMemory, Parts]) -> None:
    before = torch.get_rng_state()
    trained(data, steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_features_do_not_depend_on_company(judge: Judge, data: tuple[InMemory, Parts]) -> None:
    images = data[0].pixels[:600]
    features = judge.features(images)
    assert features.shape == (600, 32)
    assert features.dtype == np.float64
    assert features.min() >= 0
    assert np.allclose(features[[0, 300, 599]], judge.features(images[[0, 300, 599]]), atol=1e-5)


def test_features_decide_the_class(judge: Judge, data: tuple[InMemory, Parts]) -> None:
    images = data[0].pixels[:50]
    features = judge.features(images)
    with torch.no_grad():
        logits = judge.net(torch.from_numpy(images / 127.5 - 1).float()).double().numpy()
    assert np.allclose(judge.logits(features), logits, atol=1e-4)
    assert np.array_equal(judge.classes(features), judge.predict(images))
    assert np.array_equal(logits.argmax(1), judge.predict(images))


def test_saved_judge_comes_back(judge: Judge, data: tuple[InMemory, Parts], tmp_path: Path) -> None:
    path = tmp_path / "new" / "judge.safetensors"
    judge.origin = "these pictures"
    judge.save(path)
    back = Judge.load(path)
    assert back.fingerprint == judge.fingerprint
    assert (back.shape, back.num_classes, back.origin) == ((1, 8, 8), 10, "these pictures")
    assert (back.name, back.trust) == ("udit-judge-3", None)
    assert np.array_equal(back.features(data[0].pixels[:9]), judge.features(data[0].pixels[:9]))
    assert [p.name for p in path.parent.iterdir()] == ["judge.safetensors"]


def test_files_that_hold_no_judge_are_refused(judge: Judge, tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    with pytest.raises(UserError, match=r"there is no judge .*`udit eval RUN` trains the one of a run"):
        Judge.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"judge.safetensors' cannot be used .*remove it"):
        Judge.load(path)
    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(UserError, match="cannot be used"):
        Judge.load(path)
    state = {name: value.contiguous() for name, value in judge.net.state_dict().items()}
    save_file(state, path, {"name": "judge-0", "shape": "1x8x8", "classes": "10", "origin": ""})
    with pytest.raises(UserError, match="it is judge-0"):
        Judge.load(path)
    save_file(state, path, {"name": "udit-judge-3", "shape": "1x8x8", "classes": "10", "origin": ""})
    with pytest.raises(UserError, match="does not match its own digest"):
        Judge.load(path)


def test_a_judge_s_file_that_has_changed_is_refused(judge: Judge, tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    told = Judge(judge.net, judge.shape, judge.num_classes, "these images")
    told.trust = Trust(914, 1000, 0.1)
    told.save(path)
    whole = path.read_bytes()
    changed = (
        whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        whole.replace(b"these images", b"those images"),
        whole.replace(b": 914", b": 915"),
    )
    for content in changed:
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(UserError, match="does not match its own digest"):
            Judge.load(path)


def test_what_real_images_said_of_a_judge_is_kept_and_stands_in_its_name(judge: Judge, tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    assert JudgeFeatures(judge).name == "udit-judge-3, not Inception"
    told = Judge(judge.net, judge.shape, judge.num_classes, judge.origin)
    told.trust = Trust(914, 1000, 0.1, "f" * 64)
    told.save(path)
    assert Judge.load(path).trust == told.trust
    assert (
        JudgeFeatures(Judge.load(path)).name == "udit-judge-3, right on 91.4 % of 1000 real test images, not Inception"
    )


def test_a_judge_of_the_former_version_is_read_and_answers_as_it_did() -> None:
    """``judge-2.safetensors`` was trained on striped images by commit 3d9739f, which gave these logits."""
    judge = Judge.load(DATA / "judge-2.safetensors")
    assert (judge.name, judge.shape, judge.origin) == ("udit-judge-2", (1, 4, 4), "stripes of commit 3d9739f")
    assert judge.fingerprint == "628e0bafd8fad836cee61fd604add91c101e4eff5a5d07b2b5d69672c2d7909e"
    images = (5 * np.arange(48, dtype=np.uint8)).reshape(3, 1, 4, 4)
    expected = [
        [-2.796876907348633, -2.4855098724365234, 2.5476608276367188],
        [-1.9367451667785645, -2.0936501026153564, 2.066474199295044],
        [0.03152425214648247, 0.499003142118454, -2.2966630458831787],
    ]
    assert np.allclose(judge.logits(judge.features(images)), expected, atol=1e-4)
    assert JudgeFeatures(judge).name == "udit-judge-2, not Inception"


@pytest.mark.parametrize("side", [1, 3, 8, 9, 16, 17, 28, 32, 45, 64])
def test_the_first_map_is_at_most_16_and_the_last_at_most_4(side: int) -> None:
    seen: list[torch.Size] = []
    with torch.device("meta"):
        net = JudgeNet(3, side, 10)
        for layer in net.body:
            layer.register_forward_hook(lambda _, __, out: seen.append(out.shape))
        assert net(torch.empty(2, 3, side, -(-side // 2))).shape == (2, 10)
    assert max(seen[0][2:]) <= 16
    assert max(seen[-1][2:]) <= 4
    assert seen[0][1] == (32 if seen[0][2] > 8 else 16)
    assert seen[-1][1] <= 128


def test_class_without_images_is_named() -> None:
    with pytest.raises(UserError, match=r"class 1; raise data.judge_share"):
        train_judge(np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 2]), 3, steps=15, seed=0)


def test_augmentation_moves_images_a_little() -> None:
    x = torch.zeros(64, 1, 16, 16)
    x[:, :, 6:10, 6:10] = 1
    moved = augment(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    assert len({tuple(m.flatten().tolist()) for m in moved}) == 64
    rows = torch.arange(16.0)
    centres = (moved.sum((1, 3)) * rows).sum(1) / moved.sum((1, 2, 3))
    assert (centres - 7.5).abs().max() < 1.5
    assert torch.equal(augment(x, torch.Generator().manual_seed(0)), moved)
    lopsided = torch.zeros(64, 1, 16, 16)
    lopsided[..., :8] = 1
    mirrored = augment(lopsided, torch.Generator().manual_seed(0), mirrored=True)
    to_the_right = mirrored[..., 8:].sum((1, 2, 3)) > mirrored[..., :8].sum((1, 2, 3))
    assert 16 < to_the_right.sum() < 48
    assert not (augment(lopsided, torch.Generator().manual_seed(0))[..., 8:].sum((1, 2, 3)) > 64).any()
    flat = torch.full((4, 1, 8, 8), 0.3)
    assert torch.allclose(augment(flat, torch.Generator().manual_seed(0)), flat)  # nothing black comes in


def test_threads_are_given_back_after_an_error() -> None:
    threads = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with one_thread():
            seen.append(torch.get_num_threads())
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert seen == [1]
    assert torch.get_num_threads() == threads
