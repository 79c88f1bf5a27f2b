"""Rows may name the picture that theirs were made from: it is embedded like any, and stands beside the labels."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embed.records.formats import Records, read_records


def pictures(records: Records) -> list[str]:
    return sorted({key for batch in records.images() for key in batch["key"].to_pylist()})


def test_every_format_of_paths_has_sources(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(
        "prompt,pos_path,neg_path,source_path,source\na,1.png,2.png,0.png,web\nb,3.png,4.png,,x\n"
    )
    (tmp_path / "ratings.csv").write_text("image,rating,source_path\n1.png,3,0.png\n2.png,,9.png\n3.png,1,\n")
    (tmp_path / "counts.csv").write_text("image,count,source_path\n1.png,3,0.png\n2.png,5,\n")
    group = {"id": "7", "prompt": "a", "generations": ["1.png", "2.png"], "ranking": [2, 1], "source_path": "0.png"}
    (tmp_path / "groups.json").write_text(json.dumps([group, {**group, "id": "8", "source_path": None}]))
    share = {"prompt": "a", "file_path": ["1.png", "2.png"], "human_preference": [0, 1], "source_path": "0.png"}
    (tmp_path / "hpd.json").write_text(json.dumps([share]))
    expected = {
        "pairs.csv": (["0.png", None], ["0.png", "1.png", "2.png", "3.png", "4.png"]),
        "ratings.csv": (["0.png", None], ["0.png", "1.png", "2.png", "3.png", "9.png"]),
        "counts.csv": (["0.png", None], ["0.png", "1.png", "2.png"]),
        "groups.json": (["0.png", "0.png", None, None], ["0.png", "1.png", "2.png"]),
        "hpd.json": (["0.png"], ["0.png", "1.png", "2.png"]),
    }
    for name, (sources, names) in expected.items():
        records = read_records(tmp_path / name)
        assert records.has_sources
        labels = records.labels()
        assert labels["source"].to_pylist() == sources, name
        assert "source_path" not in labels.schema.names
        assert pictures(records) == names, name
        assert records.counts()["images"] == sum(len(batch) for batch in records.images())
    assert read_records(tmp_path / "pairs.csv").labels()["own_source"].to_pylist() == ["web", "x"]


@pytest.mark.parametrize("named", [True, False])
def test_pick_a_pics_sources_are_bytes(named: bool, tmp_path: Path) -> None:
    rows = {"caption": ["a", "b"], "jpg_0": [b"A", b"C"], "jpg_1": [b"B", b"D"], "label_0": [1.0, 0.0]}
    rows |= {"label_1": [0.0, 1.0], "jpg_source": [b"S", None]}
    uids = {"image_source_uid": ["s", None], "image_0_uid": ["a", "c"], "image_1_uid": ["b", "d"]}
    pq.write_table(pa.table(rows | (uids if named else {})), tmp_path / "pick.parquet")
    records = read_records(tmp_path / "pick.parquet")
    hashed = "sha256:" + hashlib.sha256(b"S").hexdigest()
    assert records.labels()["source"].to_pylist() == ["s" if named else hashed, None]
    found = {
        key: data
        for batch in records.images()
        for key, data in zip(*map(pa.Array.to_pylist, (batch["key"], batch["bytes"])), strict=True)
    }
    assert len(found) == 5 and found["s" if named else hashed] == b"S"


def test_tables_without_the_column_are_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("prompt,pos_path,neg_path,source\na,1.png,2.png,web\n")
    records = read_records(tmp_path / "pairs.csv")
    assert not records.has_sources and records.labels()["source"].to_pylist() == ["web"]
    assert pictures(records) == ["1.png", "2.png"] and records.counts()["images"] == 2
