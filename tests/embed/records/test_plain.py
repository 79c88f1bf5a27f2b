"""Arrow's types as their plain twins: pictures, and values that no plain type holds."""

import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from embed_record_files import images, labels

from embed.records.formats import read_records
from embed.records.plain import plain, plain_type
from embed.spec import InputError

A = "sha256:559aead08264d5795d3909718cdd05abd49572e84fe55590eef31a88a08fdffd"  # of b"A", by sha256sum


def struct(values: list[Any], **fields: pa.DataType) -> pa.Array:
    return pa.array(values, pa.struct(list(fields.items())))


PICTURES = {
    "binary": pa.array([b"A", None]),
    "large_binary": pa.array([b"A", None], pa.large_binary()),
    "binary_view": pa.array([b"A", None], pa.binary_view()),
    "fixed_size_binary": pa.array([b"A", None], pa.binary(1)),
    "dictionary": pa.array([b"A", None]).dictionary_encode(),
    "struct": struct([{"bytes": b"A", "path": "x"}, None], bytes=pa.binary(), path=pa.string()),
    "struct-of-views": struct([{"bytes": b"A"}, None], path=pa.string_view(), bytes=pa.binary_view()),
    "struct-of-large": struct([{"bytes": b"A"}, {}], bytes=pa.large_binary(), path=pa.large_string()),
    "struct-without-path": struct([{"bytes": b"A"}, {"bytes": None}], bytes=pa.binary()),
    "struct-with-more": struct([{"bytes": b"A", "width": 3}, None], bytes=pa.binary(), width=pa.int32()),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_in_a_table(kind: str, tmp_path: Path) -> None:
    table = pa.table({"image_0_uid": ["a", "b"], "jpg_0": PICTURES[kind], "jpg_1": PICTURES[kind]})
    table = table.append_column("image_1_uid", pa.array(["c", "d"]))
    for name, value in {"caption": "x", "label_0": 1, "label_1": 0}.items():
        table = table.append_column(name, pa.array([value] * 2))
    pq.write_table(table, tmp_path / "t.parquet")
    for source in (table, tmp_path / "t.parquet"):
        assert images(read_records(source)) == [(k, None, b"A" if k in "ac" else None) for k in "abcd"]
    one = pa.table({"image": PICTURES[kind], "rating": [1, None]}).slice(0, 1)
    assert (images(read_records(one)), labels(read_records(one))) == ([(A, None, b"A")], [(A, None, 1)])


@pytest.mark.parametrize(
    "column",
    [
        struct([{"bytes": None, "path": "/x.png"}], bytes=pa.binary(), path=pa.string()),
        struct([{"bytes": None, "path": "/x.png"}], bytes=pa.null(), path=pa.string_view()),
        struct([{"path": "/x.png"}], path=pa.string()),
    ],
)
def test_pictures_by_their_path_alone(column: pa.Array) -> None:
    assert images(read_records(pa.table({"image": column, "rating": [1]}))) == [("/x.png", "/x.png", None)]


def test_a_uuid_is_its_text_and_no_picture() -> None:
    ids = [uuid.UUID(int=n) for n in range(2)]
    column = pa.array([id.bytes for id in ids], pa.binary(16)).cast(pa.uuid())
    records = read_records(pa.table({"image": column, "rating": [1, 2]}), images_root="s3://b")
    assert images(records) == [(str(id), f"s3://b/{id}", None) for id in ids]


@pytest.mark.parametrize("make", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view])
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
def test_lists(make: Any, text: pa.DataType) -> None:
    paths = pa.array([["x"], ["a", "b"], ["c"]], make(text)).slice(1)
    ranks = pa.array([["9"], ["2", "1"], ["1"]], make(text)).slice(1)
    table = pa.table({"prompt": ["p", "q"], "generations": paths, "ranking": ranks})
    assert labels(read_records(table)) == [("a", "p", 0, 2), ("b", "p", 0, 1), ("c", "q", 1, 1)]
    nulls = pa.array([["x"], [None, "b"], None, []], make(text)).slice(1)
    assert plain(nulls).to_pylist() == [[None, "b"], None, []]


def test_lists_of_a_fixed_size() -> None:
    paths = pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string_view(), 2))
    table = pa.table({"prompt": ["p", "q"], "file_path": paths, "human_preference": [[1, 0], [0, 1]]})
    table = table.set_column(2, "human_preference", table["human_preference"].cast(pa.list_(pa.float16(), 2)))
    assert [row[4] for row in labels(read_records(table))] == [1, 0]


def test_what_stands_beside_the_labels_is_plain_too() -> None:
    values = {
        "view": pa.array(["x"], pa.string_view()),
        "category": pa.array(["x"]).dictionary_encode(),
        "runs": pc.run_end_encode(pa.array(["x"])),
        "money": pa.array([Decimal("2.50")]),
        "whole": pa.array([Decimal(7)], pa.decimal128(38, 0)),
        "half": pa.array([1.5], pa.float16()),
        "truth": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1], pa.int8())),
    }
    table = read_records(pa.table({"image": ["a"], "rating": [1], **values})).labels()
    assert [table[name].to_pylist() for name in values] == [["x"], ["x"], ["x"], [2.5], [7], [1.5], [True]]
    # Whatever sorts, takes and groups them has a kernel for these.
    assert {str(table[name].type) for name in values} == {"string", "double", "int64", "float", "bool"}
    table.take([0])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rating": [["a"]]}, "column 'rating' holds list<item: string>; wanted a number such as 1234.5: cast it"),
        ({"prompt": [{"a": 1}]}, "column 'prompt' holds struct<a: int64>; wanted text: cast it"),
        ({"rating": ["1,234"]}, r"column 'rating' has '1,234' in row 0 \(counted from 0\); wanted a number"),
        ({"rating": [b"\xff"]}, r"column 'rating' has b'\\xff' in row 0"),
        ({"prompt": [b"\xff"]}, r"column 'prompt' has b'\\xff' in row 0 \(counted from 0\); wanted text"),
        (
            {"prompt": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8()))},
            "column 'prompt' holds map<string",
        ),
        ({"rating": pa.nulls(1, pa.null()), "prompt": [[1]]}, "column 'prompt' holds list<item: int64>; wanted text"),
        ({"n": [Decimal(2**64)]}, r"column 'n' holds decimal128\(20, 0\) that does not fit int64 .*; cast it"),
    ],
)
def test_what_has_no_plain_twin_is_refused_in_one_line(columns: dict[str, Any], message: str) -> None:
    records = read_records(pa.table({"image": ["a"], "rating": [1]} | columns))
    with pytest.raises(InputError, match=message) as caught:
        records.labels()
    assert "\n" not in str(caught.value)


def test_numbers_of_more_than_53_bits_are_rounded_and_not_refused() -> None:
    for value in (2**53 + 1, pa.scalar(2**63 + 1, pa.uint64()), Decimal(2**70)):
        column = pa.array([value.as_py()], value.type) if isinstance(value, pa.Scalar) else pa.array([value])
        (row,) = labels(read_records(pa.table({"image": ["a"], "count": column})))
        assert row[2] == float(column[0].as_py())


def test_the_types_of_no_columns_are_plain() -> None:
    for type in (pa.int8(), pa.uint64(), pa.float32(), pa.date32(), pa.timestamp("ns", "UTC"), pa.null(), pa.bool_()):
        assert plain_type(type) == type
