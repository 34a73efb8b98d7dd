"""Training on 200,000 images in tar shards: what listing them costs, how long a step waits for them, and memory.

    OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/shards.py FOLDER     # shards.json, and the page
    PYTHONPATH=src python benchmarks/shards.py --page     # the lines of docs/formats.md alone

Five minutes on a quiet machine of two cores: one trains, the other reads. Needs Linux and half a gigabyte in FOLDER.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import tarfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import processor
from PIL import Image

import udit
from udit.data import verify
from udit.files import cache_folder
from udit.run.recipes import load_run
from udit.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
RECORD, PAGE = Path(__file__).with_suffix(".json"), ROOT / "docs" / "formats.md"
MARK = "<!-- measured, by benchmarks/shards.py -->"
"""Before and behind the lines that this script writes into the page."""
COUNT, SHARDS, SIDE, CLASSES = 200_000, 40, 8, 10
NUMBER, CHECKSUM = slice(0, 6), slice(148, 156)
"""Bytes of a header: the digits with which a member's name begins, and the checksum."""


def blocks(name: str, data: bytes) -> bytes:
    """A small member as it lies in a tar file."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member.tobuf(tarfile.USTAR_FORMAT) + data.ljust(tarfile.BLOCKSIZE, b"\0")


def write_shards(folder: Path, count: int = COUNT, shards: int = SHARDS) -> None:
    """Shards of grey images with a class each, as tarfile writes them; names and checksums are filled in at once."""
    folder.mkdir(parents=True, exist_ok=True)
    random, samples = np.random.default_rng(0), []
    for label in range(CLASSES):
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE), np.uint8)).save(stream, "PNG", compress_level=0)
        samples.append(blocks("000000.png", stream.getvalue()) + blocks("000000.cls", str(label).encode()))
    templates = np.array([np.frombuffer(sample, np.uint8) for sample in samples])
    for shard in range(shards):
        numbers = np.arange(shard, count, shards)
        written = templates[numbers % CLASSES].reshape(len(numbers), 2, 2, tarfile.BLOCKSIZE)
        headers = written[:, :, 0]
        headers[..., NUMBER] = digits(numbers, 10)[:, None]
        headers[..., CHECKSUM] = ord(" ")
        headers[..., CHECKSUM][..., :6] = digits(headers.sum(axis=2, dtype=np.int64), 8)
        headers[..., CHECKSUM][..., 6] = 0
        (folder / f"{shard:04}.tar").write_bytes(written.tobytes() + bytes(2 * tarfile.BLOCKSIZE))


def digits(numbers: Any, base: int) -> Any:
    """Six digits of each number, as ASCII."""
    return ord("0") + numbers[..., None] // base ** np.arange(5, -1, -1) % base


def private(process: int) -> int:
    """Memory in kB that a process alone has written to."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def measure(folder: Path, words: list[str], every: int) -> dict[str, Any]:
    """Lists the shards twice, trains, and looks at the memory of trainer and worker at every N-th step."""
    verify.MAX_MEMORY = 0  # else so small images are decoded once and kept
    kept = set((cache_folder() / "shards").glob("*"))
    data = ["data.kind=webdataset", f"data.root={folder}", f"data.size={SIDE}", "data.channels=1"]
    data += ["data.verify=headers", f"out={folder}/run", "training.workers=1", "training.sample_every=100000"]
    listed = []
    for _ in range(2):
        began = time.perf_counter()
        run = load_run("digits", [*data, *words])
        listed.append(time.perf_counter() - began)
    for index in set((cache_folder() / "shards").glob("*")) - kept:  # no other run would take it
        index.unlink()
    memory, waited, taken, began = [], [], [], time.perf_counter()
    for record in Trainer(run).steps():
        waited.append(record.waited)
        now = time.perf_counter()
        taken.append(now - began)
        began = now
        if record.step % every == 0 and record.step < run.training.steps:  # whose worker has ended
            memory.append(
                sum(map(private, [os.getpid(), *(each.pid or 0 for each in multiprocessing.active_children())]))
            )
    steady = slice(every // 2, None)  # the first steps warm up
    spent = sum(share * step for share, step in zip(waited[steady], taken[steady], strict=True))
    return {
        "listed": listed[0],
        "again": listed[1],
        "steps": run.training.steps,
        "batch_size": run.training.batch_size,
        "step_ms": 1000 * statistics.median(taken),
        "waited": spent / sum(taken[steady]),
        "memory_kb": memory,
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": f"udit {udit.__version__}, torch {torch.__version__}",
        "date": str(date.today()),
    }


def told(record: dict[str, Any]) -> str:
    """The record in words."""
    memory = record["memory_kb"]
    late = memory[len(memory) // 2 :]  # until then processes write to pages that a fork left them to share
    return (
        f"Measured on {COUNT:,} images in {SHARDS} shards (`python benchmarks/shards.py FOLDER`; {record['machine']}, "
        f"{record['date']}): listed in {record['listed']:.1f} s, the next time in {record['again']:.2f} s; the digits' "
        f"model, {record['step_ms']:.0f} ms a step of {record['batch_size']} images, waits for one worker "
        f"{record['waited']:.2%} of the time. Memory that both write to alone is {memory[0] // 1000} MB at first, and "
        f"from step {record['steps'] // 2:,} to {record['steps']:,} within {max(late) / min(late) - 1:.1%} of "
        f"{min(late) // 1000} MB."
    )


def page(record: dict[str, Any], text: str) -> str:
    """The page, with the record in it."""
    before, _, behind = text.split(MARK)
    return f"{before}{MARK}\n\n{told(record)}\n\n{MARK}{behind}"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where the shards and the run are written")
    parser.add_argument("words", nargs="*", help="overrides of the digits' recipe; the record is then printed alone")
    parser.add_argument("--every", type=int, default=500, help="steps between looks at the memory")
    parser.add_argument("--page", action="store_true", help="write the lines of the page alone")
    asked = parser.parse_args()
    if not asked.page:
        if asked.folder is None:
            parser.error("give a folder for the shards")
        torch.set_num_threads(1)
        write_shards(asked.folder)
        record = measure(asked.folder, ["training.steps=6000", *asked.words], asked.every)
        print(json.dumps(record))
        if asked.words:
            return
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    PAGE.write_text(page(record, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
