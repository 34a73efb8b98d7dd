"""What the files of a language model decide of a ``TextConfig``: its sizes and its digest; free of torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, PositiveInt

from udit import hub
from udit.errors import UserError
from udit.files import file_sha256
from udit.spec.base import Spec, parse
from udit.text.config import TextConfig, layers_of
from udit.text.gguf import read_header

CONFIG, WEIGHTS = "config.json", "*.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
"""Files of which at least one makes a tokenizer."""
DECIDING = (CONFIG, "tokenizer_config.json", "special_tokens_map.json", *TOKENIZER)
"""Files beside the weights that decide the hidden states of a text."""


class Sizes(Spec):
    """What matters of a language model's own ``config.json``."""

    model_config = Spec.model_config | {"extra": "ignore", "validate_by_name": True, "validate_by_alias": True}

    width: Annotated[PositiveInt, Field(validation_alias=AliasChoices("hidden_size", "n_embd", "d_model"))]
    depth: Annotated[PositiveInt, Field(validation_alias=AliasChoices("num_hidden_layers", "n_layer", "num_layers"))]


def is_gguf(source: str) -> bool:
    """Whether a source is a GGUF file, by its name."""
    return source.lower().endswith(".gguf")


def place_of(text: TextConfig) -> Path:
    """The folder or .gguf file of a language model, downloaded where ``source`` is a hub id.

    Raises:
        UserError: there is none.
    """
    path = Path(text.source).expanduser()
    if path.is_dir() or is_gguf(text.source):
        if not path.exists():
            raise UserError(
                f"the language model {text.source!r} is not there; give its place as text.source, to `udit sample` as "
                "--text-model"
            )
        return path
    if not hub.is_hub_id(text.source) or path.is_file():
        raise UserError(
            f"the language model {text.source!r} is not there; give a folder as `transformers` saves it, a .gguf file "
            "or a hub id (owner/name) as text.source, to `udit sample` as --text-model"
        )
    return hub.snapshot(
        text.source,
        (*DECIDING, WEIGHTS),
        what=f"the language model {text.source!r} is no folder",
        revision=text.revision,
        remedy="or put its files into a folder and give that as text.source",
    )


def complete(text: TextConfig) -> TextConfig:
    """The config with sizes and digest of the language model's files; one that has them is not looked for.

    Raises:
        UserError: its files cannot be read, or are those of another model.
    """
    if None not in (text.width, text.depth, text.sha256):
        return text
    place = place_of(text)
    sizes, digest = sizes_of(place), digest_of(place)
    check_same(text, sizes, digest)
    text = text.replace(width=sizes.width, depth=sizes.depth, sha256=digest)
    if place == Path(text.source).expanduser():
        return text.replace(source=str(place.resolve()))
    return text.replace(revision=place.name)


def with_layers(text: TextConfig, readers: int) -> TextConfig:
    """A complete config with the layer that each block reads.

    Args:
        text: of ``complete``.
        readers: how many layers the network reads (``ModelConfig.readers``).

    Raises:
        UserError: it names another number of layers, or one that the language model does not have.
    """
    assert text.depth is not None, "an incomplete config"
    layers = layers_of(readers, text.depth) if text.layers is None else text.layers
    if len(layers) != readers:
        raise UserError(
            f"text.layers has {len(layers)} entries and the model reads {readers}; give one for each, or leave it out"
        )
    if max(layers) > text.depth:
        raise UserError(f"text.layers has {max(layers)} and the language model has {text.depth} layers; count from 1")
    return text.replace(layers=layers)


def check_same(text: TextConfig, sizes: Sizes, digest: str) -> None:
    """Refuses another language model than the one that the config describes.

    Raises:
        UserError: sizes or digests differ.
    """
    for what, wanted, found in (("channels wide", text.width, sizes.width), ("layers deep", text.depth, sizes.depth)):
        if wanted not in (None, found):
            raise UserError(
                f"the language model {text.source!r} is {found} {what} and the model was trained with one {wanted} "
                f"{what}; give that one"
            )
    if text.sha256 not in (None, digest):
        raise UserError(
            f"the language model {text.source!r} is {digest[:12]} (sha256) and the model was trained with "
            f"{str(text.sha256)[:12]}; give that one"
        )


def sizes_of(place: Path) -> Sizes:
    """Width and depth of the language model in a folder or .gguf file.

    Raises:
        UserError: its files cannot be read or do not say them.
    """
    if place.is_file():
        header = read_header(place)
        kind = header.get("general.architecture", "")
        values = {"hidden_size": header.get(f"{kind}.embedding_length"), "n_layer": header.get(f"{kind}.block_count")}
        if None in values.values():
            raise UserError(f"{place} is no GGUF file of a language model (it says no size of one); get it again")
        return parse(Sizes, values, where=place)
    path = place / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise UserError(f"the language model's {path} cannot be read ({detail}); give the folder that has it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object; give the folder of a language model")
    inner = values.get("text_config")  # of models that take images as well
    return parse(Sizes, inner if isinstance(inner, dict) else values, where=path)


def digest_of(place: Path) -> str:
    """sha256 of a .gguf file, or over the names and digests of a folder's weights and tokenizer.

    Raises:
        UserError: a file cannot be read, or weights or tokenizer are missing.
    """
    try:
        if place.is_file():
            return file_sha256(place)
        weights = sorted(place.glob(WEIGHTS))
        if not weights:
            raise UserError(
                f"{place} holds no weights (*.safetensors), and pickled ones are not opened; get them there"
            )
        if not any((place / name).is_file() for name in TOKENIZER):
            raise UserError(f"{place} holds no tokenizer ({', '.join(TOKENIZER)}); save it beside the weights")
        files = [*weights, *(place / name for name in DECIDING if (place / name).is_file())]
        lines = [f"{path.name} {file_sha256(path)}" for path in sorted(files)]
    except OSError as error:
        raise UserError(f"{error.filename or place} cannot be read ({error.strerror}); check the path") from None
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def described(text: TextConfig) -> dict[str, Any]:
    """What decides the hidden states that are kept of a text, as plain values."""
    return {"sha256": text.sha256, "tokens": text.tokens, "layers": sorted(set(text.layers or ()))}
