"""Low-rank adapters (LoRA, Hu et al. 2022, arXiv 2106.09685), by the package peft.

peft puts a layer of its own in the place of each adapted one; it computes W x + scale B A x, of which W is frozen and
starts as it was, B as 0. Merged, W + scale B A stands in an ordinary layer: such a network has the names, shapes and
kernels of the one that was adapted. A run trains the first form; what it saves to sample from is the second.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import importlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from udit import rng
from udit.errors import UserError, missing_extra, nearest
from udit.models.build import rebuild
from udit.models.config import ModelConfig
from udit.run.adapter_config import AdapterConfig

NAME = "default"
"""peft's name of an adapter that has no other; it is part of parameters' names."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of a folder of peft's."""
PREFIX = "base_model.model."
"""Of names in such a folder."""


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be adapted, by name: linear ones and convolutions, but for depthwise ones.

    Depthwise convolutions are composed of their weights, or given to an operator as weights; they are never called.
    """
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1)
    }


def chosen(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Names of the layers that patterns choose.

    Raises:
        UserError: a pattern chooses none.
    """
    names = list(layers(model))
    found: set[str] = set()
    for pattern in targets:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise UserError(
                f"training.adapter.targets: no layer is called {pattern!r}{nearest(pattern, names)}; * stands for any "
                f"characters, e.g. *.{names[-1].rpartition('.')[2]}"
            )
        found |= set(matched)
    return [name for name in names if name in found]


class Adapter:
    """The adapter of a network that trains, and the frozen weights below it."""

    def __init__(self, model: nn.Module, config: AdapterConfig, seed: int, device: torch.device | str = "cpu") -> None:
        """Changes ``model`` in place: adapted layers become peft's, and all weights but the adapter's are frozen.

        Args:
            model: a network of the catalogue.
            config: rank, scale and targets.
            seed: A is drawn from a generator keyed by (seed, the layer's name).
            device: of the network.

        Raises:
            UserError: peft is not installed, a target is no layer, or the rank is above that of all targets.
        """
        self.model = model
        self.config, self.device = config, torch.device(device)
        self.model_config = cast(ModelConfig, model.config)
        self.targets = chosen(model, config.targets)
        self._check_rank()
        options = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": self.targets, "bias": "none"}
        with _quiet():
            peft = _peft()
            self.wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(**options), low_cpu_mem_usage=True)
        adapted = {name for name, part in model.named_modules() if hasattr(part, "lora_A")}
        assert adapted == set(self.targets), "peft adapts what was chosen"
        self.parameters: dict[str, nn.Parameter] = {}
        """A and B of every layer, as ``LAYER.lora_A.weight``."""
        for layer in self.targets:
            for half in ("lora_A", "lora_B"):
                part = cast(nn.Module, getattr(model.get_submodule(layer), half)[NAME])
                key = f"{layer}.{half}.weight"
                part.weight = self.parameters[key] = self._initial(key, cast(Tensor, part.weight).shape, seed)

    def _check_rank(self) -> None:
        """Refuses a rank that no adapted weight can have (UserError)."""
        weights = (cast(Tensor, self.model.get_submodule(name).weight).flatten(1) for name in self.targets)
        most = max(min(weight.shape) for weight in weights)
        if self.config.rank > most:
            raise UserError(
                f"training.adapter.rank is {self.config.rank} and no adapted weight has a rank above {most}; take less"
            )

    def _initial(self, key: str, shape: torch.Size, seed: int) -> nn.Parameter:
        values = torch.zeros(shape)
        if ".lora_A." in key:  # peft's: uniform of variance 1 / (3 inputs)
            nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=rng.generator(seed, f"adapter/{key}"))
        return nn.Parameter(values.to(self.device))

    @property
    def scale(self) -> float:
        """Of B A."""
        return self.config.alpha / self.config.rank

    def frozen(self) -> dict[str, Tensor]:
        """All frozen tensors under the network's own names; they are those that it computes with."""
        state = self.model.state_dict()
        return {
            name.replace(".base_layer.", "."): value
            for name, value in state.items()
            if f".lora_A.{NAME}." not in name and f".lora_B.{NAME}." not in name
        }

    @torch.no_grad()
    def merged(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of the plain network: W + scale B A of every adapted layer, all else as it is.

        Args:
            values: A and B by the names of ``parameters``.
        """
        state = self.frozen()
        for layer in self.targets:
            weight = state[f"{layer}.weight"]
            down, up = (values[f"{layer}.{half}.weight"].flatten(1) for half in ("lora_A", "lora_B"))
            state[f"{layer}.weight"] = weight + self.scale * (up @ down).view_as(weight)
        return state

    def plain(self, values: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The plain network with the adapter merged; with its own A and B, or with others."""
        state = self.merged(self.parameters if values is None else values)
        return rebuild(self.model_config, {k: v.clone() for k, v in state.items()}).eval().requires_grad_(False)

    def tensors(self, averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the merged weights: A and B, their averages, and W of the adapted layers."""
        frozen = self.frozen()
        return (
            {f"raw/{name}": value.detach() for name, value in self.parameters.items()}
            | {f"ema/{name}": value for name, value in averages.items()}
            | {f"frozen/{layer}.weight": frozen[f"{layer}.weight"] for layer in self.targets}
        )

    @torch.no_grad()
    def load(self, merged: Mapping[str, Tensor], tensors: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> None:
        """Takes a checkpoint's state.

        Args:
            merged: the merged weights, of which all but the adapted layers' are the frozen ones.
            tensors: as ``tensors`` returned them.
            averages: filled as well.

        Raises:
            RuntimeError: it is of another model or adapter.
        """
        frozen = self.frozen()
        given = {**merged, **{k.removeprefix("frozen/"): v for k, v in tensors.items() if k.startswith("frozen/")}}
        wanted: dict[str, Tensor] = {f"raw/{name}": value for name, value in self.parameters.items()}
        wanted |= {f"ema/{name}": value for name, value in averages.items()}
        for what, own, theirs in (("weights", frozen, given), ("adapter", wanted, tensors)):
            for name, value in own.items():
                if name not in theirs or theirs[name].shape != value.shape:
                    raise RuntimeError(f"the {what} of another adapter, without {name} of shape {list(value.shape)}")
                value.copy_(theirs[name])

    @torch.no_grad()
    def save(self, folder: Path, values: Mapping[str, Tensor], origin: str) -> None:
        """Writes peft's folder with these A and B; ``origin`` is what they adapt."""
        kept = {name: value.detach().clone() for name, value in self.parameters.items()}
        try:
            for name, value in self.parameters.items():
                value.copy_(values[name])
            self.wrapped.peft_config[NAME].base_model_name_or_path = origin
            with _quiet():
                self.wrapped.save_pretrained(folder, save_embedding_layers=False)
        finally:
            for name, value in self.parameters.items():
                value.copy_(kept[name])
        (folder / "README.md").write_text(_card(origin, self.config), encoding="utf-8")

    def told(self) -> str:
        """How much of the network it trains, in words."""
        own, whole = (sum(p.numel() for p in each) for each in (self.parameters.values(), self.frozen().values()))
        return f"an adapter of rank {self.config.rank}, {own:,} weights ({100 * own / whole:.1f} %)"


class AdapterEMA:
    """The averages of A and B, as ``EMA`` has those of all weights."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.averages = {name: value.detach().clone() for name, value in adapter.parameters.items()}

    @property
    def model(self) -> nn.Module:
        """A plain network with the averages merged; computed again at each call."""
        return self.adapter.plain(self.averages)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """Sets average = decay * average + (1 - decay) * weights; ``model`` is the adapter's."""
        for name, value in self.averages.items():
            value.lerp_(self.adapter.parameters[name], 1 - decay)

    @torch.no_grad()
    def take(self, model: nn.Module, average: Callable[[nn.Parameter], Tensor]) -> None:
        """Sets it to an average of each parameter that is kept elsewhere."""
        for name, value in self.averages.items():
            value.copy_(average(self.adapter.parameters[name]))


def with_adapter(network: nn.Module, folder: str | Path, *, merge: bool = True) -> nn.Module:
    """A network with an adapter from peft's folder, in eval mode; changes its argument.

    Args:
        network: the one that was adapted.
        folder: ``adapter_config.json`` and ``adapter_model.safetensors``, of a run or of peft itself.
        merge: into ordinary layers, for kernels, fusing and export; else peft's layers stay, as in training.

    Raises:
        UserError: there is no adapter, it is of another model, or peft is not installed.
    """
    path = Path(folder)
    for file in (CONFIG, WEIGHTS):
        if not (path / file).is_file():
            raise UserError(
                f"{folder} holds no {file}; give the folder of an adapter, e.g. RUN/adapter of a run that has "
                "training.adapter"
            )
    with _quiet() as told:
        peft = _peft()
        try:
            adapted: Any = peft.PeftModel.from_pretrained(network, str(path), is_trainable=False)
        except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
            detail = " ".join(str(error).split())[:200]
            raise UserError(f"the adapter in {folder} does not fit the model: {detail}") from None
        missing = [str(each.message) for each in told if "missing adapter keys" in str(each.message)]
        if missing:
            raise UserError(f"the adapter in {folder} lacks weights: {' '.join(missing[0].split())[:200]}")
    inner: nn.Module = adapted.base_model.model
    return (merged(inner) if merge else inner).eval()


def merged(network: nn.Module) -> nn.Module:
    """The network itself; with layers of peft's, a copy of it with the adapter merged."""
    if not any(hasattr(part, "lora_A") for part in network.modules()):
        return network
    copied = copy.deepcopy(network)
    for name, part in list(copied.named_modules()):
        if hasattr(part, "lora_A"):
            layer: Any = part
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, layer.get_base_layer())
    return copied.requires_grad_(True)


def _peft() -> ModuleType:
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise missing_extra("an adapter (training.adapter, --adapter)", "peft", "adapters") from None


@contextlib.contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Context that keeps to itself what peft and the packages it imports have to say; its warnings are in the list."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield told
    finally:
        logging.disable(before)


def _card(origin: str, config: AdapterConfig) -> str:
    return (
        f"---\nlibrary_name: peft\nbase_model: {origin}\ntags: [lora, diffusion, u-dit]\n---\n\n"
        f"# LoRA of rank {config.rank} for {origin}\n\n"
        "Averaged (EMA) weights of the adapter, in peft's form, for udit's network:\n\n"
        f'```python\nimport udit\n\nsystem = udit.load("{origin}", adapter="THIS_FOLDER")\n```\n'
    )
