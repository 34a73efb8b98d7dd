"""Prompts of a model that takes texts, and the conditions that its language model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from udit.errors import UserError, as_list
from udit.run.system import SystemConfig
from udit.text.model import LanguageModel, conditions

NONE_GIVEN = "the model takes texts and was given none; give prompts, or --prompt TEXT to `udit sample`"


class Prompts:
    """The language model of a model that takes texts, loaded when it is first asked."""

    def __init__(self, config: SystemConfig, device: torch.device) -> None:
        """Takes the model's config and where the language model runs.

        Raises:
            UserError: the model takes no texts.
        """
        self.text, self.device = config.prompted, device
        self.shape = config.model.condition_shape

    @cached_property
    def model(self) -> LanguageModel:
        """The language model.

        Raises:
            UserError: it is missing, or another one.
        """
        return self.text.build(self.device)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """What the network takes of prompts, float32 [N, ...] on the CPU."""
        assert self.shape, "the run's rules refuse a text for a model that takes none"
        known = {prompt: self.model.states(prompt) for prompt in dict.fromkeys(prompts)}
        return conditions([known[prompt] for prompt in prompts], self.text, self.shape)


def one_each(prompts: str | Sequence[str], count: int) -> list[str]:
    """A prompt for each of several images; one text is for all.

    Raises:
        UserError: another number of them.
    """
    each = [prompts] * count if isinstance(prompts, str) else as_list("prompts", prompts)
    if len(each) != count:
        raise UserError(f"prompts are {len(each)} and seeds {count}; give one prompt for each seed, or one for all")
    return each


def check_context(config: SystemConfig, context: Tensor | None, count: int, given: bool) -> None:
    """Refuses vectors that a model does not take, and none where it takes some.

    Args:
        config: of the model.
        context: float [N, ...], the conditions of the images.
        count: N.
        given: whether there is a context or a null condition.

    Raises:
        UserError: see above.
    """
    shape = config.model.condition_shape
    if not shape:
        if given:
            raise UserError("context was given to a model that takes no vectors; leave it out")
    elif context is None:
        if config.text is not None:
            raise UserError(NONE_GIVEN)
        raise UserError(
            f"the model takes vectors of {list(shape)} per image and was given none; pass context, or "
            "--context FILE to `udit sample`"
        )
    elif list(context.shape) != [count, *shape]:
        raise UserError(f"context is {list(context.shape)} and the model takes {[count, *shape]} for {count} images")
