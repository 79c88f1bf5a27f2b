import hashlib
from pathlib import Path
from typing import NotRequired, TypedDict

import pytest

from embed.files import atomic_write, content_id, read_lines, read_manifest, sha256_file, temporary_name, write_json
from embed.spec import InputError


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.bin"
    with atomic_write(path) as file:
        file.write(b"new")
        assert not path.exists() and temporary_name(path).exists()
    assert path.read_bytes() == b"new" and not temporary_name(path).exists()
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"new" and not temporary_name(path).exists()


def test_an_error_without_a_name_gets_the_files(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device.*file\.bin") as caught,
        atomic_write(tmp_path / "file.bin"),
    ):
        raise OSError("45056 requested and 0 written")  # what numpy says
    assert caught.value.filename == str(tmp_path / "file.bin")


def test_equal_data_gives_equal_bytes_of_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": [2, 3]})
    write_json(tmp_path / "b", {"a": [2, 3], "b": 1})
    assert (
        (tmp_path / "a").read_bytes()
        == (tmp_path / "b").read_bytes()
        == b'{\n  "a": [\n    2,\n    3\n  ],\n  "b": 1\n}\n'
    )
    with pytest.raises(ValueError):
        write_json(tmp_path / "c", {"a": float("nan")})


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "is not a thing: it has no manifest.json"),
        ("{", "damaged"),
        ("[1]", "no field 'format'"),
        ('{"format": 9}', r"format 9; this version of plaudit reads \[1, 2\]"),
    ],
)
def test_manifests_that_cannot_be_read(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / "manifest.json", "thing", (1, 2), dict[str, object])


class Thing(TypedDict):
    format: int
    files: dict[str, str]
    rows: int
    note: NotRequired[str]


def test_lines_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff a \r\n\r\ncafé\n".encode())
    assert read_lines(path, "prompt") == ["a", "café"]
    for content, said in ((b" \n", "holds no prompt; wanted one a line"), (b"a\xe9", r"not a UTF-8 text \(byte 1\)")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_lines(path, "prompt")


def test_a_manifest_has_the_keys_of_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, {"format": 1, "note": ""})
    assert read_manifest(path, "thing", (1,), dict[str, object]) == {"format": 1, "note": ""}
    with pytest.raises(InputError, match=r"damaged \(it lacks files, rows\); make the thing again"):
        read_manifest(path, "thing", (1,), Thing)
    whole: Thing = {"format": 1, "files": {}, "rows": 2}
    write_json(path, {**whole, "more": 1})
    assert read_manifest(path, "thing", (1,), Thing)["rows"] == 2


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4's example
    assert sha256_file(tmp_path / "f") == expected == hashlib.sha256(b"abc").hexdigest()
    assert content_id(b"abc") == expected[:32]
