"""Reads files of weights of other programs. Only this module opens pickles, and nothing in one runs."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar as numpy_scalar  # what a pickled numpy number is made with
from torch import Tensor

from udit.convert.refused import rescue
from udit.errors import UserError
from udit.store import read_tensors

SHARDED = ".safetensors.index.json"
"""End of the name of a file that lists the parts of a state."""
PLAIN: list[Any] = [
    argparse.Namespace,
    *(pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath),
    (numpy_scalar, "numpy.core.multiarray.scalar"),  # of numpy 1
    *(np.dtype, numpy_scalar, *(type(np.dtype(code)) for code in ("?", "i4", "i8", "u4", "u8", "f2", "f4", "f8"))),
]
"""Let through beside tensors and plain containers: settings, paths and numbers, as this field's checkpoints hold."""
CONTROL = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x1f\x7f]+")


def read_file(path: Path) -> Mapping[Any, Any]:
    """What a file of weights holds: tensors by name, or nested containers with tensors in them.

    Args:
        path: ``.safetensors``, ``.safetensors.index.json``, or a ``.pt``/``.pth``/``.ckpt``/``.bin`` pickle, of which
            only tensors, plain containers, numbers, paths and ``argparse.Namespace`` are read.

    Raises:
        UserError: no such file, another kind of file, or a pickle that holds more.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there; give a file of weights")
    if path.name.endswith(SHARDED):
        return _shards(path)
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        with torch.serialization.safe_globals(PLAIN), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that of a pickle's protocol: what matters ends in an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise UserError(_more_than_tensors(path)) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no readable torch file ({_line(error)}); download it again") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__} and no tensors by name; save a state dict")
    return content


def shard_names(path: Path) -> list[str]:
    """The files that a list of the parts of a state names, all beside it.

    Raises:
        UserError: it lists none, or one elsewhere.
    """
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        parts = sorted({str(place) for place in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} lists no parts under 'weight_map'; download it again") from None
    if any(Path(part).name != part for part in parts):
        raise UserError(f"{path} names a part outside of its folder; put all parts beside it")
    return parts


def _shards(path: Path) -> dict[str, Tensor]:
    """The tensors of all parts of a sharded safetensors file."""
    parts = shard_names(path)
    return {name: tensor for part in parts for name, tensor in read_tensors(path.with_name(part)).items()}


def _more_than_tensors(path: Path) -> str:
    """Why a pickle is refused, and what someone who trusts it can do."""
    try:
        with torch.serialization.safe_globals(PLAIN):
            names = [_line(name) for name in torch.serialization.get_unsafe_globals_in_checkpoint(path)]
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError, KeyError):
        names = []
    what = f"holds {', '.join(names[:3])}{' ...' if len(names) > 3 else ''} beside tensors" if names else "is damaged"
    return (
        f"{path} {what} and is not opened: a pickle can run code. Ask its author for safetensors, or, if you trust it: "
        + rescue(path)
    )


def _line(error: object) -> str:
    """The first line of a message, without control codes."""
    return CONTROL.sub(" ", str(error).split("\n", 1)[0])[:160].strip()
