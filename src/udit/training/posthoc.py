"""Post-hoc EMA (Karras et al. 2024, Sec. 3.2 and App. C): EMAs of any length, from two that training keeps.

A power-function average at step t weighs the weights of step tau by p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1).
Its length is given as sigma_rel, the standard deviation of that profile divided by t. Snapshots of two lengths at many
steps span others: a least-squares fit writes the wanted profile as their linear combination, and the weights are
combined with the same coefficients.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from udit.assemble import System
from udit.checkpoint import write_tensors
from udit.errors import RunError, UserError
from udit.files import whole_file
from udit.run.config import PosthocConfig
from udit.run.system import SystemConfig
from udit.store import network, read_run_config

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LONGEST = 12**-0.5
"""sigma_rel of the plain mean over all steps, gamma 0."""
MAX_ERROR = 0.05
"""Largest error of a fit that still represents its length."""
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


def gamma_of(sigma_rel: float) -> float:
    """The exponent gamma of a length: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Raises:
        UserError: not between 0 and the plain mean's 0.2887.
    """
    if not 0 < sigma_rel < LONGEST:
        raise UserError(f"sigma_rel is {sigma_rel:g}; it lies between 0 and {LONGEST:.4f}, the mean over all steps")
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def power_decay(step: int, gamma: float) -> float:
    """Decay of update number ``step`` (from 1): (1 - 1 / step)^(gamma + 1)."""
    return float((1 - 1 / step) ** (gamma + 1))


def overlaps(
    steps_a: NDArray[np.float64],
    gammas_a: NDArray[np.float64],
    steps_b: NDArray[np.float64],
    gammas_b: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Inner products of profiles, [A, B]; ratios are taken first, as powers of steps overflow."""
    ta, ga, tb, gb = steps_a[:, None], gammas_a[:, None], steps_b[None], gammas_b[None]
    shorter = np.minimum(ta, tb)
    scale = (shorter / ta) ** ga * (shorter / tb) ** gb / np.maximum(ta, tb)
    return np.asarray((ga + 1) * (gb + 1) / (ga + gb + 1) * scale)


@dataclass(frozen=True)
class Mixture:
    """A wanted profile as a linear combination of snapshots' profiles."""

    weights: NDArray[np.float64]
    """Coefficient of each snapshot."""
    error: float
    """Norm of the fit's residual over the profile's norm."""


def solve(steps: NDArray[np.float64], gammas: NDArray[np.float64], step: float, gamma: float) -> Mixture:
    """The least-squares fit of the profile (step, gamma) by snapshots' profiles."""
    gram = overlaps(steps, gammas, steps, gammas)
    one = np.array([step]), np.array([gamma])
    wanted, norm2 = overlaps(steps, gammas, *one)[:, 0], float(overlaps(*one, *one)[0, 0])
    weights = np.asarray(np.linalg.lstsq(gram, wanted, rcond=None)[0], np.float64)
    missing = float(norm2 - 2 * weights @ wanted + weights @ gram @ weights)
    return Mixture(weights, float(np.sqrt(max(0.0, missing) / norm2)))


class PowerAverages:
    """Power-function averages of a network's weights, in float32, one per length; checkpoints hold them."""

    def __init__(self, model: nn.Module, config: PosthocConfig) -> None:
        """Starts them at the network's weights, which the first update overwrites."""
        self.config = config
        self.gammas = {sigma_rel: gamma_of(sigma_rel) for sigma_rel in config.sigma_rels}
        self.averages = {s: {n: v.detach().clone() for n, v in _state(model).items()} for s in config.sigma_rels}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Adds the weights after ``step`` steps, counted from 1; called after every step, a skipped one too."""
        state = _state(model)
        for sigma_rel, average in self.averages.items():
            weight = 1 - power_decay(step, self.gammas[sigma_rel])
            for name, value in average.items():
                value.lerp_(state[name], weight)

    def tensors(self) -> dict[str, Tensor]:
        """All of them, as ``sigma_rel/name``."""
        return {f"{s:g}/{name}": value for s, average in self.averages.items() for name, value in average.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Loads those of a checkpoint.

        Raises:
            RuntimeError: other names or shapes.
        """
        own = self.tensors()
        if own.keys() != tensors.keys():
            raise RuntimeError("its power-function averages have other weights or lengths")
        for name, value in own.items():
            value.copy_(tensors[name])

    def snapshot(self, folder: Path, step: int, tensors: dict[str, Tensor] | None = None) -> None:
        """Writes ``step-XXXXXXXX.safetensors``, whole or not at all; rounded to the configured precision.

        Args:
            folder: where to.
            step: of the averages.
            tensors: of ``tensors()``, with all their parts where they are split; taken from there if None.

        Raises:
            RunError: the disk refuses it.
        """
        dtype = DTYPES[self.config.precision]
        path = folder / f"step-{step:08d}.safetensors"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                values = (self.tensors() if tensors is None else tensors).items()
                write_tensors({name: value.to(dtype) for name, value in values}, temporary)
        except (OSError, SafetensorError) as error:
            raise RunError(f"cannot write {path}: {error}; make room and run the same command again") from None


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}


@dataclass(frozen=True)
class Rebuilt:
    """An average of a length that was not kept while training."""

    state: dict[str, Tensor]
    """float32."""
    step: int
    error: float
    """See ``Mixture``."""


class Snapshots:
    """The snapshots of a run."""

    def __init__(self, folder: Path) -> None:
        """Reads their steps and lengths.

        Raises:
            UserError: there are none, or one cannot be read.
        """
        found = folder.iterdir() if folder.is_dir() else ()
        self.files = {int(m[1]): path for path in found if (m := _NAME.fullmatch(path.name))}
        if not self.files:
            raise UserError(f"{folder} holds no snapshots; train with training.posthoc_ema.every=STEPS")
        self.files = dict(sorted(self.files.items()))
        self.keys: list[tuple[int, str]] = []
        for step, path in self.files.items():
            with _open(path) as file:
                names = {key.split("/", 1)[0] for key in file.keys()}  # noqa: SIM118 - no mapping
            self.keys += [(step, name) for name in sorted(names)]

    @property
    def last(self) -> int:
        """The newest step."""
        return max(self.files)

    def mixture(self, sigma_rel: float, step: int | None = None) -> tuple[Mixture, list[tuple[int, str]]]:
        """The fit of a length by the snapshots up to a step (the last if None), and those snapshots.

        Raises:
            UserError: a length out of range, or no snapshot that early.
        """
        step = self.last if step is None else step
        used = [(at, name) for at, name in self.keys if at <= step]
        if not used:
            raise UserError(f"the first snapshot is of step {min(self.files)}; ask for that or a later one")
        steps = np.array([at for at, _ in used], np.float64)
        gammas = np.array([gamma_of(float(name)) for _, name in used])
        return solve(steps, gammas, step, gamma_of(sigma_rel)), used

    def rebuild(self, sigma_rel: float, step: int | None = None) -> Rebuilt:
        """The average of a length at a step (the last if None), summed in float64.

        Raises:
            UserError: as ``mixture``, or a damaged file.
        """
        mixture, used = self.mixture(sigma_rel, step)
        total: dict[str, Tensor] = {}
        for at, path in self.files.items():
            mine = [(name, w) for (t, name), w in zip(used, mixture.weights, strict=True) if t == at]
            if not mine:
                continue
            with _open(path) as file:
                for key in file.keys():  # noqa: SIM118 - no mapping
                    length, name = key.split("/", 1)
                    value = float(dict(mine)[length]) * file.get_tensor(key).double()
                    total[name] = total[name] + value if name in total else value
        state = {name: value.float() for name, value in total.items()}
        return Rebuilt(state, self.last if step is None else step, mixture.error)


@dataclass(frozen=True)
class PosthocAverage:
    """A model whose EMA has a length that was not kept while training."""

    system: System
    """Samples as any other; ``udit.save`` writes its model folder."""
    sigma_rel: float
    """Length of the average: the standard deviation of its profile over the steps."""
    step: int
    """Where the average ends."""
    error: float
    """Norm of the fit's residual over the profile's norm."""

    @property
    def spanned(self) -> bool:
        """Whether the snapshots represent this length well: an error of at most 0.05."""
        return self.error <= MAX_ERROR


def posthoc_ema(run: Path | str, sigma_rel: float, step: int | None = None) -> PosthocAverage:
    """The model of a run folder with an EMA of any length, from the snapshots of ``training.posthoc_ema``.

    Args:
        run: the run folder.
        sigma_rel: length of the average, above 0 and below 0.2887 (the mean over all steps), e.g. 0.07.
        step: at which step it ends; the last snapshot's if None.

    Raises:
        UserError: no run folder, no snapshots in it or none that early, or a length out of range.
    """
    values = read_run_config(run)
    folder = Path(run)
    rebuilt = Snapshots(folder / "posthoc").rebuild(sigma_rel, step)
    config = SystemConfig.of(values, rebuilt.step)
    system = System(config, network(config, rebuilt.state, folder / "posthoc"))
    return PosthocAverage(system, sigma_rel, rebuilt.step, rebuilt.error)


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"snapshot {path} cannot be read ({error}); remove it, the others may suffice") from None
