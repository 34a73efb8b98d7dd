"""Scores clips of moving digits: both digits of the first and last frame are read, in samples and in real clips.

python benchmarks/moving.py RUN ...      samples each run, scores it, and adds it to moving.json
python benchmarks/moving.py --table      prints the table of docs/results.md from moving.json

A frame is read by splitting it between the two digits, by a row or a column that leaves at most 8x8 pixels of ink on
either side, and asking a support vector machine for each. It was trained on scikit-learn's digits, moved to the corner
of their ink. A frame that cannot be split is not read, and counts as wrong.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import udit
from udit.data.moving import PAIRS, SIDE, MovingDigits
from udit.data.sources import digits, parts_of
from udit.store import read_run_config

RECORD = Path(__file__).with_suffix(".json")
INK = 64
"""Of 255: what is brighter belongs to a digit."""
Frame = NDArray[np.uint8]


class Reader(Protocol):
    """Reads single digits."""

    def predict(self, images: NDArray[np.float64], /) -> NDArray[np.int64]:
        """[N, 64] -> [N]."""


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders of `udit train moving-digits`")
    parser.add_argument("--table", action="store_true", help="print the table")
    parser.add_argument("--n", type=int, default=275, help="clips of each run, five of each class if not given")
    asked = parser.parse_args()
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    if asked.table:
        print(table(record))
        return
    reader = trained()
    for run in asked.runs:
        measured = scored(Path(run), asked.n, reader)
        record |= {measured["model"]: measured}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(table({measured["model"]: measured}))


def scored(run: Path, count: int, reader: Reader) -> dict[str, Any]:
    """What is read of a run's samples and of its held-out clips."""
    values = read_run_config(run)
    source = values.data.build()
    assert isinstance(source, MovingDigits)
    held_out = parts_of(source, values.data).test[:count]
    real = np.stack([source.image(int(i)) for i in held_out])
    labels = [i % len(PAIRS) for i in range(count)]
    started = time.process_time()
    generation = udit.generate(str(run), list(range(count)), labels, batch_size=16)
    drawn = generation.images().numpy()
    system = generation.system
    return {
        "model": system.config.model.family,
        "parameters": system.num_parameters,
        "steps": system.config.steps,
        "batch_size": values.training.batch_size,
        "sampling": system.config.sampling.model_dump(mode="json"),
        "clips": count,
        "samples": what_is_read(drawn[:, 0], labels, reader),
        "real": what_is_read(real[:, 0], source.labels[held_out].tolist(), reader),
        "cpu_seconds_of_sampling": round(time.process_time() - started),
        "udit": udit.__version__,
        "date": str(date.today()),
    }


def what_is_read(clips: Frame, labels: list[int], reader: Reader) -> dict[str, float]:
    """Shares of clips [N, F, H, W].

    Returns:
        Of clips whose first frame, whose last one, and whose both show the pair of the label; of all later frames that
        can be read, how many show the pair that the first one does (constancy), and how many can be read at all.
    """
    seen = [[read(frame, reader) for frame in clip] for clip in clips]
    wanted = [tuple(sorted(PAIRS[label])) for label in labels]
    ends = [(pairs[0] == pair, pairs[-1] == pair) for pairs, pair in zip(seen, wanted, strict=True)]
    later = [(pairs[0], each) for pairs in seen if pairs[0] is not None for each in pairs[1:]]
    readable = [(first, each) for first, each in later if each is not None]
    return {
        "first": float(np.mean([first for first, _ in ends])),
        "last": float(np.mean([last for _, last in ends])),
        "both": float(np.mean([first and last for first, last in ends])),
        "constancy": float(np.mean([first == each for first, each in readable])) if readable else 0.0,
        "readable": len(readable) / len(later) if later else 0.0,
    }


def read(frame: Frame, reader: Reader) -> tuple[int, ...] | None:
    """The two digits of a frame, the smaller one first; None where it does not split into two."""
    parts = apart(frame)
    if parts is None:
        return None
    found = reader.predict(np.stack([cornered(part) for part in parts]))
    return tuple(sorted(int(digit) for digit in found))


def apart(frame: Frame) -> tuple[Frame, Frame] | None:
    """The two sides of the row or column that leaves one digit's room on either; the one with least ink beside it."""
    found = []
    for turned in (frame, frame.T):
        for at in range(2, len(turned) - 2):
            sides = turned[:at], turned[at:]
            if all(fits(side) for side in sides):
                found.append((int(turned[at - 1 : at + 1].sum()), len(found), sides, turned is frame))
    if not found:
        return None
    _, _, (one, two), upright = min(found)
    return (one, two) if upright else (one.T, two.T)


def fits(side: Frame) -> bool:
    """Whether there is ink, of no more than a digit's extent."""
    rows, columns = np.nonzero(side > INK)
    return len(rows) > 4 and int(np.ptp(rows)) < SIDE and int(np.ptp(columns)) < SIDE


def cornered(image: Frame) -> NDArray[np.float64]:
    """The ink moved to the upper left corner of 8x8 pixels, as a vector in 0..1."""
    rows, columns = np.nonzero(image > INK)
    top, left = (int(rows.min()), int(columns.min())) if len(rows) else (0, 0)
    cut = image[top : top + SIDE, left : left + SIDE]
    square = np.zeros((SIDE, SIDE))
    square[: cut.shape[0], : cut.shape[1]] = cut / 255
    return square.ravel()


def trained() -> Reader:
    """A support vector machine for single digits."""
    from sklearn.svm import SVC

    source = digits()
    reader: Reader = SVC(C=10, gamma=0.05).fit([cornered(image[0]) for image in source.pixels], source.labels)
    return reader


def table(record: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| model | parameters | steps x clips | both digits read: first frame | last frame | both | of real clips | "
        "same pair in later frames | of real clips |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, each in record.items():
        made, real = each["samples"], each["real"]
        shares = [made["first"], made["last"], made["both"], real["both"], made["constancy"], real["constancy"]]
        lines.append(
            f"| {name} | {each['parameters']:,} | {each['steps']:,} x {each['batch_size']} | "
            + " | ".join(f"{share:.1%}" for share in shares)
            + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
