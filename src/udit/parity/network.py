"""Parity of a network: outputs, guided outputs and gradients for weights filled by a recipe."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from udit.parity import LIMIT, LOOSE_LIMIT, Check, Disagreement, Floor, close, exact, number, seed_of, whole

GUIDANCE = 4.0
INPUTS = {"seed", "x_shape", "t", "y", "std", "model", "config", "weights_recipe"}
INPUTS |= {"cache_t", "cache_x_seed", "seq_x_shape", "seq_grid", "seq_mask"}
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
            errors = {c.name: c.error for c in compared}
            for output in case.outputs(recipe):
                if output.name in errors:
                    known.add(f"{output.prefix}grad_norm_names")
                    if (name := f"{output.prefix}{FLOOR}{recipe}") in arrays:
                        floor = _relative(arrays[name], arrays[output.name])
                        floors.append(Floor(output.name, errors[output.name], floor))
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
    size = tuple(whole("x_shape", arrays["x_shape"]).tolist()[-2:])
    try:
        described = known[system](words, size)
    except KeyError as error:
        raise UserError(f"{path}: the description of {system} lacks {error}") from None
    if words:
        raise UserError(f"{path}: the description of {system} has words this version does not know: {', '.join(words)}")
    return described, channels


@dataclass(frozen=True)
class _Output:
    """One output of the network in a file: ``out``, or a further one, ``aux0``, ``aux1`` ..."""

    index: int
    """Among the network's outputs."""
    name: str
    """Of its array, with the recipe."""
    prefix: str
    """Of the names of its loss and gradients."""
    probe: int
    """Its loss is the mean of its product with what is drawn from the file's seed plus this."""


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
        self.described = described
        self.x = _normal(self.seed, whole("x_shape", arrays["x_shape"]).tolist())
        self.t = torch.from_numpy(arrays["t"])
        self.labels = torch.from_numpy(whole("y", arrays["y"])) if arrays["y"].size else None
        top = config.num_classes if config.null_label is not None else config.num_classes - 1
        if self.labels is not None and (int(self.labels.min()) < 0 or int(self.labels.max()) > top):
            raise Disagreement(f"y ({int(self.labels.max())} lies outside the labels 0 to {top})")
        self.y, _ = self.condition()

    def condition(self) -> tuple[Any, dict[str, Tensor]]:
        """What the network takes as y, and the inputs drawn for it by name: new leaves, which take gradients."""
        drawn: dict[str, Tensor] = {}

        def draw(name: str, offset: int, *shape: int) -> Tensor:
            drawn[name] = _normal(self.seed + offset, (len(self.x), *shape)).requires_grad_()
            return drawn[name]

        y = draw("context", 3, *self.config.condition_shape) if self.config.condition_shape else self.labels
        return self.described.condition(y, draw), drawn

    def outputs(self, recipe: str) -> list[_Output]:
        """The network's outputs that the file holds in one recipe."""
        found = [_Output(0, f"out{recipe}", "", 2)]
        numbers = (re.fullmatch(rf"aux(\d+){recipe}", name) for name in self.arrays)
        further = sorted(int(match[1]) for match in numbers if match)
        return found + [_Output(1 + i, f"aux{i}{recipe}", f"aux{i}_", 10 + i) for i in further]

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
        std = number("std", self.arrays["std"])
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
        """``out``, on x's device and in its dtype, x and out as the file lays them out; y is what the network takes."""
        axis = self.described.channel_axis
        return model(x.movedim(axis, 1), t.to(x.device), _follow(y, x)).movedim(1, axis)

    def run_all(self, model: nn.Module, x: Tensor, y: Any, t: Tensor) -> tuple[Tensor, ...]:
        """``out`` as by ``run``, then the further outputs."""
        axis = self.described.channel_axis
        out, *further = self.described.outputs(model, x.movedim(axis, 1), t.to(x.device), _follow(y, x))
        return out.movedim(1, axis), *further

    def input(self, x: Tensor) -> Tensor:
        """x on the case's device, in its dtype."""
        return x.to(self.device, self.dtype)

    def recipe(self, recipe: str) -> list[Check]:
        """Every array of one recipe."""
        a, model, checks = self.arrays, self.network(recipe), []
        model = model.to(self.device, self.dtype).eval()
        fused = fuse(model)
        with torch.no_grad():
            for form, network in (("", model), (" (fused)", fused)):
                made = self.run_all(network, self.input(self.x), self.y, self.t)
                held = [output for output in self.outputs(recipe) if output.index < len(made)]
                checks += [close(f"{each.name}{form}", _numpy(made[each.index]), a[each.name]) for each in held]
                if (name := f"cfg4{recipe}") in a:
                    checks.append(close(f"{name}{form}", self._guided(network), a[name], LOOSE_LIMIT))
                if (name := f"seq_out{recipe}") in a and self.described.sequence:
                    checks.append(close(f"{name}{form}", self._sequence(network), a[name]))
                intervals = {name: match[1] for name in a if (match := re.fullmatch(rf"cache(\d+)_out{recipe}", name))}
                for name, interval in intervals.items():
                    checks.append(close(f"{name}{form}", self._cached(network, int(interval)), a[name], LOOSE_LIMIT))
        for output in held:
            if f"{output.prefix}loss{recipe}" in a:
                checks += self._gradients(model.train(), recipe, output)
        return checks

    def _guided(self, model: nn.Module) -> np.ndarray:
        """As the release's ``forward_with_cfg``: both halves are guided; unguided channels stay those of each half."""
        assert isinstance(self.y, Tensor) and self.config.null_label is not None
        labels = torch.cat([self.y, torch.full_like(self.y, self.config.null_label)])
        output = self.run(model, self.input(torch.cat([self.x, self.x])), labels, torch.cat([self.t, self.t]))
        axis = self.described.channel_axis
        cond, uncond = output.movedim(axis, 1).chunk(2)
        channels = self.guided_channels
        halves = [guide(cond, uncond, GUIDANCE, channels)]
        halves.append(halves[0] if channels is None else torch.cat([halves[0][:, :channels], uncond[:, channels:]], 1))
        return _numpy(torch.cat(halves).movedim(1, axis))

    def _sequence(self, model: nn.Module) -> np.ndarray:
        """A batch of token sequences of several images each; the reference is the output times the mask's values."""
        a = self.arrays
        missing = {"seq_x_shape", "seq_grid", "seq_mask"} - set(a)
        if missing:
            raise Disagreement(f"seq_out (without {', '.join(sorted(missing))})")
        tokens = self.input(_normal(self.seed + 7, whole("seq_x_shape", a["seq_x_shape"]).tolist()))
        grid, mask = (torch.from_numpy(whole(name, a[name])).to(tokens.device) for name in ("seq_grid", "seq_mask"))
        assert self.described.sequence is not None
        out = self.described.sequence(model, tokens, self.t.to(tokens.device), _follow(self.y, tokens), grid, mask)
        return _numpy(out * mask[..., None])

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
            outs.append(_numpy(out[:1].narrow(self.described.channel_axis, 0, self.config.in_channels)))
        return np.stack(outs)

    def _gradients(self, model: nn.Module, recipe: str, output: _Output) -> list[Check]:
        """Loss and gradients of one output."""
        a, checks, prefix = self.arrays, [], output.prefix
        model.zero_grad(set_to_none=True)
        x = self.input(self.x).clone().requires_grad_()  # a copy: grads must not add up over recipes
        y, drawn = self.condition()
        out = self.run_all(model, x, y, self.t)[output.index]
        train = f"{prefix}train_out{recipe}"
        if train in a:
            checks.append(close(train, _numpy(out), a[train]))
        probe = _normal(self.seed + output.probe, tuple(out.shape))
        product = out * probe.to(out)
        loss = product.mean()
        loss.backward()
        scale = float(np.abs(_numpy(product)).mean())
        # The error of the loss is relative to mean|out * probe|, which would hide a wrong loss that is small: so the
        # stored loss must also be the mean of the stored output.
        name = f"{prefix}loss{recipe}"
        stored = number(name, a[name])
        own = (torch.from_numpy(a.get(train, a[output.name])) * probe).mean().item()
        checks.append(Check(f"{name} (of the stored output)", abs(own - stored) / (abs(own) + 1e-3 * scale), LIMIT))
        checks.append(Check(name, abs(loss.item() - stored) / scale, LIMIT))
        leaves = {f"{prefix}grad_{key}{recipe}": leaf for key, leaf in {"x": x, **drawn}.items()}
        for key, leaf in leaves.items():
            if key in a:
                grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                checks.append(close(key, _numpy(grad), a[key]))
        return checks + self._norms(model, recipe, prefix)

    def _norms(self, model: nn.Module, recipe: str, prefix: str) -> list[Check]:
        """Gradient norms by published name; error max over k of |d_k| / (g_k + 1e-4 max g)."""
        own = dict(model.named_parameters())
        grads = {key: own[name].grad for key, (name, _) in self.keys.items() if name in own}
        grads |= {key: None for key, (name, _) in self.keys.items() if is_frozen(name)}
        norms = {key: float(grad.double().norm()) for key, grad in grads.items() if grad is not None}
        names = self.arrays[f"{prefix}grad_norm_names"].tolist()
        stored = self.arrays[f"{prefix}grad_norms{recipe}"].astype(np.float64)
        checks = []
        if "no_grad_params" in self.arrays and not recipe and not prefix:
            still = [key for key, grad in grads.items() if grad is None]
            checks.append(
                exact("no_grad_params", sorted(still), sorted(n for n in self.arrays["no_grad_params"].tolist() if n))
            )
        title = f"{prefix}grad_norms{recipe}"
        if sorted(names) != sorted(norms) or len(names) != len(stored):
            return [*checks, Check(f"{title} (other parameters have gradients)", np.inf, LOOSE_LIMIT)]
        ours = np.array([norms[name] for name in names])
        error = np.abs(ours - stored) / (stored + 1e-4 * stored.max())
        return [*checks, Check(title, float(error.max()), LOOSE_LIMIT)]


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
