#!/usr/bin/env bash
# Python's tarfile, and webdataset on top of it, take a damaged header within a tar file for its end.
#
# Guess:  a shard whose fifth header was lost (a hole of zeros, or some bytes changed) is an error when it is read.
# Seen:   tarfile of Python 3.11 gives the four members before it and no error, though "r:" knows the size of the file;
#         so does webdataset 1.0.2: an epoch has fewer samples, and nothing says so. A file cut off right after a member,
#         without the two blocks of zeros that end every tar file, is no error either. Only a file cut off within a
#         member's data is. TarInfo.fromtarfile, called member by member, raises a HeaderError.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check webdataset==1.0.2
cd "$place"
venv/bin/python - <<'PY'
import io
import tarfile

import webdataset

BLOCK = 512


def written() -> bytearray:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(10):
            member = tarfile.TarInfo(f"{i}.txt")
            member.size = 5
            tar.addfile(member, io.BytesIO(b"hello"))
    return bytearray(stream.getvalue())


def read(data: bytes) -> tuple[int, int]:
    with open("x.tar", "wb") as stream:
        stream.write(data)
    with tarfile.open("x.tar", "r:") as tar:
        members = len(tar.getmembers())
    return members, sum(1 for _ in webdataset.WebDataset("x.tar", shardshuffle=False, empty_check=False))


whole = written()
hole, spoiled = bytearray(whole), bytearray(whole)
hole[8 * BLOCK : 9 * BLOCK] = bytes(BLOCK)
spoiled[8 * BLOCK : 8 * BLOCK + 40] = b"\xff" * 40
found = {"whole": read(whole), "hole": read(hole), "spoiled": read(spoiled), "cut": read(whole[: 8 * BLOCK])}
print("webdataset", webdataset.__version__, "(members by tarfile, samples by webdataset):", found)
assert found["whole"] == (10, 10)
assert found["hole"] == found["spoiled"] == found["cut"] == (4, 4), "a hole is noticed now"
PY
