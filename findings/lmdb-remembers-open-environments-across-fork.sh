#!/usr/bin/env bash
# lmdb's Python binding refuses to open, in a forked process, what its parent had open.
#
# Guess:  an environment must not be used across a fork, so a child (a DataLoader's worker) opens its own; that works.
# Seen:   lmdb 3.0.0 raises "The environment ... is already open in this process" in the child, which has opened nothing:
#         the list of open environments is copied by the fork. Closing the inherited object in the child first frees the
#         name there, and leaves the parent's environment usable (lock=False, readonly).
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check lmdb==3.0.0
cd "$place"
venv/bin/python - <<'PY'
import os

import lmdb

OPTIONS = {"readonly": True, "lock": False}
with lmdb.open("db", map_size=2**20) as written, written.begin(write=True) as writing:
    writing.put(b"key", b"value")


def child(close_first: bool, inherited: lmdb.Environment) -> str:
    out, back = os.pipe()
    if not os.fork():
        try:
            if close_first:
                inherited.close()
            with lmdb.open("db", **OPTIONS).begin() as reading:
                said = reading.get(b"key")
        except lmdb.Error as error:
            said = str(error).encode()
        os.write(back, said)
        os._exit(0)
    os.wait()
    return os.read(out, 1000).decode()


parent = lmdb.open("db", **OPTIONS)
found = {"opened in a child": child(False, parent), "closed there first": child(True, parent)}
with parent.begin() as reading:
    found["the parent after"] = reading.get(b"key").decode()
print("lmdb", lmdb.__version__, found)
assert "already open" in found["opened in a child"], "a child may open what its parent has open now"
assert found["closed there first"] == found["the parent after"] == "value"
PY
