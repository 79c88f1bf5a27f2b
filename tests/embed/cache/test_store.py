import fcntl
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from embed_fakes import IDENTITY, SOURCE, folder_bytes

from embed.cache.store import FAILURES, KEYS, METADATA, Cache, CacheWriter
from embed.spec import IdentityMismatch, InputError


def vectors(n: int, start: int = 0) -> np.ndarray:
    return (np.arange(start * 4, (start + n) * 4, dtype=np.float16)).reshape(n, 4)


def metadata(n: int, start: int = 0) -> pa.Table:
    ids = range(start, start + n)
    columns = [[f"p{i}" for i in ids], [f"{i:032x}" for i in ids], [i + 1 for i in ids], [i + 2 for i in ids]]
    return pa.table(columns, METADATA["images"])


def names(*rows: tuple[str, int]) -> pa.Table:
    return pa.Table.from_pylist([{"image_path": key, "image_id": f"{i:032x}"} for key, i in rows], KEYS)


def write(path: Path, n: int, start: int = 0) -> None:
    with CacheWriter(path, IDENTITY, SOURCE) as writer:
        writer.append("images", metadata(n, start), img_emb=vectors(n, start))
        writer.append_keys(names(*[(f"p{i}", i) for i in range(start, start + n)]))
        writer.commit()


def test_what_was_written_is_read_in_order(tmp_path: Path) -> None:
    write(tmp_path / "c", 3)
    write(tmp_path / "c", 2, start=3)
    cache = Cache.open(tmp_path / "c")
    assert cache.identity == IDENTITY and cache.source == SOURCE
    assert (cache.count("images"), cache.count("prompts")) == (5, 0)
    np.testing.assert_array_equal(cache.image_embeddings(), vectors(5))
    assert cache.text_embeddings().shape == (0, 4)
    assert cache.metadata("images")["image_path"].to_pylist() == [f"p{i}" for i in range(5)]
    assert cache.image_rows(["p4", "p0", "other"]).tolist() == [4, 0, -1]


def test_a_name_points_to_its_last_content(tmp_path: Path) -> None:
    write(tmp_path / "c", 3)
    with CacheWriter(tmp_path / "c", IDENTITY, SOURCE) as writer:
        writer.append_keys(names(("p0", 2), ("alias", 1)))
        writer.commit()
    assert Cache.open(tmp_path / "c").image_rows(["p0", "p1", "alias"]).tolist() == [2, 1, 1]


def test_shards_beyond_the_padding_stay_in_order(tmp_path: Path) -> None:
    write(tmp_path / "c", 1)
    cache = Cache.open(tmp_path / "c")
    files = {f"images/img_emb/img_emb_{i:04d}.npy": {"rows": 1, "sha256": ""} for i in (10000, 2, 9999)}
    found = Cache(cache.path, {**cache.manifest, "files": files}).files("images", "img_emb")
    assert [file.stem for file in found] == ["img_emb_0002", "img_emb_9999", "img_emb_10000"]


def test_what_was_not_committed_does_not_count_and_is_removed(tmp_path: Path) -> None:
    write(tmp_path / "c", 2)
    before = folder_bytes(tmp_path / "c")
    with CacheWriter(tmp_path / "c", IDENTITY, SOURCE) as writer:
        writer.append("images", metadata(1, 2), img_emb=vectors(1, 2))
        writer.replace_failures(FAILURES.empty_table())
    for name in (".manifest.json.tmp", ".failures.parquet.tmp", "images/img_emb/.img_emb_0001.npy.tmp"):
        (tmp_path / "c" / name).write_bytes(b"half")
    assert Cache.open(tmp_path / "c").count("images") == 2
    CacheWriter(tmp_path / "c", IDENTITY, SOURCE).close()
    assert folder_bytes(tmp_path / "c") == before


def test_a_ledger_ahead_of_its_manifest_is_dropped(tmp_path: Path) -> None:
    row = {"key": "k", "stage": "read", "reason": "gone", "detail": ""}
    with CacheWriter(tmp_path / "c", IDENTITY, SOURCE) as writer:
        writer.replace_failures(pa.Table.from_pylist([row], FAILURES))
        writer.commit()
        writer.replace_failures(pa.Table.from_pylist([row, row | {"key": "k2"}], FAILURES))
    with CacheWriter(tmp_path / "c", IDENTITY, SOURCE) as writer:
        assert len(writer.cache().failures()) == 0


def test_another_identity_is_refused_with_both(tmp_path: Path) -> None:
    write(tmp_path / "c", 1)
    with pytest.raises(IdentityMismatch, match=r"weights: .0000.* / .1111"):
        CacheWriter(tmp_path / "c", replace(IDENTITY, weights="1" * 64), SOURCE)
    CacheWriter(tmp_path / "c", IDENTITY, SOURCE).close()  # and the lock was given back


def test_two_jobs_do_not_write_one_cache(tmp_path: Path) -> None:
    write(tmp_path / "c", 1)
    with open(tmp_path / "c" / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another job is writing"):
            CacheWriter(tmp_path / "c", IDENTITY, SOURCE)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not a cache and not empty"):
        CacheWriter(tmp_path, IDENTITY, SOURCE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_no_cache_and_a_damaged_shard(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a cache"):
        Cache.open(tmp_path)
    write(tmp_path / "c", 2)
    np.save(tmp_path / "c" / "images" / "img_emb" / "img_emb_0000.npy", np.zeros((2, 4)))
    with pytest.raises(InputError, match="float64"):
        Cache.open(tmp_path / "c").arrays("images")


def test_arrays_of_other_lengths_than_their_metadata(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c", IDENTITY, SOURCE) as writer, pytest.raises(ValueError, match="has 3 rows"):
        writer.append("images", metadata(2), img_emb=vectors(3))
