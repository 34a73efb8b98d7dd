"""How the input of every block lies in memory, and where neither torch's default nor channels-last it is.

  run PYTHON strides.py U-DiT-S [--batch 8] [--eval]

JSON on stdout. A map [B, H, W, D], as U-DiT's and DiT's are, has its channels last when it is contiguous; a map
[B, C, H, W] when it is so in torch's channels_last. A kernel that reads channels first finds one value a cache line in
the first kind where ``contiguous`` is false.
"""

from __future__ import annotations

from typing import Any

import fake_cuda as fc
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def layout(tensor: Tensor) -> dict[str, Any]:
    """Shape, strides and, of a map, whether one of torch's two formats has it; of others, whether it is contiguous."""
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return {
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "contiguous": tensor.is_contiguous(),
        "channels_last": last,
    }


def layouts(config: Any, batch: int, train: bool = True) -> dict[str, Any]:
    """The layout of every block's input and output, and which inputs are odd."""
    rows: list[dict[str, Any]] = []

    def hook(name: str) -> Any:
        def see(block: nn.Module, given: Any, named: Any, out: Any) -> None:
            first = next(t for t in tree_leaves((given, named)) if isinstance(t, Tensor))
            made = next(t for t in tree_leaves(out) if isinstance(t, Tensor))
            rows.append({"block": name, "in": layout(first), "out": layout(made)})

        return see

    with fc.no_gpu():
        model = (config if train else fc.field(config, "folded")()).build().train(train)
        model.requires_grad_(train)
        for name, block in fc.blocks_of(model).items():
            block.register_forward_hook(hook(name), with_kwargs=True)
        fc.autocast(True)
        model(*fc.inputs(config, batch))
        fc.autocast(False)
    odd = [row["block"] for row in rows if not row["in"]["contiguous"]]
    neither = [row["block"] for row in rows if not row["in"]["contiguous"] and not row["in"]["channels_last"]]
    return {
        "blocks": len(rows),
        "not_contiguous": odd,
        "neither_contiguous_nor_channels_last": neither,
        "layouts": rows,
    }


def main() -> None:
    parser = fc.arguments(__doc__ or "", batch=8)
    parser.add_argument("--eval", action="store_true", help="the network as `fuse` makes it, without gradients")
    args = parser.parse_args()
    told = {"model": args.model, "batch": args.batch, "versions": fc.versions()}
    fc.tell(told | layouts(fc.config_of(args), args.batch, not args.eval))


if __name__ == "__main__":
    main()
