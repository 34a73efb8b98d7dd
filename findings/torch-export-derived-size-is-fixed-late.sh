#!/usr/bin/env bash
# torch.export refuses a free axis that the code fixes (by len, say), but not where the axis is declared as a multiple.
#
# Guess:  an axis declared as Dim("rows") and one declared as 2 * Dim("rows") are both refused at export if len() of what
#         comes from it makes it a constant.
# Seen:   torch 2.14.1 refuses the first at export. The second is exported without a word, and a guard fails when the
#         program runs on another size; converters that read the graph alone (torch.onnx.export, OpenVINO) drop the guard,
#         and their graphs fail or are wrong there.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy
cd "$place"
venv/bin/python - <<'PY'
import torch
from torch.export import Dim


class Rows(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = torch.nn.functional.pixel_unshuffle(x, 2) if x.ndim == 4 else x
        places = torch.arange(half.shape[-2])
        return half + torch.ones(1, 1).expand(len(places), 1)


found = {}
for name, example, other, dim in (
    ("rows", torch.zeros(4, 6), torch.zeros(7, 6), {0: Dim("rows", min=1)}),
    ("2 * rows", torch.zeros(1, 1, 8, 6), torch.zeros(1, 1, 14, 6), {2: 2 * Dim("rows", min=1)}),
):
    try:
        program = torch.export.export(Rows(), (example,), dynamic_shapes=(dim,), strict=False)
        program.module()(other)
        found[name] = "runs"
    except AssertionError:
        found[name] = "a guard fails when it runs"
    except Exception:
        found[name] = "refused at export"
print("torch", torch.__version__, found)
assert found == {"rows": "refused at export", "2 * rows": "a guard fails when it runs"}, "both are treated alike now"
PY
