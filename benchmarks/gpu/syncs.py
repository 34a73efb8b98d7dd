"""Where a training step makes the host wait for the device: values read back, and blocking copies, by file and line.

  run PYTHON syncs.py U-DiT-S --batch 8 [--diffusion ddpm|flow]

JSON on stdout. One whole step of the library's Learner (the second; the first also makes the optimiser's state): batch
to the device, loss, backward, norm of the gradients, AdamW, moving average. Numbers that the program reads from the
device are taken for 1, so it goes the way of finite losses.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import fake_cuda as fc
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = ("_to_copy", "copy_", "_copy_from")


class Syncs(TorchDispatchMode):
    """Notes each operator that makes the host wait, and each copy between host and device that does not."""

    def __init__(self, folder: Path) -> None:
        """``folder``: of the library, whose lines are told."""
        super().__init__()
        self.folder = folder
        self.found: collections.Counter[tuple[str, str, str]] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            return self._read(func, args[0])
        try:
            made = func(*args, **(kwargs or {}))
        except DynamicOutputShapeException:
            self._note("read back", f"{name}: the size of its result", None)
            raise
        if name in COPIES:
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], made)
            if source.is_cuda != target.is_cuda:
                waits = not ((kwargs or {}).get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
                way = "host to device" if target.is_cuda else "device to host"
                self._note("blocking copy" if waits else "copy", way, target)
        return made

    def __enter__(self) -> Syncs:
        self._patches = contextlib.ExitStack()
        for holder in (torch.cuda, torch.cuda.Stream, torch.cuda.Event):  # these are no operators
            self._patches.enter_context(mock.patch.object(holder, "synchronize", self._called(holder.__name__)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._patches.close()
        super().__exit__(*error)

    def _called(self, holder: str) -> Any:
        return lambda *args, **kwargs: self._note("synchronize", f"{holder}.synchronize()", None)

    def _read(self, func: Any, tensor: Tensor) -> Any:
        if tensor.is_cuda:
            self._note("read back", "item, float, bool", tensor)
            return 1.0 if tensor.dtype.is_floating_point else 1
        try:
            return func(tensor)
        except DataDependentOutputException:
            return 0  # of the host's own, without contents; no one waits for it

    def _note(self, kind: str, what: str, tensor: Tensor | None) -> None:
        lines = [
            f"{Path(frame.filename).relative_to(self.folder)}:{frame.lineno}"
            for frame in traceback.extract_stack()
            if frame.filename != __file__ and Path(frame.filename).is_relative_to(self.folder)
        ]
        size = "" if tensor is None else f", {fc.bytes_of(tensor)} bytes"
        self.found[kind, what + size, " < ".join(reversed(lines[-3:])) or "(backward)"] += 1

    def take(self) -> list[dict[str, Any]]:
        """What was noted since the last call, by place."""
        rows = [
            {"kind": kind, "what": what, "times": times, "where": where}
            for (kind, what, where), times in self.found.items()
        ]
        self.found.clear()
        return rows


def step(config: Any, batch: int, kind: str | None = None) -> dict[str, Any]:
    """The waits of one step of the library's Learner: the second, or third, as the second reads the first one's report.

    Args:
        config: of the model.
        batch: samples.
        kind: of noising process; ddpm for a network that learns the variance if None, else flow.
    """
    kind = kind or ("ddpm" if config.learn_sigma else "flow")
    if config.condition_shape not in ((), None):
        fc.fail(f"the model takes vectors of shape {config.condition_shape} as its condition; the Learner gives labels")
    if kind == "flow" and config.learn_sigma:
        config = config.replace(learn_sigma=False)
    builders = importlib.import_module("udit.training.parallel")
    learner_of, world = fc.wanted("udit.training.learner", "Learner"), fc.wanted("udit.dist", "World")
    fc.wanted("udit.training.parallel", "build")
    batch_of, drawing = fc.wanted("udit.data.batches", "Batch"), fc.wanted("udit.training.batches", "drawing_of")
    words = [f"diffusion.kind={kind}", "training.compile=false", "training.precision=bfloat16"]
    run = fc.wanted("udit.run.recipes", "load_run")("digits", words)
    training = run.training.model_copy(update={"batch_size": batch})
    run = run.model_copy(update={"model": config, "training": training})

    def made(config: Any, **unused: Any) -> torch.nn.Module:
        """In the place of `build`, which makes weights on meta and moves them: fake tensors cannot be swapped so."""
        with torch.device("cuda"):
            return config.build()

    builders.build = made  # type: ignore[attr-defined]
    result: dict[str, Any] = {"diffusion": kind}
    with fc.no_gpu(), torch.device("cpu"):
        torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(..., device="cuda") copies where no mode sees it
        learner = learner_of(run, world(device=torch.device("cuda", 0)))
        learner.share(0)
        ids = list(range(batch))
        x = torch.zeros(batch, config.in_channels, *config.size)
        given = batch_of(x, torch.zeros(batch, dtype=torch.long), ids, ids, drawn=drawing(run)(ids, run.model.size))
        there = [t for part in learner.tensors().values() for t in part.values()]
        with fc.Tally(there) as tally, Syncs(fc.library()) as syncs:
            try:
                for number in range(2):
                    learner.begin(number, [given])
                tally.take(), syncs.take()
                learner.begin(2, [given])
            except (TypeError, AttributeError) as error:
                at = traceback.extract_tb(error.__traceback__)[-1]
                fc.fail(f"the Learner is no longer used as here: {error} ({Path(at.filename).name}:{at.lineno})")
            except DynamicOutputShapeException as error:
                result["stopped"] = f"{error}: the size of a result hangs on contents; nothing after it was seen"
            result["step"] = {key: value for key, value in tally.take().items() if key != "by_operator"}
            rows = syncs.take()
    kinds = ("read back", "blocking copy", "synchronize", "copy")
    result["waits"] = {kind: sum(row["times"] for row in rows if row["kind"] == kind) for kind in kinds}
    result["places"] = rows
    return result


def main() -> None:
    parser = fc.arguments(__doc__ or "", batch=8)
    parser.add_argument("--diffusion", choices=("ddpm", "flow"), help="ddpm for a network that learns the variance")
    args = parser.parse_args()
    told = {"model": args.model, "batch": args.batch, "versions": fc.versions()}
    fc.tell(told | step(fc.config_of(args), args.batch, args.diffusion))


if __name__ == "__main__":
    main()
