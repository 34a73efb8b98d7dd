"""What the tests of the families share: published keys, small records of official programs, a few training steps."""

from __future__ import annotations

import gzip
import json
import math
from typing import Any

import torch
from torch import Tensor, nn

import udit
from conftest import DATA, batch
from udit.models.config import ModelConfig
from udit.models.fixed import Unused

STEEP = {"MPDiT-tiny": 0.02}
"""Smaller noise on weights: MPDiT's embedding of the time is near 100 when its spectral weights are drawn as its paper
says, so that float32's rounding grows a thousandfold behind modulations of the usual noise."""


def _keys(file: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((DATA / f"{file}-keys.json.gz").read_bytes()))


KEY_LISTS = [
    where
    for file in sorted(path.name.removesuffix("-keys.json.gz") for path in DATA.glob("*-keys.json.gz"))
    for where in ([file] if file.startswith("udit-") else [f"{file}/{size}" for size in _keys(file)])
]
"""Every published key list: a file of one, or file/size."""


def key_list(where: str) -> dict[str, list[int]]:
    """{key: shape} of a release, in its order."""
    file, _, size = where.partition("/")
    return _keys(file)[size] if size else _keys(file)


def assert_bijection(config: ModelConfig, published: dict[str, list[int]]) -> None:
    """The key map has the release's keys and shapes in its order, and each tensor of ours exactly once."""
    ours = config.published_keys()
    assert [(key, list(shape)) for key, (_, shape) in ours.items()] == list(published.items())
    state = udit.build(config, device="meta").state_dict()
    carried = {name: shape for name, shape in ours.values() if isinstance(name, str)}
    assert sorted(carried) == sorted(state)
    assert all(math.prod(shape) == state[name].numel() for name, shape in carried.items())


def golden_model(
    config: ModelConfig, kept: tuple[str, ...] = (), buffers: tuple[str, ...] = (), left_out: tuple[str, ...] = ()
) -> nn.Module:
    """The network under the records' weights: element j of the i-th name is 0.2 sin(0.731 i + 1.618 j), both from 1.

    Args:
        config: of the network.
        kept: endings of names that keep their initial value, and still count.
        buffers: names of random buffers, filled with sin(0.731 i + 1.618 j) by their own count.
        left_out: endings of names that keep their initial value and do not count.
    """
    model = udit.build(config)
    state = udit.export_published(model)
    parameters = {name for name, _ in model.named_parameters()}
    counted = {
        key for key, (name, _) in config.published_keys().items() if name in parameters or isinstance(name, Unused)
    }
    trained = sorted(key for key in counted if not key.endswith(left_out or ("\n",)))
    for scale, names in ((0.2, trained), (1.0, list(buffers))):
        for i, key in enumerate(names, start=1):
            if not key.endswith(kept or ("\n",)):
                j = torch.arange(1, state[key].numel() + 1, dtype=torch.float64)
                state[key] = (scale * torch.sin(0.731 * i + 1.618 * j)).float().view(state[key].shape)
    udit.import_published(model, state)
    return model.eval()


def golden_input(*shape: int) -> Tensor:
    """sin(0.05 n), n counting row-major."""
    return torch.sin(0.05 * torch.arange(math.prod(shape), dtype=torch.float64)).float().view(shape)


def assert_golden(out: Tensor, record: dict[str, Any]) -> None:
    """Shape, five samples, mean absolute value and sum, to 1e-4."""
    flat = out.double().flatten()
    assert list(out.shape) == record["shape"]
    samples = {index: flat[int(index)].item() for index in record["samples"]}
    assert all(abs(samples[index] - value) < 1e-4 for index, value in record["samples"].items()), samples
    assert abs(flat.abs().mean().item() - record["absmean"]) < 1e-4
    assert abs(flat.sum().item() - record["sum"]) < 1e-4 * math.sqrt(flat.numel())


def learns(
    model: nn.Module, y: Any, time: Tensor | None = None, steps: int = 2, apart: str | None = None
) -> tuple[float, float]:
    """The squared error to a fixed image before and after some steps; by then every parameter must have a gradient.

    Each has memory of its own, or clipping would scale it once for every parameter that shares it. Those whose names
    begin with ``apart`` must have none.

    One step is not enough: parameters behind a layer that is initialised to zero get a gradient only after it.
    """
    x, t, _ = batch(model)
    t = t if time is None else time
    shape = (len(x), model.config.out_channels, *x.shape[2:])
    target = golden_input(*shape)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps + 1):
        optimiser.zero_grad(set_to_none=True)
        loss = (model(x, t, y) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    gradients = [p.grad for p in model.parameters() if p.grad is not None and p.grad.numel()]
    assert len({gradient.data_ptr() for gradient in gradients}) == len(gradients)
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == [name for name, _ in model.named_parameters() if apart and name.startswith(apart)]
    return losses[0], losses[-1]
