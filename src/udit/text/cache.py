"""Hidden states of all captions of a run on disk, so that training never runs the language model.

A folder of shards, each of some captions in sorted order: their states without padding, one behind the other. A shard
is whole or absent and depends on the plan alone; writing goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from udit.dist import World
from udit.errors import RunError, UserError
from udit.files import cache_folder, sweep, whole_file, write_text
from udit.text.config import TextConfig
from udit.text.files import described
from udit.text.model import LanguageModel, conditions

PLAN = "texts.json"
SHARD_SIZE = 256
"""Captions per shard; an interruption loses at most one."""


def folder_for(text: TextConfig, captions: Sequence[str]) -> Path:
    """Where in the user's cache the states of these captions are kept, for a run without a latent cache."""
    return cache_folder() / "texts" / _digest(text, captions)[:32]


def _digest(text: TextConfig, captions: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([1, described(text), list(captions)]).encode()).hexdigest()


def with_empty(captions: Sequence[str]) -> list[str]:
    """The captions of which states are kept: the given ones and the empty one, sorted, each once."""
    return sorted({"", *captions})


def write(
    root: Path,
    text: TextConfig,
    captions: Sequence[str],
    world: World,
    on_captions: Callable[[int], object] | None = None,
) -> bool:
    """Writes the shards that are missing, each rank its own; loads the language model only if there are some.

    Args:
        root: the folder.
        text: a complete config.
        captions: of ``with_empty``.
        world: rank and device.
        on_captions: called with the number of captions of each finished shard.

    Returns:
        Whether any were missing here.

    Raises:
        UserError: the folder holds the states of other captions, or the language model cannot be loaded.
        RunError: the disk refuses it.
    """
    world.on_main(_open, root, text, captions)
    world.on_main(sweep, root)
    _open(root, text, captions)  # where ranks do not share the folder
    parts = dict(enumerate(_shards(captions)))
    mine = {number: part for number, part in parts.items() if number % world.size == world.rank}
    model = _write_missing(root, text, mine, world, None, on_captions)
    world.barrier()
    # the others' shards are still missing where ranks do not share the folder
    return _write_missing(root, text, parts, world, model) is not None


def _write_missing(
    root: Path,
    text: TextConfig,
    parts: Mapping[int, Sequence[str]],
    world: World,
    model: LanguageModel | None,
    on_captions: Callable[[int], object] | None = None,
) -> LanguageModel | None:
    """Writes those of some shards that are not there; returns the language model, if it was loaded."""
    try:
        for number, part in parts.items():
            path = root / _name(number)
            if not path.is_file():
                model = model or text.build(world.device)
                states = [model.states(caption) for caption in part]
                ends = list(itertools.accumulate(map(len, states), initial=0))
                with whole_file(path) as temporary:
                    temporary.write_bytes(save({"states": torch.cat(states), "ends": torch.tensor(ends)}))
            if on_captions:
                on_captions(len(part))
    except OSError as error:
        raise RunError(f"{root} cannot be written ({error.strerror or error}); make room there") from None
    return model


def _open(root: Path, text: TextConfig, captions: Sequence[str]) -> None:
    plan = {**described(text), "captions": len(captions), "digest": _digest(text, captions)}
    try:
        root.mkdir(parents=True, exist_ok=True)
        if (root / PLAN).is_file():
            if _plan_in(root) != plan:
                raise UserError(
                    f"{root} holds hidden states of other captions or of another language model; take another folder, "
                    "or remove it"
                )
        else:
            write_text(root / PLAN, json.dumps(plan, indent=1) + "\n")
    except OSError as error:
        raise RunError(f"{root} cannot be written ({error.strerror or error}); make room there") from None


def _plan_in(root: Path) -> Any:
    try:
        return json.loads((root / PLAN).read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{root / PLAN} is damaged; remove the folder, and it is written again") from None


def _shards(captions: Sequence[str]) -> list[Sequence[str]]:
    return [captions[start : start + SHARD_SIZE] for start in range(0, len(captions), SHARD_SIZE)]


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


class Texts:
    """The states of captions that ``write`` has written."""

    def __init__(self, root: Path, text: TextConfig, captions: Sequence[str], shape: Sequence[int]) -> None:
        """Opens no shard.

        Args:
            root: the folder.
            text: as it was written.
            captions: as they were written.
            shape: the network's ``condition_shape``.
        """
        self.root, self.text, self.shape = root, text, tuple(shape)
        self.places = {caption: divmod(i, SHARD_SIZE) for i, caption in enumerate(captions)}
        self._open: dict[int, tuple[Any, list[int]]] = {}
        self.null = self.of([""])[0]
        """The condition of the empty caption."""

    def of(self, captions: Sequence[str]) -> Tensor:
        """float32 [B, *shape]: the conditions of captions.

        Raises:
            UserError: a shard is missing or damaged.
        """
        return conditions([self._read(caption) for caption in captions], self.text, self.shape)

    def _read(self, caption: str) -> Tensor:
        number, place = self.places[caption]
        path = self.root / _name(number)
        try:
            if number not in self._open:
                shard: Any = safe_open(path, framework="pt")
                self._open[number] = shard.get_slice("states"), shard.get_tensor("ends").tolist()
            states, ends = self._open[number]
            found: Tensor = states[ends[place] : ends[place + 1]]
        except (OSError, SafetensorError, IndexError) as error:
            detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
            raise UserError(f"{path} cannot be read ({detail}); remove it, and it is written again") from None
        return found
