"""What is wrong with an archive, a list or a folder is one line that names it; odd ones are read as they should be."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import ErrorOf
from formats import COUNT, encoded, pixels, tar_shards
from udit.data import verify, webdataset
from udit.data.captions import captions_of
from udit.data.config import DataConfig, DatasetJsonData, FolderData, LmdbData, NpzData, WebDatasetData
from udit.data.describe import describe
from udit.data.mapped import Mapped
from udit.data.recognise import recognised
from udit.data.sources import parts_of
from udit.errors import UserError

PNG = encoded(0)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tar(path: Path, *members: tuple[str, bytes], how: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=how) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def refused(data: DataConfig, one_line: Callable[[BaseException], str]) -> str:
    with pytest.raises(UserError) as caught:
        describe(data)
    return one_line(caught.value)


def cut(path: Path, keep: int) -> Path:
    path.write_bytes(path.read_bytes()[:keep])
    return path


def zeroed(path: Path, start: int, count: int) -> Path:
    data = bytearray(path.read_bytes())
    data[start : start + count] = bytes(count)
    path.write_bytes(data)
    return path


SAMPLES = [(f"{i}.{end}", data) for i in range(4) for end, data in (("png", PNG), ("cls", b"1"))]
TARS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a zero header": (lambda path: zeroed(tar(path, *SAMPLES), 2048, 512), "has a hole or was cut off: zeros in place"),
    "a damaged header": (lambda path: zeroed(tar(path, *SAMPLES), 2048, 100), "the header at byte 2,048 is damaged"),
    "cut within a member": (lambda path: cut(tar(path, *SAMPLES), 2048 + 600), "it ends within '1.png'"),
    "cut after a member": (lambda path: cut(tar(path, *SAMPLES), 2048), "ends at byte 2,048 without the zeros"),
    "cut within a header": (lambda path: cut(tar(path, *SAMPLES), 2048 + 100), "the header at byte 2,048 is damaged"),
    "nothing": (lambda path: cut(tar(path, *SAMPLES), 0), "is empty"),
    "text": (lambda path: (path.write_text("no tar" * 200), path)[1], "cannot be read as a tar file"),
    "packed": (lambda path: (path.write_bytes(gzip.compress(bytes(2048))), path)[1], "is compressed (gzip)"),
    "no members": (lambda path: tar(path), "holds no samples"),
    "captions without images": (lambda path: tar(path, ("7.txt", b"a cat")), "sample '7': no image, only txt"),
    "two images": (lambda path: tar(path, ("7.png", PNG), ("7.mask.png", PNG)), "several images, png, mask.png"),
    "twice": (lambda path: tar(path, ("7.png", PNG), ("7.png", PNG)), "holds '7.png' twice"),
    "a label missing": (lambda path: tar(path, *SAMPLES, ("9.png", PNG)), "sample '9': no label in cls, only png"),
    "an odd label": (lambda path: tar(path, ("7.png", PNG), ("7.cls", b" ")), "cls holds '', neither a number"),
    "labels below 0": (lambda path: tar(path, ("7.png", PNG), ("7.json", b'{"label": -1}')), "run from -1 to -1"),
    "no JSON": (lambda path: tar(path, ("7.png", PNG), ("7.json", b"{")), "json is not JSON"),
    "no text": (lambda path: tar(path, ("7.png", PNG), ("7.cls", b"caf\xe9")), "cls is not UTF-8 text"),
    "an id": (lambda path: tar(path, ("7.png", PNG), ("7.cls", b"12345678")), "labels run from 12345678"),
}


@pytest.mark.parametrize("name", TARS)
def test_shard_that_cannot_be_used_is_named(name: str, tmp_path: Path, one_line: Callable) -> None:
    make, wanted = TARS[name]
    path = make(tmp_path / "x.tar")
    said = refused(WebDatasetData(root=str(path)), one_line)
    assert wanted in said
    assert str(path) in said


CAPTIONS: dict[str, tuple[str, bytes | None, str]] = {
    "none": ("txt", None, "sample '1': no caption in txt, only png; say where it is with data.caption"),
    "an empty one": ("txt", b" \n", "sample '1': txt holds no text"),
    "odd bytes": ("txt", b"caf\xe9", "sample '1': txt is not UTF-8 text"),
    "a number": ("json.caption", b'{"caption": 3}', "sample '1': json.caption holds no text"),
    "no such key": ("json.caption", b'{"text": "a cat"}', "sample '1': json.caption holds no text"),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_sample_without_a_caption_is_named(name: str, tmp_path: Path, one_line: Callable) -> None:
    place, data, wanted = CAPTIONS[name]
    second = [] if data is None else [(f"1.{place.partition('.')[0]}", data)]
    first = ("0.txt", b"a dog") if place == "txt" else ("0.json", b'{"caption": "a dog"}')
    path = tar(tmp_path / "x.tar", ("0.png", PNG), first, ("1.png", PNG), *second)
    assert wanted in refused(WebDatasetData(root=str(path), caption=place), one_line)


def test_shards_hold_captions_as_text_or_json(tmp_path: Path) -> None:
    samples = [(f"{i}.{end}", data) for i in range(2) for end, data in (("png", PNG), ("cls", b"1"))]
    samples.insert(2, ("0.txt", "\ufeffa  dog\n\nan animal\n".encode()))
    samples.insert(2, ("0.json", b'{"text": "one", "all": ["a", "b "]}'))
    samples += [("1.txt", b"a cat"), ("1.json", b'{"text": "two", "all": ["c"]}')]
    root = str(tar(tmp_path / "x.tar", *samples))
    texts = {}
    for place in ("txt", "json.text", "json.all"):
        data = WebDatasetData(root=root, caption=place)
        assert describe(data).captioned
        for _ in range(2):  # listed, and from the cache
            source = data.build()
            assert source.labels.tolist() == [1, 1]
            texts[place] = list(captions_of(source) or ())
            webdataset._records.cache_clear()
    assert texts == {
        "txt": [["a dog", "an animal"], ["a cat"]],
        "json.text": [["one"], ["two"]],
        "json.all": [["a", "b"], ["c"]],
    }
    plain = WebDatasetData(root=root)
    assert captions_of(plain.build()) is None
    prints = {WebDatasetData(root=root, caption=place).build().fingerprint for place in texts}
    assert len(prints | {plain.build().fingerprint}) == 4


def test_labels_and_captions_that_are_not_read_are_noted(tmp_path: Path) -> None:
    members = [("0.png", PNG), ("0.cls", b"1"), ("0.json", b'{"label": 0, "caption": "a dog"}'), ("0.txt", b"a dog")]
    root = str(tar(tmp_path / "x.tar", *members))

    def notes(**keys: str) -> list[str]:
        found = [str(note) for note in webdataset.records(WebDatasetData(root=root, **keys)).notes]
        webdataset._records.cache_clear()
        return [note for note in found if note.startswith("samples")]

    labels = "samples have labels in several places: cls is read, json.label not; data.label says which"
    texts = "samples have captions in txt, json.caption, which are not read; data.caption=txt reads them"
    assert notes() == notes() == [labels, texts]
    assert notes(label="cls") == [texts]
    assert notes(caption="txt") == [labels]
    tar(tmp_path / "x.tar", ("0.png", PNG), ("0.cls", b"1"), ("0.json", b"[1]"), ("0.txt", b"a dog"))
    os.utime(tmp_path / "x.tar", (0, 0))
    assert notes() == []  # nothing reads that JSON, which may hold anything


def test_members_are_read_at_their_offsets_in_any_tar(tmp_path: Path) -> None:
    long = "folder/" * 30 + "name"
    members = [("./a/1.png", encoded(1)), (f"{long}.PNG", encoded(2)), ("._b.png", b"a Mac"), ("README", b"text")]
    for how in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        source = WebDatasetData(root=str(tar(tmp_path / "x.tar", *members, how=how)), size=8, channels=1).build()
        assert list(source.names) == ["x.tar/a/1", f"x.tar/{long}"]
        assert [np.array_equal(source.image(i)[0], pixels(i + 1)) for i in range(2)] == [True, True]
        os.utime(tmp_path / "x.tar", (0, how))


def test_shards_are_listed_once_until_one_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar_shards(tmp_path)
    data = WebDatasetData(root=str(tmp_path), size=8, channels=1)
    first = data.build()
    webdataset._records.cache_clear()
    listed: list[Path] = []
    samples = webdataset.samples
    monkeypatch.setattr(webdataset, "samples", lambda path: (listed.append(path), samples(path))[1])
    again = data.build()
    assert listed == []
    assert again.fingerprint == first.fingerprint
    assert list(again.names) == list(first.names)
    (tmp_path / "train-0001.tar").touch()
    assert data.build().fingerprint == first.fingerprint
    assert len(listed) == 3
    tar(tmp_path / "train-0001.tar", ("1.png", PNG), ("1.cls", b"0"))
    assert data.build().fingerprint != first.fingerprint


def test_shards_of_test_images_are_held_out(tmp_path: Path) -> None:
    tar_shards(tmp_path)
    (tmp_path / "test").mkdir()
    tar(tmp_path / "test" / "0.tar", ("1.png", PNG), ("1.cls", b"2"))
    data = WebDatasetData(root=f"{tmp_path}/*.tar", test_root=f"{tmp_path}/test", size=8)
    assert data.test_share is None
    assert parts_of(data.build(), data).test.tolist() == [COUNT]


@pytest.mark.parametrize(
    ("root", "wanted"),
    [
        ("{0..3}.tar", "shard '{tmp}/0.tar' is not there"),
        ("*.tar", "matches no file"),
        ("", "holds no .tar files"),
        ("x.tar", "shard '{tmp}/x.tar' is not there"),
    ],
)
def test_shards_that_are_not_there_are_named(root: str, wanted: str, tmp_path: Path, one_line: Callable) -> None:
    said = refused(WebDatasetData(root=f"{tmp_path}/{root}"), one_line)
    assert wanted.format(tmp=tmp_path) in said


def zipped(path: Path, labels: object, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, PNG)
        archive.writestr("dataset.json", labels if isinstance(labels, str) else json.dumps(labels))
    return path


ZIPS: dict[str, tuple[object, str]] = {
    "no JSON": ("{", "is not JSON"),
    "another JSON": ([1], "is something else; it holds"),
    "no pairs": ({"labels": [["a.png"]]}, "lists ['a.png']; it holds"),
    "a vector": ({"labels": [["a.png", [0.5, 1]]]}, "has 2 numbers as the label of 'a.png'"),
    "a fraction": ({"labels": [["a.png", 0.5]]}, "has 0.5 as the label of 'a.png'"),
    "an image without": ({"labels": [["a.png", 1]]}, "has no label of 'b.png'"),
    "two labels": ({"labels": [["a.png", 1], ["b.png", 0], ["a.png", 0]]}, "labels 'a.png' 1 and 0; keep one of them"),
    "a label without": ({"labels": [["a.png", 1], ["b.png", 0], ["c.png", 1]]}, "names 'c.png', not among its images"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_dataset_json_that_does_not_fit_is_named(name: str, tmp_path: Path, one_line: Callable) -> None:
    labels, wanted = ZIPS[name]
    path = zipped(tmp_path / "x.zip", labels, "a.png", "b.png")
    said = refused(DatasetJsonData(root=path), one_line)
    assert wanted in said
    assert str(path) in said


def test_zip_with_spoiled_bytes_is_named_when_it_is_verified(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{method}.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("a.png", PNG)
        source = DatasetJsonData(root=path, size=8, channels=1).build()
        assert np.array_equal(source.image(0)[0], pixels(0))
        zeroed(path, 80, 10)
        with pytest.raises(UserError, match=r"\.zip holds a damaged 'a.png'"):
            DatasetJsonData(root=path, size=8).build().verify()


LISTS: dict[str, tuple[str, str, str]] = {
    "no columns": ("x.csv", "0.png,1\n1.png,0\n", "has columns '0.png', '1'; say which with data.file_column=NAME"),
    "no label": ("x.csv", "file,label\n0.png,1\n1.png,\n", "line 3: '1.png' has no label in 'label'"),
    "both kinds": (
        "x.jsonl",
        '{"file": "0.png", "label": 1}\n{"file": "1.png", "label": "a"}\n',
        "some labels are numbers",
    ),
    "ragged": ("x.csv", "file,label\n0.png,1,2\n", "line 2: more columns than names"),
    "empty": ("x.csv", "", "lists no images"),
    "a number": ("x.jsonl", "7\n", "line 1: no JSON object"),
    "no JSON": ("x.jsonl", '{"file": "0.png", "label": 1}\n{\n', "line 2: no JSON (Expecting property name"),
    "a real number": (
        "x.csv",
        "file,label\n0.png,1.0\n1.png,0.0\n",
        "line 2: 'label' is 1.0; a label is a whole number",
    ),
    "semicolons": ("x.csv", "file;label\n0.png;1\n", "begins with 'file;label'; put commas between columns"),
    "a fraction": ("x.jsonl", '{"file": "0.png", "label": 0.5}\n', "line 1: 'label' is 0.5; a label is a whole number"),
    "another kind": ("x.xlsx", "", "lists of labels are .csv, .tsv or .jsonl"),
    "above": ("x.csv", "file,label\n../0.png,1\n", "names images that are not in"),
}


@pytest.mark.parametrize("name", LISTS)
def test_list_of_labels_that_does_not_fit_is_named(name: str, tmp_path: Path, one_line: Callable) -> None:
    file, text, wanted = LISTS[name]
    (tmp_path / "0.png").write_bytes(PNG)
    (tmp_path / "1.png").write_bytes(PNG)
    (tmp_path / file).write_text(text)
    said = refused(FolderData(root=tmp_path, labels=file), one_line)
    assert wanted in said
    assert str(tmp_path / file) in said


def test_ids_without_extension_and_named_classes_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(PNG)
    (tmp_path / "l.tsv").write_text("id\tbreed\tother\n1\tdog\t7\n0\tcat\t7\n")
    data = FolderData(root=tmp_path, labels="l.tsv", label_column="breed", classes=("dog", "cat", "cow"))
    source = data.build()
    assert list(source.names) == ["0.png", "1.png"]
    assert source.labels.tolist() == [1, 0]
    assert describe(data).id2label == ("dog", "cat", "cow")
    assert "images without a line in" in caplog.text
    before = source.fingerprint
    (tmp_path / "l.tsv").write_text("id\tbreed\tother\n1\tcat\t7\n0\tcat\t7\n")
    assert data.build().fingerprint != before


def test_folders_may_be_no_classes(tmp_path: Path) -> None:
    for place in ("a/x", "a/y", "b"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "0.png").write_bytes(PNG)
    paths, none = (FolderData(root=tmp_path, label_by=by) for by in ("path", "none"))
    assert describe(paths).id2label == ("a/x", "a/y", "b")
    assert paths.build().labels.tolist() == [0, 1, 2]
    assert not describe(none).labelled
    assert len(none.build()) == 3


def test_large_npz_is_mapped_and_equal_to_what_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
    for part in range(2):
        np.savez(tmp_path / f"{part}.npz", images[3 * part : 3 * part + 3])
    small = NpzData(path=tmp_path).build()
    monkeypatch.setattr(verify, "MAX_MEMORY", 100)
    large = NpzData(path=tmp_path).build()
    assert isinstance(large, Mapped)
    assert list(large.names) == list(small.names)
    assert all(np.array_equal(large.image(i), small.image(i)) for i in range(6))
    assert not describe(NpzData(path=tmp_path)).labelled
    whole = (tmp_path / "1.npz").read_bytes()
    zeroed(tmp_path / "1.npz", 300, 20)
    with pytest.raises(UserError, match=r"1.npz holds a damaged arr_0"):
        large.verify()
    (tmp_path / "1.npz").write_bytes(whole)
    large.verify()
    np.savez(tmp_path / "2.npz", images, np.arange(6))
    with pytest.raises(UserError, match="some files have labels and others none"):
        NpzData(path=tmp_path).build()


def test_format_is_seen_from_the_path_and_unknown_ones_are_refused(tmp_path: Path, error_of: ErrorOf) -> None:
    assert recognised(zipped(tmp_path / "x.zip", {}, "a.png"), {"size": 9}) == DatasetJsonData(
        root=tmp_path / "x.zip", size=9
    )
    np.savez(tmp_path / "fields.npz", fields=np.zeros((2, 1, 4, 4), np.float32))
    assert recognised(tmp_path / "fields.npz", {}, {"size": 9}).kind == "fields"
    _touched(tmp_path / "clips" / "1.mp4")
    assert recognised(tmp_path / "clips", {"frames": 4}, {"size": 9, "bits": 8}).size == 9
    for name in ("x.tar.gz", "x.tgz", "packed/1.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(bytes(2048)))
        data = recognised((tmp_path / name).parent if "/" in name else tmp_path / name, {})
        with pytest.raises(UserError, match=r"gz is compressed \(gzip\).*unpack it to a plain .tar"):
            describe(data)
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    said = error_of("data", "check", str(tmp_path / "x.rar"))
    assert "x.rar' is of no known format; data sets are a folder of images" in said
    assert "give the folder that holds it" in error_of("data", "check", str(_touched(tmp_path / "data.mdb")))
    assert "training is given and a check reads data alone" in error_of("data", "check", ".", "training.steps=2")
    assert "unknown key" in error_of("data", "check", str(tmp_path), "data.sise=8")


def test_empty_arrays_are_no_images(tmp_path: Path, one_line: Callable) -> None:
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((0, 8, 8, 3), np.uint8), arr_1=np.zeros(0, np.int64))
    assert "holds arr_0 of shape [0, 8, 8, 3], which is empty" in refused(NpzData(path=tmp_path / "x.npz"), one_line)


@pytest.mark.slow
def test_lmdb_of_images_and_other_things_is_another_writer_s(tmp_path: Path) -> None:
    import lmdb

    with lmdb.open(str(tmp_path / "x"), map_size=2**20) as database, database.begin(write=True) as writing:
        writing.put(b"image-000000001", PNG)
        writing.put(b"num-samples", b"1")
    with pytest.raises(UserError, match=r"x is an LMDB of another writer: the value of b'num-samples' begins with 31"):
        LmdbData(root=tmp_path / "x").build()


def _touched(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path
