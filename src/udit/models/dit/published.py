"""Key names of the DiT release, which SiT and Skip-DiT keep; and of diffusers' ``DiTTransformer2DModel``.

In diffusers every block has time and label embeddings of its own; in weights that come from DiT's release all are
equal, and only such weights have a form here. Its queries, keys and values are three matrices, the release's are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from udit.errors import UserError
from udit.models.config import ModelConfig
from udit.models.dit.config import DiTConfig
from udit.models.fixed import Fixed, Keys, Row, both
from udit.models.isotropic import IsotropicConfig
from udit.models.published import Layout
from udit.nn.specs import Full
from udit.nn.tokens import sincos_table

EMBEDDINGS = {
    "timestep_embedder.linear_1.weight": "t_embedder.mlp.0.weight",
    "timestep_embedder.linear_1.bias": "t_embedder.mlp.0.bias",
    "timestep_embedder.linear_2.weight": "t_embedder.mlp.2.weight",
    "timestep_embedder.linear_2.bias": "t_embedder.mlp.2.bias",
    "class_embedder.embedding_table.weight": "y_embedder.embedding_table.weight",
}
"""Of every block, below ``norm1.emb``."""
OF_A_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
AT_THE_ENDS = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
FIXED: dict[str, Any] = {
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "dropout": 0.0,
}
"""Settings of the transformer that the paper's DiT has no other value of."""
NORM_EPS = (1e-5, 1e-6)
"""Of the settings: diffusers' default, which it gives to weights of the release, and the release's own."""
NOTE = (
    "diffusers' own network has other time frequencies (127 for the release's 128) and another epsilon in a norm, so "
    "its outputs differ; the weights are read into the release's network, for which they were trained"
)
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


def key_map(config: DiTConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    if config.attention != Full(cosine=False, rope=False):
        raise UserError(
            "the release has full attention by the scaled dot product only; this DiT is an ablation of ours"
        )
    return {key: (name, shape) for key, name, shape in transformer_rows(config, config.head_channels)}


def transformer_rows(config: IsotropicConfig, head_channels: int) -> Iterator[Row]:
    """Rows of the transformer, from the position table to the head."""
    grid, d, patch = config.grid, config.width, config.patch
    hidden = round(config.ffn.ratio * d)
    yield "pos_embed", Fixed(lambda: sincos_table(*grid, d), parameter=True), (1, grid[0] * grid[1], d)
    yield from both("x_embedder.proj", "embed", (d, config.input_channels, patch, patch))
    yield from both("t_embedder.mlp.0", "conditioner.time.0", (d, 256))
    yield from both("t_embedder.mlp.2", "conditioner.time.2", (d, d))
    if config.num_classes:
        yield "y_embedder.embedding_table.weight", "conditioner.label.weight", (config.num_classes + 1, d)
    for i in range(config.depth):
        block = f"blocks.{i}"
        yield from both(f"{block}.attn.qkv", f"{block}.attention.qkv", (3 * d, d))
        yield from both(f"{block}.attn.proj", f"{block}.attention.out", (d, d))
        yield from both(f"{block}.mlp.fc1", f"{block}.ffn.expand", (hidden, d))
        yield from both(f"{block}.mlp.fc2", f"{block}.ffn.contract", (d, hidden))
        yield from both(f"{block}.adaLN_modulation.1", f"{block}.modulation", (6 * d, d))
    yield from both("final_layer.linear", "out", (patch**2 * head_channels, d))
    yield from both("final_layer.adaLN_modulation.1", "out_modulation", (2 * d, d))


def from_diffusers(content: Mapping[str, Tensor], config: ModelConfig, where: str) -> dict[str, Tensor]:
    """Tensors of a ``DiTTransformer2DModel`` under the release's key names.

    Args:
        content: its state dict.
        config: of the network that they are for; its computed position table completes them.
        where: the file, for messages.

    Raises:
        UserError: another family, a key that is missing or unknown, or blocks with different embeddings.
    """
    if not isinstance(config, DiTConfig):
        raise UserError(f"{where} holds a DiT of diffusers and the model is a {config.family}; name a DiT with --model")
    state: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in content.items():
        stem, _, kind = key.rpartition(".")
        found = _BLOCK.fullmatch(key)
        if stem in AT_THE_ENDS:
            state[f"{AT_THE_ENDS[stem]}.{kind}"] = tensor
        elif found is None:
            raise UserError(f"{where} holds {key!r}, which the paper's DiT has not; only its own form is read")
        else:
            _of_a_block(state, parts, int(found[1]), found[2], tensor, where)
    for name, three in parts.items():
        if missing := {"q", "k", "v"} - set(three):
            raise UserError(f"{where} lacks attn1.to_{min(missing)} of {name}; download it again")
        state[name] = torch.cat([three[part] for part in "qkv"])
    fixed = config.published_keys()["pos_embed"][0]
    assert not isinstance(fixed, str)
    return {"pos_embed": fixed.value().reshape(config.published_keys()["pos_embed"][1]), **state}


def _of_a_block(
    state: dict[str, Tensor], parts: dict[str, dict[str, Tensor]], block: int, key: str, tensor: Tensor, where: str
) -> None:
    stem, _, kind = key.rpartition(".")
    if key.startswith("norm1.emb."):
        name = EMBEDDINGS.get(key.removeprefix("norm1.emb."))
        if name is not None and not torch.equal(state.setdefault(name, tensor), tensor):
            raise UserError(
                f"{where} has an embedding of its own in block {block} ({key}), as training in diffusers makes them; "
                "the paper's DiT has one for all blocks and cannot hold these weights"
            )
    elif stem in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
        name = f"blocks.{block}.attn.qkv.{kind}"
        parts.setdefault(name, {})[stem[-1]] = tensor
    else:
        name = f"blocks.{block}.{OF_A_BLOCK[stem]}.{kind}" if stem in OF_A_BLOCK else None
        if name is not None:
            state[name] = tensor
    if name is None:
        raise UserError(
            f"{where} holds {key!r} in block {block}, which the paper's DiT has not; only its own form is read"
        )


def _config(values: dict[str, Any], where: str) -> DiTConfig:
    for key, wanted in FIXED.items():
        if values.get(key, wanted) != wanted:
            raise UserError(f"{where} says {key} {values[key]!r} and the paper's DiT has {wanted!r}; not read")
    if (eps := values.get("norm_eps", NORM_EPS[0])) not in NORM_EPS:
        raise UserError(f"{where} says norm_eps {eps!r} and the paper's DiT has {NORM_EPS[1]!r}; not read")
    try:
        heads, size = values["num_attention_heads"], values["attention_head_dim"]
        channels = values["in_channels"]
        out = values.get("out_channels") or channels
        known = {"heads": heads, "width": heads * size, "depth": values["num_layers"], "patch": values["patch_size"]}
        known |= {"in_channels": channels, "input_size": values["sample_size"]}
        known |= {"num_classes": values["num_embeds_ada_norm"], "learn_sigma": out == 2 * channels}
    except (KeyError, TypeError) as error:
        raise UserError(f"the config.json in {where} lacks {error}; download it again") from None
    if out not in (channels, 2 * channels):
        raise UserError(f"{where} has {out} out_channels for {channels} in_channels; DiT has as many, or twice as many")
    return DiTConfig().replace(**known)


LAYOUTS = {
    "DiTTransformer2DModel": Layout(
        marker="transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight",
        config=_config,
        published=from_diffusers,
        note=NOTE,
    )
}
