"""Texts as conditions: a frozen language model's hidden states, from a prompt to the network, and on disk."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hub_stand_in import COMMIT, serving, use
from text_models import gguf_header, language_model
from udit.dist import World
from udit.errors import UserError
from udit.text import cache
from udit.text.config import TextConfig, layers_of
from udit.text.files import complete, with_layers
from udit.text.model import LanguageModel, conditions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("language") / "model")


def config_of(folder: Path, readers: int = 3, **values: Any) -> TextConfig:
    return with_layers(complete(TextConfig(source=str(folder), **{"tokens": 6, **values})), readers)


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return config_of(folder).build()


def test_blocks_read_layers_that_are_evenly_spread() -> None:
    assert layers_of(8, 30) == (1, 5, 9, 13, 18, 22, 26, 30)
    assert layers_of(30, 30) == tuple(range(1, 31))
    assert layers_of(4, 2) == (1, 1, 2, 2)
    assert layers_of(1, 30) == (30,)


def test_files_decide_sizes_and_digest(folder: Path) -> None:
    found = config_of(folder)
    assert (found.width, found.depth, found.layers) == (32, 4, (1, 2, 4))
    assert found.sha256 is not None
    assert complete(found.replace(source="/moved")) == found.replace(source="/moved")  # complete, so not looked for


def test_states_are_those_of_the_layers_normalised(model: LanguageModel) -> None:
    from transformers import AutoModelForCausalLM

    numbers = model.tokens("a cat above a dog")
    assert numbers == [0, 2, 15, 4, 2, 16]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(model.config.source)(
            torch.tensor([numbers]), output_hidden_states=True
        ).hidden_states
    states = model.states("a cat above a dog").float()
    assert states.shape == (6, 3, 32)
    for i, layer in enumerate((1, 2, 4)):
        expected = plain[layer][0] / plain[layer][0].square().mean(-1, keepdim=True).add(1e-6).sqrt()
        torch.testing.assert_close(states[:, i], expected, atol=2e-3, rtol=2e-3)  # float16 keeps 11 bits


def test_the_empty_text_is_one_token_and_a_long_one_is_cut(
    model: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    assert model.tokens("") == [0]
    assert model.states("").shape == (1, 3, 32)
    assert model.tokens("a cat " * 150) == [0, 2, 15, 2, 15, 2]
    assert model.tokens("a dog " * 150)[:3] == [0, 2, 16]
    [line] = caplog.messages
    assert line.startswith("a text has 301 tokens and the model reads 6, so that its end is left out")


def test_conditions_repeat_layers_and_pad_with_zeros(model: LanguageModel) -> None:
    config = model.config.replace(layers=(4, 1, 2, 4))
    parts = [model.states("a cat"), model.states("")]
    y = conditions(parts, config, (4, 6, 32))
    assert y.shape == (2, 4, 6, 32)
    assert torch.equal(y[:, 0], y[:, 3])
    assert torch.equal(y[0, 1, :3], parts[0][:, 0].float())
    assert not y[0, :, 3:].any()
    assert not y[1, :, 1:].any()
    one = conditions([part[:, 2:] for part in parts], config.replace(layers=(4,)), (6, 32))
    assert torch.equal(one, y[:, 0])


def captions() -> list[str]:
    return cache.with_empty(["a cat", "a dog above a cat", "a cat"])


def test_states_on_disk_are_those_of_the_model_and_are_written_once(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SHARD_SIZE", 2)
    config = model.config
    assert cache.write(tmp_path / "texts", config, captions(), World())
    (tmp_path / "texts" / "shard-00001.safetensors").unlink()
    assert cache.write(tmp_path / "texts", config, captions(), World())  # what is missing
    monkeypatch.setattr(TextConfig, "build", _refused)
    assert not cache.write(tmp_path / "texts", config, captions(), World())
    texts = cache.Texts(tmp_path / "texts", config, captions(), (3, 6, 32))
    for caption in captions():
        expected = conditions([model.states(caption)], config, (3, 6, 32))
        assert torch.equal(texts.of([caption]), expected)
    assert torch.equal(texts.null, texts.of([""])[0])


def _refused(*_: object) -> LanguageModel:
    raise AssertionError("the language model is loaded")


def test_states_of_other_captions_are_not_mixed(model: LanguageModel, tmp_path: Path) -> None:
    cache.write(tmp_path, model.config, captions(), World())
    with pytest.raises(UserError, match=r"holds hidden states of other captions or of another language model"):
        cache.write(tmp_path, model.config, captions()[:2], World())
    (tmp_path / "shard-00000.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"shard-00000.safetensors cannot be read .*; remove it"):
        cache.Texts(tmp_path, model.config, captions(), (3, 6, 32))


# ---- what is refused -------------------------------------------------------------------------------------------------


def number(value: int) -> bytes:
    return struct.pack("<I", value)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


HEADER = [
    ("general.architecture", 8, text("llama")),
    ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
    ("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 3) + bytes(12)),
    ("llama.embedding_length", 4, number(576)),
    ("llama.block_count", 4, number(30)),
]


def test_the_header_of_a_gguf_file_says_the_sizes(tmp_path: Path) -> None:
    found = complete(TextConfig(source=str(gguf_header(tmp_path / "m.gguf", HEADER))))
    assert (found.width, found.depth) == (576, 30)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04 something else", r"is no GGUF file of a language model \(it does not begin with GGUF\)"),
        (b"GGUF\x03\x00", r"is no GGUF file of a language model \(it ends too early\)"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), r"\(its version is 1, and 2 and 3 are read\)"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 60), r"\(a string in it is too long\)"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + number(77), r"\(a value in it has the unknown type 77\)"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), r"\(it says no size of one\)"),
    ],
    ids=["other", "torn", "version", "string", "type", "empty"],
)
def test_a_gguf_that_is_none_is_refused(
    tmp_path: Path, content: bytes, said: str, one_line: Callable[..., str]
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        complete(TextConfig(source=str(path)))
    assert one_line(error.value).endswith("; get it again")


def test_what_is_no_language_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the language model '.*m.gguf' is not there; give its place as text.source"):
        complete(TextConfig(source=str(tmp_path / "m.gguf")))
    with pytest.raises(
        UserError, match=r"the language model 'smollm' is not there; give a folder as `transformers` saves it"
    ):
        complete(TextConfig(source="smollm"))
    with pytest.raises(UserError, match=r"config.json cannot be read \(No such file"):
        complete(TextConfig(source=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 8, "n_layer": 2}))
    with pytest.raises(UserError, match=r"holds no weights \(\*.safetensors\), and pickled ones are not opened"):
        complete(TextConfig(source=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="holds no tokenizer"):
        complete(TextConfig(source=str(tmp_path)))
    config = config_of(folder)
    with pytest.raises(UserError, match=r"text.layers has 2 entries and the model reads 3"):
        with_layers(config.replace(layers=(1, 2)), 3)
    with pytest.raises(UserError, match=r"text.layers has 9 and the language model has 4 layers"):
        with_layers(config.replace(layers=(1, 2, 9)), 3)


def test_another_language_model_than_that_of_the_training_is_refused(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder)
    wide = language_model(tmp_path / "wide", width=48)
    with pytest.raises(UserError, match=r"is 48 channels wide and the model was trained with one 32 channels wide"):
        config.replace(source=str(wide)).build()
    other = language_model(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"is [0-9a-f]{12} \(sha256\) and the model was trained with [0-9a-f]{12}"):
        config.replace(source=str(other)).build()


def test_a_language_model_without_a_first_token_is_refused(tmp_path: Path) -> None:
    config = config_of(language_model(tmp_path / "model", bos=False))
    with pytest.raises(UserError, match=r"has neither a BOS nor an EOS token"):
        config.build()


def test_a_language_model_of_the_hub_is_recorded_with_its_commit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({file.name: file.read_bytes() for file in folder.iterdir()}) as hub:
        use(hub, tmp_path / "hub", monkeypatch)
        found = config_of(folder).replace(source="o/m", width=None, depth=None, sha256=None)
        resolved = complete(found)
        assert (resolved.revision, resolved.sha256) == (COMMIT, config_of(folder).sha256)
        assert torch.equal(resolved.build().states("a cat"), config_of(folder).build().states("a cat"))


def test_a_gated_language_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"config.json": b"{}"}) as hub:
        use(hub, tmp_path / "hub", monkeypatch)
        with pytest.raises(UserError) as error:
            complete(TextConfig(source="o/gated"))
    assert str(error.value) == (
        "the language model 'o/gated' is no folder, and the hub gave none: it is gated; ask for access on its page "
        "there, and set HF_TOKEN or run `hf auth login`; or put its files into a folder and give that as text.source"
    )
