"""Data sets of the hub are read whole, streamed, or refused in one line; a local server stands in for the hub."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hub_stand_in import Hub, serving, use
from image_files import folder, noise
from udit.data.config import FolderData, HubData
from udit.data.describe import describe
from udit.data.sources import parts_of
from udit.errors import UserError
from udit.hub import dataset_commit


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    noise(12, 10, seed=seed).save(stream, "PNG")
    return stream.getvalue()


def parquet(images: list[bytes], labels: list[int], named: bool = True) -> bytes:
    """A file as `datasets` writes it, with class names in its schema or without."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    table = pa.table({"image": cells, "label": labels})
    label: dict[str, Any] = {"dtype": "int64", "_type": "Value"}
    if named:
        label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), stream)
    return stream.getvalue()


TRAIN = [png(i) for i in range(8)]
TEST = [png(i) for i in range(8, 11)]
FILES = {
    "data/train-00000-of-00001.parquet": parquet(TRAIN, [0, 1] * 4),
    "data/test-00000-of-00001.parquet": parquet(TEST, [0, 1, 0]),
}


Call = Callable[..., list[Any]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """What each config gives, where the hub is the stand-in."""
    import datasets

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "hf" / "modules"))

    def run(hub: Hub, *configs: dict[str, Any]) -> list[Any]:
        use(hub, tmp_path / "hf" / "hub", monkeypatch)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
        return [one(HubData(**values)) for values in configs]

    return run


def one(data: HubData) -> Any:
    try:
        info, source = describe(data), data.build()
        source.verify()
        parts = parts_of(source, data)
        return {
            "classes": list(info.id2label),
            "size": [info.channels, info.height, info.width],
            "labels": source.labels.tolist(),
            "names": list(source.names),
            "fingerprint": source.fingerprint,
            "pixels": np.stack([source.image(i) for i in range(len(source))]).tolist(),
            "test": parts.test.tolist(),
        }
    except UserError as error:
        return str(error)


def squares(images: list[bytes]) -> np.ndarray:
    """The middles of images of 12 rows and 10 columns."""
    return np.stack([np.array(Image.open(io.BytesIO(data)))[1:11].transpose(2, 0, 1) for data in images])


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


@pytest.mark.slow
def test_hub_data_set_is_read_whole_or_streamed_to_the_same_images(tmp_path: Path, call: Call) -> None:
    plain = {"path": "o/d", "size": 10, "test_split": "test"}
    with serving(FILES) as hub:
        whole, streamed, again = call(hub, plain, plain | {"streaming": True}, plain | {"streaming": True})
    assert whole["classes"] == ["cat", "dog"]
    assert whole["size"] == [3, 10, 10]
    assert whole["labels"] == [0, 1] * 4 + [0, 1, 0]
    assert whole["names"][7:9] == ["train 7", "test 0"]
    assert whole["test"] == [8, 9, 10]
    assert np.array_equal(whole["pixels"], squares(TRAIN + TEST))
    assert without(streamed, "fingerprint") == without(whole, "fingerprint")
    assert again == streamed
    [place] = [entry for entry in (tmp_path / "cache" / "udit" / "pictures").iterdir() if entry.is_dir()]
    assert (place / "pixels").stat().st_size == 11 * 3 * 10 * 10  # all that is kept of the files


def test_what_cannot_be_loaded_is_one_line_each(tmp_path: Path, call: Call) -> None:
    torn = [*TRAIN[:2], TRAIN[2][:150], *TRAIN[3:]]
    files = {"data/train-00000-of-00001.parquet": parquet(torn, [0, 1] * 4)}
    for name, content in {
        "numbers": parquet(TRAIN, [0, 1] * 4, named=False),
        "unlabelled": parquet(TRAIN, [-1] * 8),
        "bad": b"nothing",
    }.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
    here = {name: {"path": str(tmp_path / f"{name}.parquet"), "size": 10} for name in ("numbers", "unlabelled", "bad")}
    cases: dict[str, dict[str, Any]] = {
        "'o/absent' cannot be loaded (Dataset 'o/absent' doesn't exist on the Hub": {"path": "o/absent"},
        "'no hub id' cannot be loaded (": {"path": "no hub id"},
        "'/nowhere' cannot be loaded (Couldn't find any data file at /nowhere": {"path": "/nowhere"},
        "'o/d' cannot be loaded (Bad split: test": {"path": "o/d", "split": "test"},
        "'conf' not found": {"path": "o/d", "name": "conf"},
        "o/d has no column 'img'; set data.image to one of its columns: image": {"path": "o/d", "image": "img"},
        "column 'label' of o/d holds no images": {"path": "o/d", "image": "label"},
        "image 'o/d, train 2' cannot be read": {"path": "o/d", "size": 10},
        "image 'o/d, train 2' cannot be read (": {"path": "o/d", "size": 10, "streaming": True},
        "has no class names; give them in label order as data.classes": here["numbers"],
        "has a label 1 where there are 1 classes": here["numbers"] | {"classes": ["cat"]},
        "has a label -1 where there are 2 classes; labels count from 0 (-1 marks": here["unlabelled"],
        "bad.parquet' cannot be loaded (": here["bad"],
        "cannot be streamed": here["numbers"] | {"classes": ["a", "b"], "streaming": True},
    }
    with serving(files) as hub:
        told = call(hub, *cases.values())
    for wanted, line in zip(cases, told, strict=True):
        assert isinstance(line, str), wanted
        assert wanted in line
        assert "\n" not in line
    assert not [entry for entry in (tmp_path / "cache" / "udit" / "pictures").iterdir() if entry.is_dir()]


def test_folder_of_images_through_datasets_is_the_folder_itself(tmp_path: Path, call: Call) -> None:
    root = folder(tmp_path / "pets", cat=3, dog=2)
    with serving({}) as hub:
        (found,) = call(hub, {"path": str(root), "size": 8})
    own = FolderData(root=root, size=8).build()
    assert found["classes"] == ["cat", "dog"]
    assert found["labels"] == own.labels.tolist()
    assert np.array_equal(found["pixels"], [own.image(i) for i in range(5)])


def test_local_folder_of_which_classes_would_be_lost_is_refused_with_the_reason(tmp_path: Path, call: Call) -> None:
    by_words = "for parts of the data set ({}), by words in their names, and leaves out {}; data.kind=folder data.root="
    named = {
        "shoes": (
            ["boots", "heels", "training_shirts", "training_shoes"],
            by_words.format("train", "'boots', 'heels'"),
        ),
        "glass": (["beaker", "flask", "test_tube"], by_words.format("test", "'beaker', 'flask'")),
        "words": (["anode", "cathode", "test", "train"], by_words.format("train, test", "'anode', 'cathode'")),
        "linked": (
            ["cat", "dog"],
            "follows no links to folders in {} and leaves out 'bird'; data.kind=folder data.root=",
        ),
    }
    for name, (classes, _) in named.items():
        folder(tmp_path / name, **dict.fromkeys(classes, 2))
    folder(tmp_path / "elsewhere", bird=2)
    (tmp_path / "linked" / "bird").symlink_to(tmp_path / "elsewhere" / "bird")
    with serving({}) as hub:
        told = call(hub, *({"path": str(tmp_path / name), "size": 8} for name in named))
    for (name, (_, wanted)), line in zip(named.items(), told, strict=True):
        assert f"{wanted.format(tmp_path / name)}{tmp_path / name} reads all as classes" in line


def test_local_folder_without_labels_says_why_and_what_reads_it(tmp_path: Path, call: Call) -> None:
    wanted = {
        "loose": "makes none where images lie at several depths, as 'cover.png' does",
        "deeper": "makes none where images lie at several depths, as 'dog/pug/0.png' does",
        "captions": "takes labels from metadata.csv alone where there is one",
        "one": "makes none of a single class",
    }
    for name in wanted:
        folder(tmp_path / name, cat=2)
    for name, path in {"loose": "dog", "deeper": "dog/pug", "captions": "dog"}.items():
        folder(tmp_path / name, **{path: 2})
    noise(8, 8).save(tmp_path / "loose" / "cover.png")
    lines = ["file_name,text", *(f"{label}/{i}.png,a {label}" for label in ("cat", "dog") for i in range(2))]
    (tmp_path / "captions" / "metadata.csv").write_text("\n".join(lines) + "\n")
    with serving({}) as hub:
        told = call(hub, *({"path": str(tmp_path / name), "size": 8} for name in wanted))
    for (name, reason), line in zip(wanted.items(), told, strict=True):
        root = tmp_path / name
        assert line == (
            f"{root} has no column 'label'; `datasets` {reason}; data.kind=folder data.root={root} reads class folders "
            "as they are"
        )


def test_named_class_without_an_image_is_told(tmp_path: Path, call: Call, caplog: pytest.LogCaptureFixture) -> None:
    three = {"path": "o/d", "size": 10, "classes": ["cat", "dog", "bird"]}
    with serving(FILES) as hub:
        call(hub, three, three | {"streaming": True})
    told = [record.getMessage() for record in caplog.records if record.name == "udit.data.notes"]
    assert len(told) == 2
    assert all("classes without an image to train on" in note and "(1 class, e.g. 2)" in note for note in told)


def test_two_ways_of_keeping_test_images_are_refused() -> None:
    assert HubData(path="o/d", test_split="test").test_share is None
    with pytest.raises(ValueError, match=r"test_share is 0.2 and test_split 'test'"):
        HubData(path="o/d", test_split="test", test_share=0.2)
    with pytest.raises(ValueError, match="leave verify out"):
        HubData(path="o/d", streaming=True, verify="headers")


def test_commit_of_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """That error is none of Python's: the client's HTTP library has its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    wanted = r"^no data set: http://127.0.0.1:1 cannot be reached \(.*refused\); .*HF_ENDPOINT; check the name$"
    with pytest.raises(UserError, match=wanted):
        dataset_commit("owner/name", None, what="no data set", remedy="check the name")
