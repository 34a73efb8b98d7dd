#!/usr/bin/env bash
# What torch.distributed.checkpoint raises is not caught by "except Exception".
#
# Guess:  a checkpoint that is damaged, or has a tensor of another size, raises an Exception, so that a program can go
#         back to the checkpoint before it.
# Seen:   torch 2.14.1 raises CheckpointException, which derives from BaseException as KeyboardInterrupt does: except
#         Exception lets it through, in a single process too, and the program ends.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6
cd "$place"
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY' 2>/dev/null
import torch
import torch.distributed.checkpoint as dcp

dcp.save({"weight": torch.zeros(3, 4)}, checkpoint_id="saved", no_dist=True)
try:
    try:
        dcp.load({"weight": torch.zeros(5, 4)}, checkpoint_id="saved", no_dist=True)
    except Exception as error:
        raise SystemExit(f"an Exception, {type(error).__name__}: mended, remove this file") from error
except BaseException as error:
    if isinstance(error, SystemExit):
        raise
    names = [kind.__name__ for kind in type(error).__mro__]
    print(f"not caught by except Exception: {' < '.join(names)}; {str(error).strip().splitlines()[-1]}")
    assert names == ["CheckpointException", "BaseException", "object"]
PY
