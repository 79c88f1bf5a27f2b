"""Reading is by column and by batch: what is not asked for is not read, and what has been used is let go."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from embed.records.sources import open_table
from embed.records.tables import BATCH_ROWS, BATCH_ROWS_WITH_BYTES

TEST_BLOCK_BYTES = 1 << 17


def arrow_peak_bytes(path: Path, work: str) -> int:
    """The most that Arrow held at once in a fresh process that did `work` with the table at `path`.

    Arrow reads some 30 blocks of CSV ahead; they are smaller here, so that the file has more of them.
    """
    code = f"""
import pyarrow as pa
from embed.records import delimited, sources
delimited.BLOCK_BYTES = {TEST_BLOCK_BYTES}
table = sources.open_table({str(path)!r}, {{}})
{work}
print(pa.default_memory_pool().max_memory())
"""
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def write_pictures(path: Path, rows: int) -> int:
    """One row group of pictures of 20 kB; gives its size in bytes."""
    data = np.random.default_rng(0).bytes(20_000 * rows)
    pictures = pa.array([data[20_000 * i : 20_000 * (i + 1)] for i in range(rows)], pa.binary())
    with pq.ParquetWriter(path, pa.schema([("image", pa.binary()), ("n", pa.int64())]), write_batch_size=16) as writer:
        writer.write_table(pa.table({"image": pictures, "n": np.arange(rows)}), row_group_size=rows)
    assert pq.read_metadata(path).num_row_groups == 1
    return len(data)


def test_pictures_are_streamed_page_by_page(tmp_path: Path) -> None:
    path, peaks = tmp_path / "p.parquet", []
    for rows in (500, 3000):
        size = write_pictures(path, rows)
        sizes = [len(batch) for batch in open_table(str(path), {}).stream({"image": pa.binary()})]
        assert (sum(sizes), max(sizes)) == (rows, BATCH_ROWS_WITH_BYTES)
        peaks.append(arrow_peak_bytes(path, "[None for batch in table.stream({'image': pa.binary()})]"))
    assert size == 60_000_000
    assert peaks[1] < 15_000_000
    assert peaks[1] < 1.2 * peaks[0]


def test_labels_do_not_read_the_pictures(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_pictures(path, 1000)
    wanted, others = open_table(str(path), {"m": "n"}).read({"m": pa.float64()})
    assert wanted.to_pydict() == {"m": list(map(float, range(1000)))}
    assert others.to_pydict() == {"n": list(range(1000))}
    assert arrow_peak_bytes(path, "table.read({'n': pa.float64()})") < 2_000_000


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.json"])
def test_streams_are_flat_in_the_number_of_rows(name: str, tmp_path: Path) -> None:
    path, peaks = tmp_path / name, []
    for rows in (100_000, 300_000) if "json" not in name else (20_000, 60_000):
        names = [f"a/rather/long/name/of/a/picture/in/a/folder/of/pictures/{i:09d}.jpg" for i in range(rows)]
        columns = {"image": names, "rating": list(range(rows))}
        if name == "t.parquet":
            pq.write_table(pa.table(columns), path, row_group_size=50_000)
        elif name == "t.csv":
            csv.write_csv(pa.table(columns), path)
        else:
            lines = [f'{{"image": "{image}", "rating": {i}}}' for i, image in enumerate(names)]
            path.write_text("\n".join(lines) if name == "t.jsonl" else "[" + ",".join(lines) + "]")
        batches = list(open_table(str(path), {}).stream({"image": pa.string()}))
        assert max(map(len, batches)) <= BATCH_ROWS
        assert pa.chunked_array([batch["image"] for batch in batches]).to_pylist() == names
        peaks.append(arrow_peak_bytes(path, "[None for batch in table.stream({'image': pa.string()})]"))
    # How many of its blocks Arrow has read ahead depends on who is scheduled when; none of them may be behind.
    ahead_bytes = 3 * 32 * TEST_BLOCK_BYTES if name == "t.csv" else 0  # as text and as columns
    assert peaks[1] < max(1.5 * peaks[0], ahead_bytes)


def test_cells_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image,prompt,score\n1.jpg,"two\nlines",0.5\n2.jpg,,\n3.jpg,"",1\nNULL,null,2\n')
    wanted, others = open_table(str(path), {}).read({"image": pa.string(), "prompt": pa.string()})
    assert wanted["image"].to_pylist() == ["1.jpg", "2.jpg", "3.jpg", "NULL"]
    assert wanted["prompt"].to_pylist() == ["two\nlines", None, "", "null"]
    assert others.to_pydict() == {"score": [0.5, None, 1, 2]}


def test_lines_in_cells_over_the_ends_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed.records.delimited.BLOCK_BYTES", 200)
    prompts = [f"{i}\nand\nmore" for i in range(200)]
    path = tmp_path / "t.csv"
    path.write_text("prompt,n\n" + "".join(f'"{prompt}",1\n' for prompt in prompts))
    batches = list(open_table(str(path), {}).stream({"prompt": pa.string()}))
    assert len(batches) > 10
    assert [text for batch in batches for text in batch["prompt"].to_pylist()] == prompts


def test_other_columns_are_the_scalar_ones(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    kept = {"text": ["a"], "number": [1], "truth": [True], "when": pa.array([0], pa.timestamp("s"))}
    kept["category"] = pa.array(["x"]).dictionary_encode()
    dropped = {"bytes": [b"A"], "list": [[1]], "struct": [{"a": 1}], "nothing": pa.nulls(1)}
    pq.write_table(pa.table({"image": ["1.jpg"]} | kept | dropped), path)
    assert open_table(str(path), {}).read({"image": pa.string()})[1].column_names == list(kept)


def test_texts_of_every_arrow_kind_become_strings(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    texts = pa.array(["1.jpg", "2.jpg"])
    kinds = {"large": texts.cast(pa.large_string()), "view": texts.cast(pa.string_view())}
    kinds["category"] = texts.dictionary_encode()
    pq.write_table(pa.table(kinds), path)
    table = open_table(str(path), {})
    types = dict.fromkeys(kinds, pa.string())
    assert table.read(types)[0].to_pydict() == {name: ["1.jpg", "2.jpg"] for name in kinds}
    assert [batch.schema for batch in table.stream(types)] == [pa.schema(list(types.items()))]
