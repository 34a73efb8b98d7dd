"""Time and condition become a vector, which modulates blocks (adaLN-Zero, Peebles & Xie 2023), or tokens (U-ViT).

A conditioner is the one place that knows what y is: nothing (None), a class ([B] int64), a point between classes (float
[B, K], a share of each), or vectors (float [B, tokens, width]: a text's, say; one token is a plain vector). Backbones
take what it makes of (t, y) and never look at y.

Axes: B batch, D width, F timestep features, M tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from udit import ops
from udit.errors import UserError
from udit.nn.specs import Context


def check_times(t: Tensor) -> None:
    """Refuses times that are not one for each image.

    Raises:
        UserError: t is no [B].
    """
    if t.ndim != 1:
        raise UserError(f"t is {list(t.shape)}; give one time for each image, [B], e.g. t.expand(len(x))")


def timestep_features(t: Tensor, dim: int = 256) -> Tensor:
    """Sinusoidal features of time, cosines first.

    Args:
        t: [B], in the network's own unit; may be fractional.
        dim: F, even.

    Returns:
        [B, F] float32; frequencies 10000 ** (-i / (F / 2)).

    Raises:
        UserError: t has another shape, e.g. none.
    """
    check_times(t)
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def labels_or_null(y: Tensor | None, t: Tensor, null_label: int | None) -> Tensor:
    """y [B], or the null label for each of t [B].

    Raises:
        UserError: there are neither labels nor a null label.
    """
    if y is not None:
        return y
    if null_label is None:
        raise UserError("the model has no null class, so it cannot do without labels; pass y")
    return t.new_full((t.shape[0],), null_label, dtype=torch.long)


def refuse_labels(y: Tensor | None) -> None:
    """Refuses a condition of a model that takes none.

    Raises:
        UserError: there is one.
    """
    if y is not None:
        raise UserError("the model is unconditional (num_classes 0) and takes no labels; pass y=None")


def label_rows(table: nn.Embedding, y: Tensor | None, t: Tensor, null_label: int | None) -> Tensor:
    """Embeddings [B, D] of labels.

    Args:
        table: of K rows, one for each class, and one behind them for the null class if there is one.
        y: [B] int64; float [B, K], each row's share, whose embedding is their sum; or None (= null).
        t: [B].
        null_label: of the null class; None if there is none.

    Raises:
        UserError: y is neither, or missing where there is no null class.
    """
    y = labels_or_null(y, t, null_label)
    if not y.is_floating_point():
        rows: Tensor = table(y)
        return rows
    if list(y.shape) != [len(t), table.num_embeddings]:
        raise UserError(
            f"y is {list(y.shape)} floats; give [{len(t)}] class numbers (int64), or a share of each class, "
            f"[{len(t)}, {table.num_embeddings}]"
        )
    return y.to(table.weight.dtype) @ table.weight


def checked_vectors(y: Tensor | None, batch: int, spec: Context) -> Tensor:
    """y, if it is what ``spec`` says.

    Raises:
        UserError: it is missing or of another shape.
    """
    wanted = [batch, spec.tokens, spec.width]
    if y is None or list(y.shape) != wanted:
        raise UserError(
            f"y is {'missing' if y is None else list(y.shape)}; the model takes vectors of shape {wanted} (for "
            "no condition, those of an empty text)"
        )
    return y


def mean_vector(y: Tensor) -> Tensor:
    """[B, tokens, width] -> the mean [B, width] over tokens that there are."""
    return y.sum(dim=1) / text_mask(y).sum(dim=1, keepdim=True).clamp(min=1)


def text_mask(states: Tensor) -> Tensor:
    """Which tokens there are: true where any channel [..., D] of a hidden state is not 0; padding is rows of zeros."""
    return (states != 0).any(dim=-1)


def checked_states(y: Tensor | None, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A text's hidden states, and which of its tokens there are, bool [B, tokens].

    Args:
        y: float [B, layers, tokens, width], or None.
        shape: what it has to be.

    Raises:
        UserError: it is missing or of another shape.
    """
    if y is None or list(y.shape) != list(shape) or not y.is_floating_point():
        raise UserError(
            f"y is {'missing' if y is None else list(y.shape)}; the model takes hidden states of texts, floats "
            f"{list(shape)} (for no condition, those of the empty text)"
        )
    return y, text_mask(y[:, 0])


class Conditioner(Protocol):
    """Time and condition in a backbone's own form."""

    def __call__(self, t: Tensor, y: Tensor | None = None, /) -> Tensor:
        """t [B] in the network's unit, y as the config's ``condition_shape`` says, or None -> [B, D] or [B, M, D]."""


class SecondTime(nn.Module):
    """Embeds how far a second time lies below the first one; its output layer begins at 0 (``build``)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.expand = nn.Linear(features, width)
        self.contract = nn.Linear(width, width)

    def forward(self, gap: Tensor) -> Tensor:
        """[B] -> [B, D]."""
        features = timestep_features(gap, self.features).to(self.expand.weight.dtype)
        return self.contract(torch.nn.functional.silu(self.expand(features)))


@runtime_checkable
class TwoTimes(Protocol):
    """A conditioner whose t is [B], or [B, 2] once it has taken a second time (MeanFlow, Geng et al. 2025).

    Such a network predicts the average velocity from t down to the second time r. It is told t - r by an embedding that
    is added; t [B] stands for r = t.
    """

    second_time: SecondTime | None

    def take_second_time(self) -> None:
        """Adds the second time's embedding."""


def split_times(t: Tensor, second: SecondTime | None) -> tuple[Tensor, Tensor | None]:
    """The first time [B], and the embedding [B, D] of how far the second lies below it; None without a second one.

    Raises:
        UserError: t is neither [B] nor [B, 2].
    """
    if second is None:
        return t, None
    if t.ndim == 1:
        return t, second(torch.zeros_like(t))
    if t.ndim != 2 or t.shape[1] != 2:
        raise UserError(f"t is {list(t.shape)}; give one time for each image, [B], or two, [B, 2]")
    return t[:, 0], second(t[:, 0] - t[:, 1])


class VectorConditioner(nn.Module):
    """Embeds (t, y) into one vector [B, D]: timestep MLP plus y's part.

    Of a class that is a row of a table, whose last row is the null class; of vectors, a projection of the mean of those
    that are not all 0.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        features: int = 256,
        null_class: bool = True,
        context: Context | None = None,
    ) -> None:
        """For ``num_classes`` besides the null class, which ``null_class`` leaves out; ``features`` is F."""
        super().__init__()
        self.spec = context
        self.width, self.features = width, features
        self.second_time: SecondTime | None = None
        self.null_label = num_classes if null_class else None
        self.time = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + null_class, width) if num_classes else None
        self.context = nn.Linear(context.width, width) if context else None

    def take_second_time(self) -> None:
        """As ``TwoTimes``."""
        self.second_time = SecondTime(self.features, self.width)

    def forward(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """t [B], or [B, 2] as ``TwoTimes``, and y as ``embed`` -> [B, D]."""
        t, second = split_times(t, self.second_time)
        embedded = self.embed(t, y)
        return embedded if second is None else embedded + second

    def embed(self, t: Tensor, y: Tensor | None) -> Tensor:
        """t [B], y [B] int64 or [B, K] shares or None (= null), or float [B, tokens, width] -> [B, D].

        Raises:
            UserError: y is not what the model takes, or missing where there is no null class.
        """
        embedded = self.time(timestep_features(t, self.features).to(next(self.time.parameters()).dtype))
        if self.context is not None and self.spec is not None:
            return embedded + self.context(mean_vector(checked_vectors(y, t.shape[0], self.spec)).to(embedded.dtype))
        if self.label is None:
            refuse_labels(y)
            return embedded
        return embedded + label_rows(self.label, y, t, self.null_label)


class TokenConditioner(nn.Module):
    """(t, y) as tokens for the front of a sequence (Bao et al. 2023, U-ViT); the time's are plain features.

    A class is one token before the time's; a context's vectors, projected, come behind it.
    """

    def __init__(self, width: int, num_classes: int, null_class: bool, context: Context | None) -> None:
        super().__init__()
        self.width = width
        self.spec = context
        self.second_time: SecondTime | None = None
        self.null_label = num_classes if num_classes and null_class else None
        self.label = nn.Embedding(num_classes + null_class, width) if num_classes else None
        self.context = nn.Linear(context.width, width) if context else None

    def take_second_time(self) -> None:
        """As ``TwoTimes``."""
        self.second_time = SecondTime(self.width, self.width)

    def forward(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """t [B], or [B, 2] as ``TwoTimes``, and y as ``embed`` -> [B, M, D]; a second time is in the time's token."""
        t, second = split_times(t, self.second_time)
        embedded = self.embed(t, y)
        if second is None:
            return embedded
        tokens, place = list(embedded.split(1, dim=1)), 0 if self.label is None else 1
        tokens[place] = tokens[place] + second[:, None]
        return torch.cat(tokens, dim=1)

    def embed(self, t: Tensor, y: Tensor | None) -> Tensor:
        """t [B]; y [B] int64 or [B, K] shares or None (= null), or float [B, tokens, width] -> [B, M, D].

        Raises:
            UserError: y is not what the model takes, or missing where there is no null class.
        """
        time = timestep_features(t, self.width)[:, None]
        if self.context is not None and self.spec is not None:
            return torch.cat([time, self.context(checked_vectors(y, t.shape[0], self.spec))], dim=1)
        if self.label is None:
            refuse_labels(y)
            return time
        return torch.cat([label_rows(self.label, y, t, self.null_label)[:, None], time], dim=1)


class Modulation(NamedTuple):
    """What a condition does to one sub-layer, each [B, 1, 1, D]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def modulations(x: Tensor) -> tuple[Modulation, Modulation]:
    """[B, 6 D] -> those of attention and FFN."""
    parts = x[:, None, None].chunk(6, dim=-1)
    return Modulation(*parts[:3]), Modulation(*parts[3:])


class AdaLNConditions(NamedTuple):
    """All that (t, y) decide of a network whose blocks and last norm are modulated (adaLN-Zero)."""

    blocks: list[tuple[Modulation, Modulation]]
    """Of attention and FFN, block by block."""
    out: tuple[Tensor, ...]
    """Shift and scale of the last norm."""


def modulated(
    x: Tensor, mods: tuple[Modulation, Modulation], attention: nn.Module, ffn: nn.Module, *args: object
) -> Tensor:
    """Attention and FFN on a map [B, H, W, D], each modulated before and gated after; ``args`` are the attention's."""
    one, two = mods
    x = ops.gated_sum(x, one.gate, attention(ops.modulated_norm(x, one.shift, one.scale), *args))
    return ops.gated_sum(x, two.gate, ffn(ops.modulated_norm(x, two.shift, two.scale)))


class ModulatedBlock(nn.Module):
    """Attention and FFN on a map, modulated by what is computed outside of it."""

    def __init__(self, attention: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.ffn = ffn

    def forward(self, x: Tensor, mods: tuple[Modulation, Modulation], *args: Tensor | None) -> Tensor:
        """x [B, H, W, D], its modulations, further arguments of the attention -> [B, H, W, D]."""
        return modulated(x, mods, self.attention, self.ffn, *args)


class AdaLNBlock(nn.Module):
    """Attention and FFN on a map, each modulated before and gated after by the condition (adaLN-Zero)."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, width: int) -> None:
        super().__init__()
        self.attention = attention
        self.ffn = ffn
        self.modulation = nn.Linear(width, 6 * width)

    def condition(self, cond: Tensor) -> tuple[Modulation, Modulation]:
        """SiLU'd condition [B, D] -> modulations of attention and FFN."""
        return modulations(self.modulation(cond))

    def forward(self, x: Tensor, mods: tuple[Modulation, Modulation], *positions: Tensor | None) -> Tensor:
        """x [B, H, W, D], ``condition``'s result, the rotary table if the attention takes one -> [B, H, W, D]."""
        return modulated(x, mods, self.attention, self.ffn, *positions)
