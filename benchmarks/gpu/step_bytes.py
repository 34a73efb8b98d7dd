"""Operators, gigabytes and memory of one eager training step, or one forward pass, under CUDA's bf16 autocast.

  run PYTHON step_bytes.py U-DiT-L --batch 256
  run PYTHON step_bytes.py U-DiT-L --literal                 benchmarks/literal.py of the library's checkout
  run PYTHON step_bytes.py DiT-XL/2 --mode forward           the network as `fuse` makes it, without gradients

JSON on stdout. A step is forward, mean squared error, backward; optimiser and moving average are not in it (`syncs.py`
runs them). Operators are what torch dispatches to the device: each launches a kernel at least; `off_device` counts
those that touch no tensor of it.
"""

from __future__ import annotations

from typing import Any

import fake_cuda as fc
from torch import nn


def step(
    config: Any, batch: int, kind: type[nn.Module] | None = None, train: bool = True, recompute: str | None = None
) -> dict[str, Any]:
    """Counts of one step, or of one forward pass.

    Args:
        config: of the model.
        batch: samples.
        kind: a network that is built from the config, in the model's place.
        train: forward and backward; otherwise the fused network's forward pass.
        recompute: selective or whole.
    """
    with fc.no_gpu():
        if kind is not None:
            model = kind(config)
            if not train and hasattr(model, "fold"):
                model = model.fold()
        else:
            model = (config if train else fc.field(config, "folded")()).build()
        model.train(train).requires_grad_(train)
        if recompute:
            again = fc.wanted("udit.models.build", "checkpoint_activations")
            again(model, "selective" if recompute == "selective" else True)
        given = fc.inputs(config, batch)
        parameters = list(model.parameters())
        size = {"tensors": len(parameters), "M": round(sum(p.numel() for p in parameters) / 1e6, 3)}
        result: dict[str, Any] = {"parameters": size}
        tally = fc.Tally([*parameters, *model.buffers(), *given])
        with tally:
            fc.autocast(True)
            out = model(*given)
            result["forward"] = tally.take()
            result["forward"]["out"] = {"shape": list(out.shape), "dtype": str(out.dtype)}
            if train:
                loss = out.float()[:, : config.in_channels].square().mean()
                kept = tally.living
                tally.take()
            fc.autocast(False)
            if train:
                loss.backward()
                result["backward"] = tally.take()
    if train:
        result["activations_kept_GB"] = fc.gb(kept)
        result["most_living_GB"] = fc.gb(tally.most)
        result["total"] = {
            key: round(result["forward"][key] + result["backward"][key], 3) for key in ("operators", "GB", "off_device")
        }
    return result


def main() -> None:
    parser = fc.arguments(__doc__ or "")
    parser.add_argument("--mode", choices=("train", "forward"), default="train")
    fc.takes_literal(parser)
    parser.add_argument("--recompute", choices=("selective", "whole"), help="activations are computed a second time")
    args = parser.parse_args()
    config, kind = fc.config_of(args), fc.literal_class(args.literal) if args.literal else None
    result = {
        "model": args.model + (f" as {args.literal}" if args.literal else ""),
        "batch": args.batch,
        "mode": args.mode,
        "recompute": args.recompute or "none",
        "versions": fc.versions(),
    }
    fc.tell(result | step(config, args.batch, kind, args.mode == "train", args.recompute))


if __name__ == "__main__":
    main()
