"""JSON arrays that do not fit into one read, and keys that come late."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from embed_record_files import labels, prompts

from embed.records.formats import read_records
from embed.records.json_records import json_records
from embed.spec import InputError


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


def late(path: Path, rows: list[dict[str, Any]]) -> Path:
    as_lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows))
    return path


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_a_key_may_come_late(name: str, tmp_path: Path) -> None:
    """After 100 records, and after 2 MiB of JSON Lines."""
    pad = "x" * 25_000
    rows: list[dict[str, Any]] = [{"image": f"{n}.png", "rating": 1, "pad": pad} for n in range(101)]
    records = read_records(late(tmp_path / name, [*rows, rows[0] | {"prompt": "a late prompt"}]))
    assert prompts(records) == ["a late prompt"]
    counts: list[dict[str, Any]] = [{"image": f"{n}.png", "count": 5, "pad": pad} for n in range(101)]
    counts.append(counts[0] | {"exposures": 10, "group": "g"})
    with pytest.raises(InputError, match=r"exposures are missing, but other rows have them: row 0, .*and 96 more"):
        read_records(late(tmp_path / name, counts)).labels()
    pair = {"caption": "a", "image_0_url": "0.png", "image_1_url": "1.png", "label_0": 1, "label_1": 0, "pad": pad}
    table = read_records(late(tmp_path / name, [pair] * 101 + [pair | {"has_label": False}])).labels()
    assert table["target"].to_pylist() == [1] * 101 + [0.5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "two"], r"column 'n' holds different kinds of values: a number, and text in row 1 \("),
        ([1, True], r"column 'n' holds different kinds of values: a number, and true or false in row 1 \("),
        ([1, 2**64], r"column 'n' has 18446744073709551616 in row 1 \(counted from 0\), which 64 bits cannot hold"),
        ([-(2**70), 1], r"column 'n' has -1180591620717411303424 in row 0 \("),
    ],
)
def test_values_that_no_column_holds_are_named(values: list[Any], message: str, tmp_path: Path) -> None:
    rows = [{"image": "a", "rating": 1, "n": value} for value in values]
    with pytest.raises(InputError, match=message):
        read_records(late(tmp_path / "t.jsonl", rows)).labels()


def test_nan_is_a_number_and_no_text(tmp_path: Path) -> None:
    rows = [{"image": "a", "rating": 1.5, "prompt": "x"}, {"image": "b", "rating": 2, "prompt": float("nan")}]
    path = late(tmp_path / "t.json", rows)
    assert "NaN" in path.read_text()
    assert labels(read_records(path)) == [("a", "x", 1.5), ("b", None, 2)]
    with pytest.raises(InputError, match=r"rating is not finite: row 1 \("):
        read_records(late(path, [rows[0], rows[1] | {"rating": float("nan")}])).labels()


def test_times_are_times_as_in_csv(tmp_path: Path) -> None:
    rows = [{"image": "a", "rating": 1, "at": "2026-01-02 03:04:05", "name": "2026"}]
    (row,) = read_records(late(tmp_path / "t.json", rows)).labels().to_pylist()
    assert (str(row["at"]), row["name"]) == ("2026-01-02 03:04:05", "2026")


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"image": "a"}\n{"image": "b",}\n{"image": "c"}\n')
    with pytest.raises(InputError, match=r"jsonl cannot be read: record 1 \(counted from 0\) is not JSON: .* line 1"):
        read_records(tmp_path / "t.jsonl")
