"""Folders, webdataset tars, and JSON arrays that do not fit into one read."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from embed_record_files import images, labels, prompts

from embed.records.formats import read_records
from embed.records.json_records import json_records
from embed.spec import InputError


def test_a_folder_of_pictures_and_texts(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "sub/deep/d", "z.jpg", ".hidden.jpg", ".git/x.jpg", "t.csv", "b.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.txt").write_text(" a cat \n")
    (tmp_path / "sub" / "c.txt").write_bytes(b"caf\xe9")
    (tmp_path / "lonely.txt").write_text("no picture")
    (tmp_path / "link.jpg").symlink_to("b.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    records = read_records(tmp_path)
    assert (records.format, records.kind) == ("folder", None)
    names = ["a.PNG", "b.jpg", "link.jpg", "sub/c.webp", "sub/deep/d", "z.jpg"]
    assert images(records) == [(name, f"{tmp_path}/{name}", None) for name in names]
    assert prompts(records) == ["a cat", "caf\ufffd"]
    with pytest.raises(InputError, match="has no labels"):
        records.labels()


def test_a_file_name_that_is_not_utf8_can_still_be_read(tmp_path: Path) -> None:
    from embed.inputs.fetch import read_bytes

    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).write_bytes(b"x")
    ((key, uri, _),) = images(read_records(tmp_path))
    assert key == uri == f"file://{tmp_path}/caf%E9.jpg"
    assert read_bytes(uri) == b"x"


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"x")
    with pytest.raises(InputError, match="has no pictures"):
        read_records(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"x")
    records = read_records(tmp_path)
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "t.csv").unlink()
    tmp_path.rmdir()
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        images(records)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_webdataset_shards(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "s-00.tar",
        {"0001.jpg": b"A", "0001.txt": b" a cat\n", "0001.json": b'{"width": 5}', "0002.PNG": b"B"},
    )
    write_tar(
        tmp_path / "s-01.tar",
        {"d/3.webp": b"C", "d/3.json": b'{"caption": "a dog", "bytes": 9, "image": 8}', "4.txt": b"no picture"},
    )
    records = read_records(tmp_path / "s-{00..01}.tar")
    assert (records.format, records.kind) == ("webdataset", None)
    assert images(records) == [
        ("0001", None, b"A"),
        ("0002", None, b"B"),
        ("d/3", None, b"C"),
        ("4", f"{tmp_path}/4", None),
    ]
    assert prompts(records) == ["a cat", "a dog", "no picture"]


def test_webdataset_with_counts(tmp_path: Path) -> None:
    facts = [{"count": n, "prompt": "a cat", "tags": ["x"], "model": "m"} for n in (3, 5)]
    members = {}
    for number, fact in enumerate(facts):
        members |= {f"{number}.jpg": b"A", f"{number}.json": json.dumps(fact).encode()}
    records = read_records(write_tar(tmp_path / "s.tar", members))
    assert (records.format, records.kind) == ("popularity", "counts")
    assert labels(records) == [("0", "a cat", 3, None, None, "m"), ("1", "a cat", 5, None, None, "m")]
    assert images(records) == [("0", None, b"A"), ("1", None, b"A")]
    assert prompts(records) == ["a cat"]


def test_tars_that_cannot_be_read(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "s-0.tar", {"1.jpg": b"A" * 5000})
    with pytest.raises(InputError, match=r"s-1\.tar does not exist, nor do 1 more"):
        read_records(tmp_path / "s-{0..2}.tar")
    (tmp_path / "s-1.tar").write_bytes(one.read_bytes())
    with pytest.raises(InputError, match=r"s-0\.tar and .*s-1\.tar both begin with the key '1'"):
        images(read_records(tmp_path / "s-{0..1}.tar"))
    (tmp_path / "s-3.tar").write_bytes(b"no tar at all")
    with pytest.raises(InputError, match=r"s-3\.tar cannot be read: "):
        read_records(tmp_path / "s-3.tar")
    for text in (b"[1]", b"{"):
        broken = write_tar(tmp_path / "s-4.tar", {"1.jpg": b"A", "1.json": text})
        with pytest.raises(InputError, match=r"s-4\.tar: 1\.json is no JSON object"):
            read_records(broken)
    with pytest.raises(InputError, match=r"s-4\.tar cannot be read: it holds a file of '1' twice"):
        read_records(write_tar(tmp_path / "s-4.tar", {"1.jpg": b"A", "1.JPG": b"B"}))
    with pytest.raises(InputError, match="has no rows"):
        read_records(write_tar(tmp_path / "s-5.tar", {}))


class Pieces(io.StringIO):
    """A file that gives at most `size` characters a read."""

    def __init__(self, text: str, size: int) -> None:
        super().__init__(text)
        self._size = size

    def read(self, size: int | None = -1) -> str:
        return super().read(self._size)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_read_over_the_ends_of_pieces(size: int, indent: int | None) -> None:
    records: list[Any] = [{"a": 'br]ace{"\\', "b": [1, {"c": None}]}, {"d": "\u4e2d\U0001f600 \u2028"}, {}] * 3
    for ensure_ascii in (True, False):
        text = json.dumps(records, indent=indent, ensure_ascii=ensure_ascii)
        assert list(json_records(Pieces(text + "\n", size))) == records
    with pytest.raises(json.JSONDecodeError):
        list(json_records(Pieces(text[:-5], size)))


def test_columns_of_a_json_array_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed.records.samples.BATCH_RECORDS", 2)
    rows = [{"image": "1.jpg", "count": 1, "n": 1, "late": None}, {"image": "2.jpg", "count": 2, "n": 2}]
    rows += [{"image": "3.jpg", "count": 3, "n": 2.5, "late": "x", "list": [1]}]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(rows))
    assert labels(read_records(path)) == [
        ("1.jpg", None, 1, None, None, 1, None),
        ("2.jpg", None, 2, None, None, 2, None),
        ("3.jpg", None, 3, None, None, 2.5, "x"),
    ]
    path.write_text(json.dumps([rows[0], rows[1] | {"n": "two"}]))
    with pytest.raises(InputError, match=r"column 'n' holds different kinds of values"):
        read_records(path).labels()
