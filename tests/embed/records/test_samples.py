"""Folders of pictures."""

import os
from pathlib import Path

import pytest
from embed_record_files import images, prompts

from embed.records.formats import read_records
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
