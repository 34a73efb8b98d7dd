"""What the library asks of a noising process before torch is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from udit.diffusion.samplers import SAMPLERS
from udit.spec.base import Spec

if TYPE_CHECKING:
    from udit.diffusion.schedule import Schedule

DensityMean = Annotated[float, Field(ge=-10, le=10)]
"""Mean of a logit-normal's normal: at 10, nearly all times are pure noise."""
DensityStd = Annotated[float, Field(gt=0, le=10)]
"""Its standard deviation: at 10, nearly all times are at one of the ends."""
Level = Literal["draft", "good", "best"]
"""Of ``udit sample --quality``."""


class ProcessConfig(Spec):
    """What the library asks of a noising process before torch is imported. A subclass is one process."""

    kind: str
    """Names the process; a subclass says it with a Literal and a default."""
    title: ClassVar[str]
    """The process in messages: "the model was trained with ..."."""
    learns_variance: ClassVar[bool] = False
    """Whether its loss trains the variance channels of a network with ``learn_sigma``."""
    reversible: ClassVar[bool] = False
    """Whether it takes networks that get 1 - t and predict x0 - eps (``reversed_flow``)."""
    has_velocity: ClassVar[bool] = False
    """Whether its target is the velocity dx_t/dt of a flow, which CFG-Zero* corrects."""
    two_times: ClassVar[bool] = False
    """Whether its networks take a second time (``model.second_time``)."""
    sampling_steps: ClassVar[int | None] = None
    """Evaluations that its models are sampled with where a run says nothing; None is the common default."""
    quality: ClassVar[dict[Level, tuple[str, int]]]
    """Sampler and steps of ``udit sample --quality`` where nothing has been tuned."""
    few_step_samplers: ClassVar[tuple[str, ...]]
    """What ``udit tune`` tries."""

    without: ClassVar[dict[str, str]] = {}
    """Keys of other processes that make no sense here, each with the reason."""

    @model_validator(mode="before")
    @classmethod
    def _check_without(cls, values: Any) -> Any:
        for key in cls.without if isinstance(values, dict) else ():
            if key in values:
                raise ValueError(f"{key} does not go with kind {values.get('kind')}: {cls.without[key]}; leave it out")
        return values

    @classmethod
    def samplers(cls) -> tuple[str, ...]:
        """Names of the samplers that serve this process; the first is the default."""
        kind = cls.model_fields["kind"].default
        return tuple(name for name, row in SAMPLERS.items() if kind in row.processes)

    @property
    def max_steps(self) -> int | None:
        """Steps that sampling cannot exceed: the length of a discrete schedule; None for a continuous one."""
        return None

    @classmethod
    def continuing(cls, origin: dict[str, Any]) -> dict[str, Any] | None:
        """What this process takes from the one whose weights it begins with.

        Args:
            origin: plain values of a process, of this kind or another.

        Returns:
            Plain values with its own kind; None where such weights are of no use to it.
        """
        kind = cls.model_fields["kind"].default
        return {"kind": kind} if origin.get("kind") == kind else None

    def build(self) -> Schedule:
        """The process itself: schedule, target and loss."""
        raise NotImplementedError(f"{type(self).__name__} names no schedule")
