"""Webdataset tars, whole and cut."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from embed_record_files import images, labels, prompts

from embed.records.formats import read_records
from embed.records.sources import open_table
from embed.spec import InputError


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
        ("4", None, None),  # not the file 4 that may lie beside the tars
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
        with pytest.raises(InputError, match=r"s-4\.tar: 1\.json is not a JSON object"):
            read_records(broken)
    with pytest.raises(InputError, match=r"s-4\.tar cannot be read: it holds a file of '1' twice"):
        read_records(write_tar(tmp_path / "s-4.tar", {"1.jpg": b"A", "1.JPG": b"B"}))
    with pytest.raises(InputError, match="has no rows"):
        read_records(write_tar(tmp_path / "s-5.tar", {}))


def test_names_with_dots_keep_all_their_samples(tmp_path: Path) -> None:
    members = {f"photo.v{n}.{kind}": f"{kind} {n}".encode() for n in range(5) for kind in ("jpg", "txt")}
    for ordered in (members, dict(sorted(members.items(), key=lambda member: member[0][-3:]))):  # all of a kind first
        records = read_records(write_tar(tmp_path / "t.tar", ordered))
        assert images(records) == [(f"photo.v{n}", None, f"jpg {n}".encode()) for n in range(5)]
        assert prompts(records) == [f"txt {n}" for n in range(5)]


def test_a_plain_extension_goes_before_one_with_dots(tmp_path: Path) -> None:
    members = {"0.depth.png": b"D", "0.jpg": b"A", "0.txt": b"x", "1.MASK.png": b"M", "1.JFIF": b"B", "2.img": b"C"}
    members |= {"3.txt": b"alone", "3.depth.png": b"D"}
    path = write_tar(tmp_path / "t.tar", members)
    assert [row[2] for row in images(read_records(path))] == [b"A", b"B", b"C", b"D"]
    chosen = read_records(path, columns={"bytes": "depth.png"})
    assert [row[2] for row in images(chosen)] == [b"D", None, None, b"D"]


@pytest.mark.parametrize("names", [("left.png", "right.png"), ("jpg", "png")])
def test_which_of_two_pictures_is_asked(tmp_path: Path, names: tuple[str, str]) -> None:
    members = {f"{n}.{name}": name.encode() for n in range(2) for name in (*names, "txt")}
    path = write_tar(tmp_path / "t.tar", members)
    with pytest.raises(
        InputError, match=rf"'0' has the pictures {', '.join(names)}; choose one, such as --columns bytes="
    ):
        images(read_records(path))
    for name in names:
        records = read_records(path, columns={"bytes": name})
        assert images(records) == [("0", None, name.encode()), ("1", None, name.encode())]


def test_a_key_that_only_late_samples_have_is_a_label(tmp_path: Path) -> None:
    members = {}
    for n in range(150):
        fact = {"count": 5} | ({"exposures": 10, "group": "g"} if n >= 120 else {})
        members |= {f"{n}.jpg": b"A", f"{n}.json": json.dumps(fact).encode()}
    records = read_records(write_tar(tmp_path / "t.tar", members))
    with pytest.raises(InputError, match=r"exposures are missing, but other rows have them: row 0, .* and 115 more"):
        records.labels()


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


# Two pictures of one block each, behind their headers: 0 to 1024, 1024 to 2048; then zeros.
@pytest.mark.parametrize(
    ("size", "keys", "problem"),
    [
        (2048, ["1", "2"], "ends early (at byte 2048, without its end blocks)"),
        (1224, ["1"], "ends early (at byte 1024, inside a header)"),
        (1736, ["1", "2"], "ends early (unexpected end of data)"),
    ],
)
def test_a_tar_that_ends_early_is_a_picture_that_cannot_be_read(
    size: int, keys: list[str], problem: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = {"1.jpg": b"A" * 512, "2.jpg": b"B" * 512}
    path = cut(write_tar(tmp_path / "s-0.tar", whole), size)
    write_tar(tmp_path / "s-1.tar", {"3.jpg": b"C"})
    records = read_records(tmp_path / "s-{0..1}.tar")
    found = images(records)
    line = f"{path} {problem}"
    assert [row[0] for row in found] == [*keys, line, "3"]
    assert found[len(keys)][1:] == (None, None)
    assert found[len(keys) - 1][2] == (b"B" * (size - 1536) if size == 1736 else whole[f"{keys[-1]}.jpg"])
    assert prompts(records) == []
    assert [record.getMessage() for record in caplog.records] == [line], "said once, not at every pass"


def test_pieces_of_a_tar_keep_pictures_and_facts_together(tmp_path: Path) -> None:
    for shard in range(2):
        members = {}
        for n in range(3):
            fact = {"n": n if shard == 0 else n + 0.5} | ({"late": "x"} if shard and n else {})
            members |= {f"{shard}{n}.jpg": f"{shard}{n}".encode(), f"{shard}{n}.json": json.dumps(fact).encode()}
        write_tar(tmp_path / f"{shard}.tar", members)
    cut(tmp_path / "0.tar", 6 * 1024)  # without its end blocks: a row more
    table = open_table(str(tmp_path / "{0..1}.tar"), {})
    whole = ["00", "01", "02", "", "10", "11", "12"]
    for start in (0, 2, 4):
        pieces = list(table.pieces({"image": pa.string(), "bytes": pa.binary()}, 2, start))
        wanted, others = (pa.concat_tables([piece[part] for piece in pieces]) for part in (0, 1))
        names = [name if len(name) == 2 else "" for name in wanted["image"].to_pylist()]
        assert names == whole[start:] and others["image"] == wanted["image"]
        assert wanted["bytes"].to_pylist() == [name.encode() or None for name in names]
        facts = [int(name[1]) + 0.5 * int(name[0]) if name else None for name in names]
        assert others["n"].to_pylist() == facts
        assert others["late"].to_pylist()[-3:] == [None, "x", "x"]
        assert all(piece[1].schema == others.schema for piece in pieces)


def test_what_else_a_tar_may_lose_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = write_tar(tmp_path / "1.tar", {"1.jpg": b"A", ".hidden.jpg": b"x", "README": b"x"}).read_bytes()
    two = write_tar(tmp_path / "2.tar", {"2.jpg": b"B"}).read_bytes()
    (tmp_path / "joined.tar").write_bytes(one + two)
    found = images(read_records(tmp_path / "joined.tar"))
    assert found[0][0] == "1" and "but another tar follows" in found[1][0]
    assert "1 files without an extension are left out, the first README" in caplog.text
    (tmp_path / "broken.tar").write_bytes(two[:1024] + b"x" * 512 + two[1024:])
    assert "is not a header" in images(read_records(tmp_path / "broken.tar"))[1][0]
    pictures = random.Random(0).randbytes(5000)
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress(write_tar(tmp_path / "3.tar", {"3.jpg": pictures}).read_bytes()))
    (row, last) = images(read_records(cut(tmp_path / "t.tar.gz", 3000)))
    assert row[0] == "3" and "ends early" in last[0]
    with pytest.raises(InputError, match=r"t\.tar\.gz cannot be read"):
        read_records(cut(tmp_path / "t.tar.gz", 30))


def test_tars_are_grouped_as_webdataset_groups_them(tmp_path: Path) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    members = {f"d.x/{n:03}.{kind}": f"{n}{kind}".encode() for n in range(20) for kind in ("JPG", "txt", "seg.map")}
    path = write_tar(tmp_path / "t.tar", members)
    with open(path, "rb") as file:
        samples = group_by_keys(tar_file_expander([{"url": str(path), "stream": file}]))
        theirs = [(sample["__key__"], None, sample["jpg"]) for sample in samples]
    assert images(read_records(path)) == theirs
