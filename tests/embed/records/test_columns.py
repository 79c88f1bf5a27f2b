"""Pictures as paths, addresses and bytes, in the tables that have them."""

from pathlib import Path
from typing import Any

import pytest
from embed_record_files import Rows, images, labels, prompts, write

from embed.records.formats import read_records
from embed.spec import InputError

A = "sha256:559aead08264d5795d3909718cdd05abd49572e84fe55590eef31a88a08fdffd"  # of b"A", by sha256sum
B = "sha256:df7e70e5021544f4834bbee64a9e3789febc4be81470df629cad6ddb03320a5c"  # of b"B"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pick_a_pic(**changes: Any) -> Rows:
    row = {"caption": "a cat", "label_0": 1.0, "label_1": 0.0, "has_label": True, "num_example_per_prompt": 4}
    return [row | {"jpg_0": b"A", "jpg_1": b"B", "image_0_uid": "a", "image_1_uid": "b"} | changes]


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def test_pick_a_pic_with_bytes_and_uids() -> None:
    rows = pick_a_pic(ranking_id=5, model_0="x") + pick_a_pic(
        label_0=0.0, label_1=0.0, has_label=False, num_example_per_prompt=1, ranking_id=6, model_0="y"
    )
    records = read_records(write("p.parquet", rows))
    assert images(records) == [("a", None, b"A"), ("a", None, b"A"), ("b", None, b"B"), ("b", None, b"B")]
    assert prompts(records) == ["a cat"]
    # Binary columns are never kept beside labels; the other ones are.
    assert labels(records) == [
        ("a", "b", "a cat", "a cat", 1, 0.25, 5, "x"),
        ("a", "b", "a cat", "a cat", 0.5, 1, 6, "y"),
    ]


def test_pick_a_pic_without_uids_names_bytes_by_their_hash() -> None:
    rows = [without(pick_a_pic()[0], "image_0_uid", "image_1_uid", "has_label", "num_example_per_prompt")]
    records = read_records(write("p.parquet", rows))
    assert images(records) == [(A, None, b"A"), (B, None, b"B")]
    assert labels(records) == [(A, B, "a cat", "a cat", 1, 1)]


def test_pick_a_pic_by_url() -> None:
    rows = pick_a_pic(image_0_url="https://a/0.png", image_1_url="https://a/1.png", label_0=0.3, label_1=0.7)
    with_uid = [without(rows[0], "jpg_0", "jpg_1")]
    records = read_records(write("u.parquet", with_uid))
    assert images(records) == [("a", "https://a/0.png", None), ("b", "https://a/1.png", None)]
    assert labels(records)[0][:6] == ("a", "b", "a cat", "a cat", pytest.approx(0.3), 0.25)
    records = read_records(write("v.parquet", [without(with_uid[0], "image_0_uid", "image_1_uid")]))
    assert images(records) == [
        ("https://a/0.png", "https://a/0.png", None),
        ("https://a/1.png", "https://a/1.png", None),
    ]
    # Bytes come before an address, row by row.
    records = read_records(write("w.parquet", [*rows, rows[0] | {"jpg_0": None}]))
    assert images(records)[:2] == [("a", None, b"A"), ("a", "https://a/0.png", None)]


def test_a_row_without_a_name_is_found_in_later_batches() -> None:
    rows = pick_a_pic() * 200
    rows[150] = rows[150] | {"image_1_uid": ""}
    records = read_records(write("p.parquet", rows))
    with pytest.raises(InputError, match=r"^p\.parquet: a picture without a name: row 150 \(counted from 0\)$"):
        images(records)
    write("p.parquet", pick_a_pic() * 70_000 + pick_a_pic(caption=None))
    with pytest.raises(InputError, match=r"no prompt: row 70000 \("):
        prompts(records)


def test_bytes_in_the_image_column_are_named_by_their_hash() -> None:
    records = read_records(write("b.parquet", [{"image": b"A", "rating": 1.0}, {"image": b"B", "rating": 2.0}]))
    assert images(records) == [(A, None, b"A"), (B, None, b"B")]
    assert labels(records) == [(A, None, 1), (B, None, 2)]
    stored = [{"image": {"bytes": b"A", "path": "a.jpg"}}, {"image": {"bytes": None, "path": "/b.jpg"}}]
    records = read_records(write("s.parquet", stored))  # as the `datasets` library writes pictures
    assert images(records) == [(A, None, b"A"), ("/b.jpg", "/b.jpg", None)]


def test_bytes_beside_names(here: Path) -> None:
    rows = [{"image": "a", "bytes": b"A", "count": 1}, {"image": "b", "bytes": None, "count": 2}]
    records = read_records(write("n.parquet", rows))
    assert images(records) == [("a", None, b"A"), ("b", f"{here}/b", None)]
    assert [row[0] for row in labels(records)] == ["a", "b"]
