#!/usr/bin/env bash
# Trackio: a resumed run that logs steps again has them twice; the curve goes back and forth.
#
# Guess:  a run that is resumed from a checkpoint (resume="allow") and logs steps 4 and 5 once more replaces the older
#         values, as TensorBoard's purge_step does, or refuses them, as Weights & Biases does.
# Seen:   trackio 0.43.0 keeps both. Logs hold steps 1 to 5 and then 4 and 5 again, in the order of arrival.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check trackio==0.43.0
cd "$place"
TRACKIO_DIR="$place/logs" "$place/venv/bin/python" - <<'PY'
import trackio
from trackio.sqlite_storage import SQLiteStorage


def log(values):
    trackio.init(project="project", name="run", resume="allow", embed=False, auto_log_cpu=False)
    for step, loss in values.items():
        trackio.log({"loss": loss}, step=step)
    trackio.finish()


log({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0})
log({4: 40.0, 5: 50.0})
kept = [(row["step"], row["loss"]) for row in SQLiteStorage.get_logs("project", "run")]
print(kept)
assert kept == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (4, 40), (5, 50)], "changed: remove this file"
PY
