"""Parity of a network: outputs, guided outputs and gradients for weights filled by a recipe."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from udit.diffusion.cache import StepCache
from udit.diffusion.denoiser import Backbone
from udit.diffusion.guidance import guide
from udit.errors import UserError, nearest
from udit.models.build import build, fuse
from udit.models.catalog import families
from udit.models.config import ModelConfig
from udit.models.fixed import Fixed
from udit.models.parity import Builder, Described
from udit.models.published import frozen_parameters, import_published, is_frozen
from udit.parity import LIMIT, LOOSE_LIMIT, Check, Disagreement, Floor, close, exact, seed_of, whole

GUIDANCE = 4.0
INPUTS = {"seed", "x_shape", "t", "y", "std", "model", "config", "weights_recipe", "grad_norm_names"}
INPUTS |= {"cache_t", "cache_x_seed"}
INPUTS |= {f"base_{part}{recipe}" for part in ("keys", "values") for recipe in ("", "B")}
FLOOR = "f64_max_abs_err"
"""How far the program that wrote the file was in float32 from itself in float64: printed, never checked."""


def check(
    arrays: Mapping[str, np.ndarray], path: Path, device: str, dtype: torch.dtype
) -> tuple[list[Check], list[Floor]]:
    """Compares every array of a network file, of the unfused and the fused network, for each recipe it holds.

    Returns:
        The checks, and our errors next to the rounding that the file reports.

    Raises:
        UserError: the file's system is unknown or described in words this version does not know.
    """
    described, guided_channels = describe(arrays, path)
    case = _Case(arrays, described, guided_channels, device, dtype)
    checks, floors = [*case.facts()], []
    known = set(INPUTS)
    for recipe in ("", "B"):
        if f"out{recipe}" in arrays:
            compared = case.recipe(recipe)
            if (name := f"{FLOOR}{recipe}") in arrays:
                ours = next(c.error for c in compared if c.name.split(" ")[0] == f"out{recipe}")
                floors.append(Floor(f"out{recipe}", ours, _relative(arrays[name], arrays[f"out{recipe}"])))
                known.add(name)
            checks += compared
    known |= {c.name.split(" ")[0] for c in checks}
    checks += [Check(f"{name} (unknown array)", np.inf, 0.0) for name in arrays if name not in known]
    return checks, floors


def systems() -> dict[str, Builder]:
    """Builders of all families in the catalogue, by the name of their system in reference files."""
    return {name: build for family in families().values() for name, build in family.parity_systems().items()}


def describe(arrays: Mapping[str, np.ndarray], path: Path) -> tuple[Described, int | None]:
    """The network that a file describes, and how many channels its guidance guides (None: all)."""
    missing = {"model", "seed", "x_shape", "t", "y", "std", "base_keys", "base_values", "out"} - set(arrays)
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}; it is no reference file of this format")
    try:
        words = json.loads(str(arrays["model"].ravel()[0]))
        system = words.pop("system")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{path}: `model` is not a JSON object that names a system") from None
    known = systems()
    if system not in known:
        raise UserError(f"{path}: unknown system {system!r}{nearest(str(system), known)}")
    channels = words.pop("cfg4_channels", None)
    words.pop("name", None)
    size = tuple(whole("x_shape", arrays["x_shape"]).tolist()[2:])
    try:
        described = known[system](words, size)
    except KeyError as error:
        raise UserError(f"{path}: the description of {system} lacks {error}") from None
    if words:
        raise UserError(f"{path}: the description of {system} has words this version does not know: {', '.join(words)}")
    return described, channels


class _Case:
    """One file's inputs, and the network that it describes."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        described: Described,
        guided_channels: int | None,
        device: str,
        dtype: torch.dtype,
    ) -> None:
        config: ModelConfig = described.config
        self.arrays, self.config, self.guided_channels = arrays, config, guided_channels
        self.device, self.dtype = device, dtype
        self.seed = seed_of("seed", arrays["seed"])
        self.keys = config.published_keys()
        self.fixed = {key: name for key, (name, _) in self.keys.items() if isinstance(name, Fixed)}
        shape = tuple(whole("x_shape", arrays["x_shape"]).tolist())
        self.x = _normal(self.seed, shape)
        self.t = torch.from_numpy(arrays["t"])
        y = torch.from_numpy(whole("y", arrays["y"])) if arrays["y"].size else None
        top = config.num_classes if config.null_label is not None else config.num_classes - 1
        if y is not None and (int(y.min()) < 0 or int(y.max()) > top):
            raise Disagreement(f"y ({int(y.max())} lies outside the labels 0 to {top})")
        if config.condition_shape:
            y = _normal(self.seed + 3, (len(self.x), *config.condition_shape))
        self.y = described.condition(y, lambda offset, length: _normal(self.seed + offset, (len(self.x), length)))

    def facts(self) -> list[Check]:
        """What a file says about its model: counts, and which keys keep their constructor's value."""
        model = build(self.config, device="meta")
        facts: dict[str, list[object]] = {
            "n_params": [sum(p.numel() for p in model.parameters()) + frozen_parameters(self.config)],
            "n_keys": [len(self.keys)],
            "skipped_keys": [*sorted(self.fixed)],
        }
        stored = {name: sorted(self.arrays[name].ravel().tolist()) for name in facts if name in self.arrays}
        return [exact(name, facts[name], stored[name]) for name in stored]

    def network(self, recipe: str) -> nn.Module:
        """The network filled by recipe A ("") or B, on the CPU in float32."""
        base_keys, base_values = (self.arrays[f"base_{part}{recipe}"] for part in ("keys", "values"))
        base = dict(zip(base_keys.tolist(), base_values.tolist(), strict=True))
        std = float(self.arrays["std"])
        if unknown := sorted(set(base) - (set(self.keys) - set(self.fixed))):
            raise Disagreement(f"base_keys{recipe} ({unknown[0]} is no key that is filled)")
        state = {}
        for key, (name, shape) in self.keys.items():
            if isinstance(name, Fixed):
                state[key] = name.value().reshape(shape)
                continue
            noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
            state[key] = torch.from_numpy(np.asarray(base.get(key, 0.0) + std * noise).astype(np.float32))
        model = build(self.config)
        import_published(model, state)
        return model

    def run(self, model: Backbone, x: Tensor, y: Any, t: Tensor) -> Tensor:
        """The network's output on x's device and in its dtype; y is what the network takes as its condition."""
        return model(x, t.to(x.device), _follow(y, x))

    def input(self, x: Tensor) -> Tensor:
        """x on the case's device, in its dtype."""
        return x.to(self.device, self.dtype)

    def recipe(self, recipe: str) -> list[Check]:
        """Every array of one recipe."""
        a, model = self.arrays, self.network(recipe)
        out, checks = a[f"out{recipe}"], []
        model = model.to(self.device, self.dtype).eval()
        fused = fuse(model)
        with torch.no_grad():
            for form, network in (("", model), (" (fused)", fused)):
                checks.append(
                    close(f"out{recipe}{form}", _numpy(self.run(network, self.input(self.x), self.y, self.t)), out)
                )
                if (name := f"cfg4{recipe}") in a:
                    checks.append(close(f"{name}{form}", self._guided(network), a[name], LOOSE_LIMIT))
                intervals = {name: match[1] for name in a if (match := re.fullmatch(rf"cache(\d+)_out{recipe}", name))}
                for name, interval in intervals.items():
                    checks.append(close(f"{name}{form}", self._cached(network, int(interval)), a[name], LOOSE_LIMIT))
        if f"loss{recipe}" in a:
            checks += self._gradients(model.train(), recipe)
        return checks

    def _guided(self, model: nn.Module) -> np.ndarray:
        """As the release's ``forward_with_cfg``: both halves are guided; unguided channels stay those of each half."""
        assert isinstance(self.y, Tensor) and self.config.null_label is not None
        labels = torch.cat([self.y, torch.full_like(self.y, self.config.null_label)])
        output = self.run(model, self.input(torch.cat([self.x, self.x])), labels, torch.cat([self.t, self.t]))
        cond, uncond = output.chunk(2)
        channels = self.guided_channels
        halves = [guide(cond, uncond, GUIDANCE, channels)]
        halves.append(halves[0] if channels is None else torch.cat([halves[0][:, :channels], uncond[:, channels:]], 1))
        return _numpy(torch.cat(halves))

    def _cached(self, model: nn.Module, interval: int) -> np.ndarray:
        """A sequence of calls with a step cache; of each, the prediction channels of the first sample."""
        seed, times = seed_of("cache_x_seed", self.arrays["cache_x_seed"]), self.arrays["cache_t"]
        if not self.t.is_floating_point():
            times = whole("cache_t", times)
        cached = StepCache(interval).attach(model)
        outs = []
        for i, time in enumerate(times):
            x = _normal(seed + i, tuple(self.x.shape))
            out = self.run(cached, self.input(x), self.y, torch.full_like(self.t, time.item()))
            outs.append(_numpy(out[:1, : self.config.in_channels]))
        return np.stack(outs)

    def _gradients(self, model: nn.Module, recipe: str) -> list[Check]:
        a, checks = self.arrays, []
        x = self.input(self.x).clone().requires_grad_()  # a copy: grads must not add up over recipes
        out = self.run(model, x, self.y, self.t)
        if (name := f"train_out{recipe}") in a:
            checks.append(close(name, _numpy(out), a[name]))
        probe = _normal(self.seed + 2, tuple(out.shape))
        product = out * probe.to(out)
        stored = a.get(f"train_out{recipe}", a[f"out{recipe}"])
        loss = product.mean()
        loss.backward()
        scale = float(np.abs(_numpy(product)).mean())
        # The error of the loss is relative to mean|out * probe|, which would hide a wrong loss that is small: so the
        # stored loss must also be the mean of the stored output.
        own = (torch.from_numpy(stored) * probe).mean().item()
        loss_error = abs(own - float(a[f"loss{recipe}"])) / (abs(own) + 1e-3 * scale)
        checks.append(Check(f"loss{recipe} (of the stored output)", loss_error, LIMIT))
        checks.append(Check(f"loss{recipe}", abs(loss.item() - float(a[f"loss{recipe}"])) / scale, LIMIT))
        checks.append(close(f"grad_x{recipe}", _numpy(cast(Tensor, x.grad)), a[f"grad_x{recipe}"]))
        return checks + self._norms(model, recipe)

    def _norms(self, model: nn.Module, recipe: str) -> list[Check]:
        """Gradient norms by published name; error max over k of |d_k| / (g_k + 1e-4 max g)."""
        own = dict(model.named_parameters())
        grads = {key: own[name].grad for key, (name, _) in self.keys.items() if name in own}
        grads |= {key: None for key, (name, _) in self.keys.items() if is_frozen(name)}
        norms = {key: float(grad.double().norm()) for key, grad in grads.items() if grad is not None}
        names = self.arrays["grad_norm_names"].tolist()
        stored = self.arrays[f"grad_norms{recipe}"].astype(np.float64)
        checks = []
        if "no_grad_params" in self.arrays and not recipe:
            still = [key for key, grad in grads.items() if grad is None]
            checks.append(
                exact("no_grad_params", sorted(still), sorted(n for n in self.arrays["no_grad_params"].tolist() if n))
            )
        if sorted(names) != sorted(norms) or len(names) != len(stored):
            return [*checks, Check(f"grad_norms{recipe} (other parameters have gradients)", np.inf, LOOSE_LIMIT)]
        ours = np.array([norms[name] for name in names])
        error = np.abs(ours - stored) / (stored + 1e-4 * stored.max())
        return [*checks, Check(f"grad_norms{recipe}", float(error.max()), LOOSE_LIMIT)]


def _normal(seed: int, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def _follow(part: Any, x: Tensor) -> Any:
    """A condition, or a tuple of parts, on x's device; floating parts in x's dtype."""
    if isinstance(part, Tensor):
        return part.to(x) if part.is_floating_point() else part.to(x.device)
    return part if part is None else type(part)(*(_follow(each, x) for each in part))


def _relative(floor: np.ndarray, out: np.ndarray) -> float:
    """A noise floor over max|out|, as errors are; NaN if the file has no number."""
    if floor.size != 1 or floor.dtype.kind not in "iuf":
        return np.nan
    return float(floor.ravel()[0]) / (float(np.abs(out).max(initial=0.0)) or 1.0)


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()
