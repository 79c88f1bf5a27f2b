"""What a name may stand for: shards, folders of them, datasets, tables in memory; and what is refused."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_record_files import images, labels

from embed.records.formats import read_records
from embed.records.sources import open_table
from embed.spec import InputError


def parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def names(records: Any) -> list[str]:
    return [row[0] for row in images(records)]


def test_shards_are_one_table_in_their_order(tmp_path: Path) -> None:
    for number in range(3):
        rows = {"image": [f"{number}{row}.png" for row in range(4)], "rating": [number] * 4}
        parquet(tmp_path / f"train-{number:05}-of-00003.parquet", **rows)
    whole = [f"{number}{row}.png" for number in range(3) for row in range(4)]
    (tmp_path / "train-folder").mkdir()
    for pattern in ("train-{00000..00002}-of-00003.parquet", "train-*", "**/train-?????-of-*.parquet", ""):
        records = read_records(tmp_path / pattern if pattern else tmp_path)
        assert (names(records), records.table.rows) == (whole, 12)
        assert images(records)[0][1] == f"{tmp_path}/00.png", "where the shards are"
        assert [row[2] for row in labels(records)] == [0] * 4 + [1] * 4 + [2] * 4
    assert names(read_records(tmp_path / "train-{00002,00000}-of-00003.parquet")) == whole[8:] + whole[:4]
    renamed = read_records(tmp_path / "train-*.parquet", "images", columns={"image": "image", "mos": "rating"})
    assert renamed.table.types["mos"] == pa.int64()


def test_a_row_is_counted_over_all_shards(tmp_path: Path) -> None:
    parquet(tmp_path / "0.parquet", image=["a", "b"], rating=[1.0, 2.0])
    parquet(tmp_path / "1.parquet", image=["c", None], rating=[1.0, 2.0])
    with pytest.raises(InputError, match=r"\{0\.\.1\}\.parquet: a picture without a name: row 3 \(counted from 0\)$"):
        images(read_records(tmp_path / "{0..1}.parquet"))


def test_shards_with_other_columns_and_types_are_no_shards(tmp_path: Path) -> None:
    first = parquet(tmp_path / "0.parquet", image=["a"], rating=[1], prompt=pa.nulls(1))
    parquet(tmp_path / "1.parquet", image=["b"], rating=[1.5], prompt=["x"])
    table = read_records(tmp_path / "*.parquet").labels()
    assert (table["rating"].to_pylist(), table["prompt"].to_pylist()) == ([1, 1.5], [None, "x"])
    second = parquet(tmp_path / "1.parquet", image=["b"], rating=[1])
    with pytest.raises(InputError, match=f"{second} lacks the column 'prompt' of {first}; all shards"):
        read_records(tmp_path / "*.parquet")
    parquet(second, image=[b"A"], rating=[1], prompt=["x"])
    with pytest.raises(InputError, match=f"column 'image' holds string in {first} and binary in {second}"):
        read_records(tmp_path / "*.parquet")
    second.write_bytes(b"x")
    with pytest.raises(InputError, match=f"{second} cannot be read"):
        read_records(tmp_path / "*.parquet")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("t-*.parquet", r"t-\*\.parquet does not exist: no file name matches it"),
        ("t-{0..2}.parquet", r"t-0\.parquet does not exist, nor do 2 more"),
        ("t-{2..0}.parquet", r"does not exist: no file name matches it"),
        ("t-{a,b}.xyz", r"t-a\.xyz does not exist, nor do 1 more"),
    ],
)
def test_patterns_that_mean_nothing(pattern: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_records(tmp_path / pattern)


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    for name in ("[1]{0,1}*.parquet", "1{0,1}x.parquet"):
        parquet(tmp_path / name, image=[name], rating=[1])
    assert names(read_records(tmp_path / "[1]{0,1}*.parquet")) == ["[1]{0,1}*.parquet"]
    folder = tmp_path / "[1]"
    parquet(folder / "x.parquet", image=["in a folder"], rating=[1])
    assert names(read_records(folder)) == ["in a folder"]


def test_folders_that_hold_more_than_one_table_are_refused(tmp_path: Path) -> None:
    rows = {"image": ["a"], "rating": [1]}
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", **rows)
    (tmp_path / "README.md").write_text("A card")
    (tmp_path / "banner.png").write_bytes(b"x")
    assert names(read_records(tmp_path)) == ["a"], "no folder of one picture"
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", **rows)
    with pytest.raises(InputError, match=rf"name one of {tmp_path}/data/test-\*.parquet, {tmp_path}/data/train-"):
        read_records(tmp_path)
    parquet(tmp_path / "plain" / "train.parquet", **rows)
    parquet(tmp_path / "plain" / "test.parquet", **rows)
    with pytest.raises(InputError, match=rf"several tables; name one of {tmp_path}/plain/test\*\.parquet, "):
        read_records(tmp_path / "plain")
    parquet(tmp_path / "part" / "train-00001-of-00003.parquet", **rows)
    with pytest.raises(InputError, match=r"has only 1 of 3 files such as .*; add the others"):
        read_records(tmp_path / "part")
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"holds the splits train, test; name one, such as .*/dict/train"):
        read_records(tmp_path / "dict")


def test_a_table_beside_pictures_is_no_shard(tmp_path: Path) -> None:
    parquet(tmp_path / "labels.parquet", image=["a.png"], rating=[1])
    (tmp_path / "a.png").write_bytes(b"x")
    records = read_records(tmp_path)
    assert (records.format, names(records)) == ("folder", ["a.png"])


class Dataset:
    """As the `datasets` library has them: a table, and which of its rows are meant."""

    def __init__(self, table: pa.Table, indices: list[int] | None = None) -> None:
        self.data = type("MemoryMappedTable", (), {"table": table})
        self._indices = indices

    def flatten_indices(self) -> "Dataset":
        return Dataset(self.data.table.take(self._indices))


def test_tables_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = pa.table({"image": ["a", "b"], "rating": [1, 2]})
    for source in (table, Dataset(table)):
        records = read_records(source)
        assert images(records) == [("a", f"{tmp_path}/a", None), ("b", f"{tmp_path}/b", None)]
        assert names(records) == ["a", "b"], "again"
    assert labels(read_records(Dataset(table, [1]))) == [("b", None, 2)]
    with pytest.raises(InputError, match=r"^the pyarrow\.Table: rating is not finite: row 0 \("):
        read_records(pa.table({"image": ["a"], "rating": [float("inf")]})).labels()
    mixed, repeated = pd.DataFrame({"image": ["a", 5]}), pd.DataFrame([["a", 1, 2]], columns=["image", "n", "n"])
    for frame in (mixed, repeated):
        with pytest.raises(InputError, match=r"^the pandas\.DataFrame cannot be read: "):
            read_records(frame)
    for wrong in (5, {"train": table}, type("DatasetDict", (), {"data": {}})()):
        with pytest.raises(InputError, match=r"is not a table; wanted a path, a DataFrame or table with __arrow"):
            read_records(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.arrow", "{0..3}.parquet", "{0..3}.csv"])
def test_pieces_have_their_rows_from_any_row_on(name: str, tmp_path: Path) -> None:
    numbers = list(range(23))
    whole = pa.table({"image": [f"{n}" for n in numbers], "n": numbers, "tags": [[n] for n in numbers]})
    groups = [whole] if name[0] == "t" else [whole.slice(start, 6) for start in range(0, 24, 6)]
    for number, rows in enumerate(groups):
        path = tmp_path / (name if len(groups) == 1 else f"{number}.{name[7:]}")
        if path.suffix == ".parquet":
            pq.write_table(rows, path, row_group_size=5)
        elif path.suffix == ".arrow":
            with pa.ipc.new_file(str(path), rows.schema) as writer:
                writer.write_table(rows, max_chunksize=7)
        elif path.suffix == ".csv":
            lines = [f"{row['image']},{row['n']}" for row in rows.to_pylist()]
            path.write_text("\n".join(["image,n", *lines]) + "\n")
        else:
            path.write_text("\n".join(map(json.dumps, rows.to_pylist())))
    table = open_table(str(tmp_path / name), {})
    for start in (0, 4, 8, 22):
        pieces = list(table.pieces({"image": pa.string(), "n": pa.float64()}, 4, start))
        assert [len(wanted) for wanted, _ in pieces][:-1] == [4] * (len(pieces) - 1)
        for part in (0, 1):
            together = pa.concat_tables([piece[part] for piece in pieces])
            assert list(map(float, together["n"].to_pylist())) == numbers[start:]
            assert together["image"].to_pylist() == whole["image"].to_pylist()[start:]
        assert pieces[0][0]["n"].type == pa.float64()
    if path.suffix in (".parquet", ".arrow"):
        assert pieces[0][1]["n"].type == pa.int64()
        assert pieces[0][1]["tags"].to_pylist() == [[22]], "lists are kept"
