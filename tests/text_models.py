"""Tiny language models for tests: folders as `transformers` saves them, with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = (
    "a",
    "an",
    "above",
    "below",
    "left",
    "right",
    "of",
    "two",
    "three",
    "seven",
    "eight",
    "one",
    "zero",
    "cat",
    "dog",
)
BOS, UNKNOWN = "<s>", "<unk>"


def language_model(folder: Path, width: int = 32, layers: int = 4, seed: int = 0, bos: bool = True) -> Path:
    """Writes a Llama of random weights whose tokens are ``WORDS``; returns the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=0 if bos else None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate((BOS, UNKNOWN, *WORDS))}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    facts: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": UNKNOWN}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts | ({"bos_token": BOS} if bos else {})))
    return folder


def gguf_header(path: Path, values: Sequence[tuple[str, int, bytes]], version: int = 3) -> Path:
    """Writes the header of a GGUF file with keys, the numbers of their types and packed values; returns the path."""
    import struct

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    keys = b"".join(string(name) + struct.pack("<I", kind) + value for name, kind, value in values)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, len(values)) + keys)
    return path
