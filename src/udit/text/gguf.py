"""The header of a GGUF file: what it says of its model; free of torch and of other libraries.

The format is llama.cpp's (docs/gguf.md of ggml, version 2 and 3): magic, version, counts, then keys with typed values.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from udit.errors import UserError

MAGIC = b"GGUF"
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""struct's format of each type of number."""
STRING, ARRAY = 8, 9
MOST = 1 << 24
"""More keys, entries of an array or bytes of a string than any model has."""


def read_header(path: Path) -> dict[str, Any]:
    """Keys and values of a GGUF file; of an array, the number of its entries.

    Raises:
        UserError: it cannot be read, or is no GGUF file.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(4) != MAGIC:
                raise ValueError("it does not begin with GGUF")
            version, _, keys = _numbers(stream, "<IQQ")
            if version not in (2, 3) or keys > MOST:
                raise ValueError(f"its version is {version}, and 2 and 3 are read")
            found: dict[str, Any] = {}
            for _ in range(keys):
                name = _string(stream)
                found[name] = _value(stream, *_numbers(stream, "<I"))
            return found
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path") from None
    except (ValueError, struct.error) as error:
        detail = "it ends too early" if isinstance(error, struct.error) else str(error)
        raise UserError(f"{path} is no GGUF file of a language model ({detail}); get it again") from None


def _numbers(stream: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, stream.read(struct.calcsize(form)))


def _string(stream: BinaryIO) -> str:
    (length,) = _numbers(stream, "<Q")
    if length > MOST:
        raise ValueError("a string in it is too long")
    text = stream.read(length)
    if len(text) != length:
        raise ValueError("it ends too early")
    return text.decode("utf-8", "replace")


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(stream)
    if kind == ARRAY:
        inner, count = _numbers(stream, "<IQ")
        if count > MOST:
            raise ValueError("an array in it is too long")
        if inner in NUMBERS:
            stream.seek(count * struct.calcsize(NUMBERS[inner]), 1)
        else:
            for _ in range(count):
                _value(stream, inner)
        return count
    if kind not in NUMBERS:
        raise ValueError(f"a value in it has the unknown type {kind}")
    return _numbers(stream, NUMBERS[kind])[0]
