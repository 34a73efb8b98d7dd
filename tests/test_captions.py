"""Images with texts: files beside them, tables and columns; one of several drawn by key; two digits on a canvas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from udit.data.batches import batches
from udit.data.captions import Captions, captions_of, folder_captions
from udit.data.check import Contents, check
from udit.data.config import FolderData, HubData, TwoDigitsData
from udit.data.describe import describe
from udit.data.sources import Source
from udit.data.two_digits import HELD_OUT, PAIRS, Layout, composed, layouts, load, prompts
from udit.errors import UserError


def grey_images(root: Path, *names: str) -> Path:
    """Writes grey images of different brightness."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 * (i + 1), np.uint8)).save(root / name)
    return root


def source(root: Path, how: Any) -> Source:
    return FolderData(root=root, size=8, channels=1, captions=how).build()


def test_texts_beside_images_of_any_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey_images(tmp_path, "a/1.png", "b/deep/2.png")
    (tmp_path / "a" / "1.txt").write_text("a cat\n\n  one   cat \n", encoding="utf-8-sig")
    (tmp_path / "b" / "deep" / "2.txt").write_text("ein größerer Hund\n", encoding="utf-8")
    (tmp_path / "a" / "README.txt").write_text("not a caption")
    captions = captions_of(source(tmp_path, "files"))
    assert captions is not None
    assert [captions[0], captions[1]] == [["a cat", "one cat"], ["ein größerer Hund"]]
    assert captions.distinct() == ["a cat", "ein größerer Hund", "one cat"]
    assert not [line for line in caplog.messages if "1.txt" in line or "label files" in line]
    assert describe(FolderData(root=tmp_path, captions="files")).captioned
    assert captions_of(source(tmp_path, None)) is None


def test_a_check_reads_captions(tmp_path: Path) -> None:
    grey_images(tmp_path, "1.png", "2.png")
    for name in "12":
        (tmp_path / f"{name}.txt").write_text("one\nother\n")
    contents = Contents()
    assert list(check(tmp_path, 8, contents, keys={"captions": "files"})) == []
    assert (contents.captions, contents.bad, len(contents.notes)) == (4, 0, 0)
    (tmp_path / "7.txt").write_text("seven")
    (said,) = check(tmp_path, 8, contents, keys={"captions": "files"})
    assert "7.txt has no image beside it" in said
    assert contents.bad == 1


def test_a_caption_without_its_image_and_an_image_without_caption_are_refused(tmp_path: Path) -> None:
    grey_images(tmp_path, "1.png", "2.png")
    (tmp_path / "1.txt").write_text("one")
    with pytest.raises(UserError, match=r"^the image '.*2.png' has no caption; write it into 2.txt beside it$"):
        source(tmp_path, "files")
    (tmp_path / "2.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"2.txt holds no text; write a caption into it"):
        source(tmp_path, "files")
    (tmp_path / "2.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"2.txt is not UTF-8 text; save it as UTF-8$"):
        source(tmp_path, "files")
    (tmp_path / "2.txt").write_text("two")
    (tmp_path / "7.txt").write_text("seven")
    with pytest.raises(UserError, match=r"7.txt has no image beside it \(7.png, .jpg, .webp or .gif\); add the image"):
        source(tmp_path, "files")


def table(root: Path, *rows: Any) -> Path:
    path = root / "metadata.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_tables_name_images_and_their_texts(tmp_path: Path) -> None:
    grey_images(tmp_path, "1.png", "in/2.png")
    rows = [
        {"file_name": "in/2.png", "text": ["two", "the second"]},
        {"file_name": "./1.png", "text": "one", "size": 3},
        {"file_name": "1.png", "text": "the first"},
    ]
    path = table(tmp_path, *rows)
    wanted = [["one", "the first"], ["two", "the second"]]
    names = ["1.png", "in/2.png"]
    assert list(folder_captions(tmp_path, names, "metadata")) == wanted
    path.unlink()
    text = 'text,file_name\n"two",in/2.png\none,1.png\nthe first,1.png\nthe second,in/2.png\n'
    (tmp_path / "metadata.csv").write_text(text)
    assert list(folder_captions(tmp_path, names, "metadata")) == wanted


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], r"metadata.jsonl has no row of the image '1.png'; add its text, or move the image elsewhere"),
        (["{"], r"metadata.jsonl, line 1 is no JSON object"),
        ([{"file_name": "1.png"}], r"line 1 lacks file_name or text"),
        ([{"file_name": "1.png", "text": [1]}], r"line 1 lacks file_name or text"),
        ([{"file_name": "1.png", "text": " "}], r"line 1 has an empty text; write a caption, or remove the row"),
        (
            [{"file_name": "1.png", "text": "a"}, {"file_name": "9.png", "text": "b"}],
            r"names '9.png', which is not there",
        ),
    ],
)
def test_tables_that_do_not_fit_the_folder_are_refused(tmp_path: Path, rows: list[Any], said: str) -> None:
    table(grey_images(tmp_path, "1.png"), *rows)
    with pytest.raises(UserError, match=said):
        source(tmp_path, "metadata")


def test_a_folder_has_one_table_with_both_columns(tmp_path: Path) -> None:
    grey_images(tmp_path, "1.png")
    with pytest.raises(UserError, match=r"holds neither metadata.jsonl nor metadata.csv; one of them lists"):
        source(tmp_path, "metadata")
    (tmp_path / "metadata.csv").write_text("file_name,caption\n1.png,one\n")
    with pytest.raises(UserError, match=r"has columns \['file_name', 'caption'\]; it needs file_name and text"):
        source(tmp_path, "metadata")
    table(tmp_path)
    with pytest.raises(UserError, match=r"holds both metadata.jsonl and metadata.csv"):
        source(tmp_path, "metadata")


def test_captions_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    grey_images(tmp_path, "1.png")
    (tmp_path / "1.txt").write_text("one")
    before = source(tmp_path, "files").fingerprint
    assert source(tmp_path, None).fingerprint != before
    (tmp_path / "1.txt").write_text("two")
    assert source(tmp_path, "files").fingerprint != before


def test_columns_of_parquet_files_hold_captions(tmp_path: Path) -> None:
    from datasets import Dataset, Features, List, Value
    from datasets import Image as Picture

    folder = grey_images(tmp_path / "images", "1.png", "2.png")
    images = [str(folder / "1.png"), str(folder / "2.png")]
    path = tmp_path / "train.parquet"
    columns = {"image": images, "text": ["one", "two"], "both": [["a", "b"], ["c"]]}
    features = Features({"image": Picture(), "text": Value("string"), "both": List(Value("string"))})
    Dataset.from_dict(columns, features).to_parquet(str(path))

    def read(caption: str) -> Any:
        return HubData(path=str(path), size=8, channels=1, caption=caption)

    built = read("text").build()
    assert list(captions_of(built)) == [["one"], ["two"]]  # type: ignore[call-overload]
    assert built.labels.tolist() == [0, 0]
    assert not describe(read("text")).labelled
    assert list(captions_of(read("both").build())) == [["a", "b"], ["c"]]  # type: ignore[call-overload]
    with pytest.raises(UserError, match=r"has no column 'words'; set data.caption to one of its columns: both, text"):
        read("words").build()
    columns["text"][1] = ""
    Dataset.from_dict(columns, features).to_parquet(str(path))
    with pytest.raises(UserError, match=r"column 'text' of .* has no text in row 1; it needs a caption"):
        read("text").build()


def test_streaming_takes_no_captions() -> None:
    with pytest.raises(ValueError, match="caption is given and streaming keeps images alone"):
        HubData(path="owner/name", caption="text", streaming=True)


def test_one_of_several_captions_is_drawn_by_key(tmp_path: Path) -> None:
    """The same in the same place of the run for any batch size."""
    root = grey_images(tmp_path, *(f"{i}.png" for i in range(4)))
    for i in range(4):
        (root / f"{i}.txt").write_text(f"{i} first\n{i} second\n{i} third\n")
    images, part = source(root, "files"), np.arange(4)

    def drawn(size: int, workers: int = 0) -> list[str]:
        how: dict[str, Any] = {"seed": 3, "start": 0, "stop": 48 // size, "global_batch": size, "workers": workers}
        stream = batches(images, part, **how)
        return [text for micro in stream for batch in micro for text in batch.texts]

    texts = drawn(4)
    assert texts == drawn(12)
    assert {text.split()[1] for text in texts} == {"first", "second", "third"}
    assert len(set(texts)) == 12


# ---- two digits ------------------------------------------------------------------------------------------------------


def test_held_out_pairs_leave_each_digit_in_each_place() -> None:
    assert len(set(HELD_OUT)) == 20
    assert len(PAIRS) == 80
    assert {a for a, _ in PAIRS} == {b for _, b in PAIRS} == set(range(10))
    assert {(b, a) for a, b in HELD_OUT if a != b} <= set(PAIRS)


@pytest.mark.parametrize("size", [16, 24])
def test_canvases_are_made_from_the_seed_and_captions_say_what_they_show(size: Any) -> None:
    data = TwoDigitsData(size=size, count=100, seed=5)
    one, two, other = load(data), load(data), load(data.replace(seed=6))
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert one.pixels.shape == (110, 1, size, size)
    assert one.held_out.tolist() == list(range(100, 110))
    held_out = {prompt.text for pair in HELD_OUT for layout in layouts(size) for prompt in prompts(pair, layout)}
    shown = [bool(set(one.captions[i]) & held_out) for i in range(110)]
    assert shown == [False] * 100 + [True] * 10


def test_captions_of_both_kinds() -> None:
    assert [p.text for p in prompts((3, 7), Layout(16, vertical=True))] == [
        "a three above a seven",
        "a seven below a three",
    ]
    both = prompts((8, 8), Layout(16, vertical=False))
    assert [p.text for p in both] == ["an eight left of an eight", "an eight right of an eight", "two eights"]
    assert both[-1].layouts == (Layout(16, vertical=True), Layout(16, vertical=False))
    sized = prompts((1, 9), Layout(24, vertical=False, first_small=True))
    assert {p.text for p in sized} >= {"a small one left of a nine", "a large nine right of a small one"}


def test_digits_are_cut_out_as_they_were_put_in() -> None:
    digits = np.random.default_rng(0).integers(0, 256, (2, 8, 8)).astype(np.uint8)
    for size in (16, 24):
        for layout in layouts(size):
            canvas = layout.canvas(*digits)
            assert canvas.shape == (1, size, size)
            found = np.concatenate(layout.crops(canvas[None]))
            assert (found[:, 0] == digits).all()
            sides = [side for *_, side in layout.places]
            assert canvas.astype(int).sum() == sum(
                int(digit.astype(int).sum()) * (side // 8) ** 2 for digit, side in zip(digits, sides, strict=True)
            )


def test_canvases_show_pairs_and_layouts_about_equally() -> None:
    made = list(composed(PAIRS, 24, 800, np.arange(400), (0, "a test")))
    pairs = {pair for _, pair, _ in made}
    assert len(pairs) == 80
    assert min(sum(layout == each for _, _, layout in made) for each in layouts(24)) > 150


def test_captions_keep_texts_of_any_length() -> None:
    captions = Captions.of([["", "long " * 1000], ["ü"]])
    assert captions[0] == ["", "long " * 1000]
    assert captions.chosen(0, 7) == "long " * 1000
    assert len(captions) == 2
