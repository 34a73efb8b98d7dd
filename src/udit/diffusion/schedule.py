"""What a noising process is: x_t = alpha(t) x0 + sigma(t) eps, what networks learn of it, and how they are trained.

Processes are subclasses of ``Schedule``, each in a module of its own with its loss and the samplers that it alone has:
``ddpm``, ``flow``, ``edm``. What can be said of a process without torch is in its config (``Schedule.process``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from udit.diffusion.config import ProcessConfig
from udit.diffusion.samplers import listed
from udit.diffusion.targets import Target
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.diffusion.denoiser import Backbone, Denoiser
    from udit.diffusion.objective import Losses

TimeUnit = Literal["index", "unit", "sigma"]
"""Units of time: an index of DDPM's T steps; 0 (data) to 1 (noise); or the ratio of noise to signal, sigma / alpha."""
Table = np.ndarray[tuple[int], np.dtype[np.float64]]
INDEX_SCALE = 1000.0
"""What t = 1 of a continuous process is to a network whose unit of time is an index."""


def gather(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Entries of a float64 table at indices t [B], cast to ``like``'s dtype (float32 at least) as [B, 1, 1, 1]."""
    return table[t].to(torch.promote_types(like.dtype, torch.float32)).view(-1, *[1] * (like.ndim - 1))


def placed(table: np.ndarray[Any, np.dtype[np.float64]], device: torch.device) -> Tensor:
    """A table on a device: in float32 where it has no float64."""
    wide = torch.from_numpy(table)
    return (wide.float() if device.type == "mps" else wide).to(device)


def everywhere(time: float, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[B] one time for all of a batch [B, ...], which the host goes on knowing: see ``known``."""
    here = torch.full((len(like),), time, dtype=dtype, device=like.device)
    return told(here, torch.full((1,), time, dtype=dtype, device="cpu"))


def told(t: Tensor, host: Tensor | None) -> Tensor:
    """Times t [B] on a device with what the host knows of them, [1] on the CPU; None is nothing."""
    if host is not None and t.device.type != "cpu":
        t.known_on_host = host  # type: ignore[attr-defined]
    return t


def known(t: Tensor) -> Tensor:
    """What a decision by the times t [B] may look at: [1] on the CPU where the host knows it; else t itself.

    A read of t would wait for all that a GPU has to do until then.
    """
    host: Tensor = getattr(t, "known_on_host", t)
    return host


def alike(t: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``change(t)``, of which the host knows as much as of t."""
    host = known(t)
    return told(change(t), None if host is t else change(host))


class Schedule(ABC):
    """A noising process. Times t [B] are in the process's own unit: int64 indices where it is discrete, else floats."""

    process: ClassVar[type[ProcessConfig]]
    """Its config's class, which holds all that can be said without torch."""
    time: ClassVar[TimeUnit]
    """Its own unit of time."""

    @property
    @abstractmethod
    def target(self) -> Target:
        """What networks are trained to predict on this process."""

    @property
    def velocity(self) -> Target | None:
        """dx_t/dt as a target, of a flow; None of other processes."""
        return None

    @abstractmethod
    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise at t [B], shaped [B, 1, 1, 1], in ``like``'s dtype (float32 at least)."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Tensor:
        """One training time as a scalar tensor."""

    @abstractmethod
    def fraction(self, t: Tensor) -> Tensor:
        """t [B] as float64 in 0 (data) ... 1 (noise): the unit of guidance intervals."""

    @abstractmethod
    def network_time(self, t: Tensor, unit: TimeUnit) -> Tensor:
        """t [B] in the unit a network was built for."""

    @abstractmethod
    def loss(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
        """Per-sample training losses.

        Args:
            denoiser: a network on this process.
            x0: [B, C, H, W] data.
            t: [B] times of this process.
            noise: [B, C, H, W] standard normal.
            y: [B] labels, some dropped, or None.
        """

    def at_step(self, step: int) -> Self:
        """The process as it is at a training step, counted from 0; most stay the same."""
        return self

    def precondition(self, backbone: Backbone, unit: TimeUnit) -> tuple[Backbone, TimeUnit]:
        """What a denoiser calls in place of a network with that unit of time, and the wrapper's own unit."""
        return backbone, unit

    def respaced(self, sections: int | str) -> Schedule:
        """A discrete process over a part of its steps.

        Raises:
            UserError: the process is continuous, or cannot be split so.
        """
        raise UserError(
            f"a model that was trained with {self.process.title} has no discrete steps to respace; use "
            f"{listed(self.process.samplers())}"
        )

    def discrete_betas(self) -> Table | None:
        """[T] noise variances of a discrete variance-preserving process; None of a continuous one."""
        return None

    def from_linear(self, sigma: float) -> tuple[float, float]:
        """Where a continuous process has the ratio of noise to signal of the linear path at time ``sigma``.

        Multistep solvers that know the linear flow path alone ask this.

        Returns:
            The time here, and x_t here over x_t there.
        """
        raise NotImplementedError(f"{type(self).__name__} has no counterpart of the linear path")
