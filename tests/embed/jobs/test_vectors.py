"""Vectors are found as others keep them, each with its own name."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adopted import DIM, clip_retrieval, unit

from embed.jobs import vectors
from embed.jobs.vectors import open_vectors
from embed.spec import InputError

VECTORS = unit(5).astype(np.float32)
LISTS = VECTORS.tolist()


def read(source: Path | str, **columns: str) -> dict[str, tuple[list[str], np.ndarray]]:
    """Names and vectors of each side, all parts one after another."""
    found: dict[str, list[tuple[list[str], np.ndarray]]] = {}
    for part in open_vectors(str(source), columns, DIM):
        names = part.names()["name"].to_pylist()
        found.setdefault(part.side, []).append((names, np.concatenate(list(part.blocks()))))
    return {
        side: ([name for names, _ in parts for name in names], np.concatenate([array for _, array in parts]))
        for side, parts in found.items()
    }


def fixed(dtype: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()).cast(dtype), DIM)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(LISTS, pa.list_(pa.float32())),
        pa.array(LISTS, pa.large_list(pa.float64())),
        fixed(pa.float32()),
        fixed(pa.float16()),
        pa.array(["[" + ",".join(map(str, row)) + "]" for row in LISTS]),  # pgvector's text
        pa.array(["[" + ", ".join(map(str, row)) + "]" for row in LISTS], pa.large_string()),
    ],
    ids=["lists", "large lists", "fixed", "halves", "text", "large text"],
)
def test_a_column_of_vectors_of_any_type_is_read(tmp_path: Path, column: pa.Array) -> None:
    table = pa.table({"id": np.arange(5), "embedding": column, "image": [f"{i}.jpg" for i in range(5)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    (side, (names, found)) = read(tmp_path / "t.parquet").popitem()
    assert side == "images" and names == [f"{i}.jpg" for i in range(5)]
    np.testing.assert_allclose(found, VECTORS, atol=1e-3)


def test_columns_may_have_any_name_and_both_sides_be_in_one_table(tmp_path: Path) -> None:
    other = unit(5, seed=1).astype(np.float32).tolist()
    table = pa.table({"key": [7, 8, 9, 10, 11], "a": LISTS, "b": other, "text": list("vwxyz")})
    pq.write_table(table, tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet", image="key", image_embedding="b", prompt="text", text_embedding="a")
    assert found["images"][0] == ["7", "8", "9", "10", "11"] and found["prompts"][0] == list("vwxyz")
    np.testing.assert_array_equal(found["images"][1], np.array(other, np.float32))
    np.testing.assert_array_equal(found["prompts"][1], VECTORS)
    # The only vectors of a table are its pictures', and its prompts' if it names no pictures.
    pq.write_table(table.select(["a", "key", "text"]).rename_columns(["v", "image", "prompt"]), tmp_path / "i.parquet")
    assert list(read(tmp_path / "i.parquet")) == ["images"]
    pq.write_table(table.select(["a", "text"]).rename_columns(["vector", "caption"]), tmp_path / "p.parquet")
    assert list(read(tmp_path / "p.parquet")) == ["prompts"]


def test_shards_of_a_table_come_one_after_another(tmp_path: Path) -> None:
    for i in range(3):
        pq.write_table(pa.table({"image": [f"{i}"], "vector": [LISTS[i]]}), tmp_path / f"s{i}.parquet")
    assert read(tmp_path)["images"][0] == read(f"{tmp_path}/s{{0..2}}.parquet")["images"][0] == ["0", "1", "2"]


def test_a_folder_of_clip_retrieval_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    images = [unit(2, seed=i).astype(np.float16) for i in range(11)]
    texts = [unit(2, seed=50 + i).astype(np.float32) for i in range(11)]
    folder = clip_retrieval(tmp_path / "f", images, texts)
    found = read(folder)
    assert found["images"][0] == [f"p{i}" for i in range(22)] and found["prompts"][0] == [f"c{i}" for i in range(22)]
    np.testing.assert_array_equal(found["images"][1], np.concatenate(images))
    np.testing.assert_array_equal(found["prompts"][1], np.concatenate(texts))
    parts = list(open_vectors(str(folder), {}, DIM))
    assert {(part.side, part.fits) for part in parts} == {("images", True), ("prompts", False)}
    assert parts[0].names()["uri"].to_pylist() == ["https://a.example/0.jpg", "https://a.example/1.jpg"]


def test_blocks_are_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK_ROWS", 3)
    folder = clip_retrieval(tmp_path / "f", [unit(8)])
    (part,) = open_vectors(str(folder), {}, DIM)
    assert [len(block) for block in part.blocks()] == [3, 3, 2] and not part.fits
    np.testing.assert_array_equal(np.concatenate(list(part.blocks())), unit(8).astype(np.float32))


def test_what_fits_in_no_picture_is_no_width(tmp_path: Path) -> None:
    table = pa.table({"image": ["a", "b"], "vector": LISTS[:2], "width": [640, 1 << 40], "height": ["480", "1"]})
    pq.write_table(table, tmp_path / "t.parquet")
    (part,) = open_vectors(str(tmp_path / "t.parquet"), {}, DIM)
    assert part.names()["width"].to_pylist() == [640, None] and part.names()["height"].to_pylist() == [None, None]


def broken(folder: Path, change: str) -> None:
    if change == "no metadata":
        (folder / "metadata" / "metadata_1.parquet").unlink()
    elif change == "no vectors":
        (folder / "img_emb" / "img_emb_1.npy").unlink()
    elif change == "cut short":
        file = folder / "img_emb" / "img_emb_1.npy"
        file.write_bytes(file.read_bytes()[:-5])
    elif change == "another dim":
        np.save(folder / "img_emb" / "img_emb_1.npy", np.ones((2, 3), np.float16))
    elif change == "another length":
        np.save(folder / "img_emb" / "img_emb_1.npy", unit(3).astype(np.float16))
    elif change == "integers":
        np.save(folder / "img_emb" / "img_emb_1.npy", np.ones((2, DIM), np.int8))
    else:
        pq.write_table(pa.table({"key": ["a", "b"]}), folder / "metadata" / "metadata_1.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no metadata", "img_emb_1.npy has no counterpart in .*metadata"),
        ("no vectors", "metadata_1.parquet has no counterpart in .*img_emb"),
        ("cut short", "img_emb_1.npy is damaged"),
        ("another dim", "img_emb_1.npy has vectors of 3 numbers; the identity's dim is 8"),
        ("another length", "img_emb_1.npy has 3 rows and .*metadata_1.parquet has 2"),
        ("integers", r"img_emb_1.npy holds int8\(2, 8\)"),
        ("no names", "metadata_1.parquet has no column 'image'.*--columns image=YOURS"),
    ],
)
def test_a_file_of_a_folder_that_is_wrong_is_named_before_anything_is_read(
    tmp_path: Path, change: str, message: str
) -> None:
    folder = clip_retrieval(tmp_path / "f", [unit(2).astype(np.float16), unit(2).astype(np.float16)])
    broken(folder, change)
    with pytest.raises(InputError, match=message):
        open_vectors(str(folder), {}, DIM)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a", "b"], "x": [1, 2]}, "has no column of vectors beside one of names; it has image, x"),
        ({"image": ["a", "b"], "x": LISTS[:2], "y": LISTS[:2]}, "has no column of vectors"),
        ({"x": LISTS[:2], "image_embedding": LISTS[:2]}, "has no column 'image', which names its vectors"),
        ({"image": ["a", "b"], "vector": [LISTS[0], [1.0, 2.0]]}, "has 2 numbers in row 1 .*dim is 8"),
        ({"image": ["a", "b"], "vector": ["[1,2,3,4,5,6,7,8]", "[1,2,3,4,5,6,7,x]"]}, "'x' in row 15"),
        (
            {"image": ["a", "b"], "vector": [1.0, 2.0]},
            "holds double; wanted lists of numbers, as in Parquet and Arrow",
        ),
    ],
)
def test_a_table_that_is_wrong_is_told_why(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "t.parquet")


def test_an_unknown_column_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--columns names 'picture'; wanted some of image, prompt"):
        open_vectors("t.parquet", {"picture": "x"}, DIM)
    (tmp_path / "img_emb").mkdir()
    with pytest.raises(InputError, match=r"holds no img_emb_\*.npy"):
        open_vectors(str(tmp_path), {}, DIM)
