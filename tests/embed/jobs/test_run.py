import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from embed_fakes import IDENTITY, SOURCE, FakeEncoder, InlinePool, Table, colors, folder_bytes, picture, unit

from embed.cache.store import Cache, CacheWriter
from embed.files import content_id
from embed.jobs import run as module
from embed.jobs.run import Counts


def run(
    path: Path, *tables: Table, encoder: FakeEncoder | None = None, rehash: bool = False, at_once: int = 1
) -> tuple[Counts, Counts]:
    encoder = encoder or FakeEncoder()
    with CacheWriter(path, IDENTITY, SOURCE) as writer:
        images = module.embed_images(tables, writer, encoder, InlinePool(), rehash=rehash, at_once=at_once)
        return images, module.embed_prompts(tables, writer, encoder)


def write_pictures(folder: Path, n: int) -> Table:
    folder.mkdir(exist_ok=True)
    for i, color in enumerate(colors(n)):
        (folder / f"{i}.png").write_bytes(picture(color))
    return Table([(f"{i}.png", folder / f"{i}.png") for i in range(n)])


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_ROWS", 10)


def test_vectors_are_the_encoders_in_the_order_of_the_data(tmp_path: Path, small_shards: None) -> None:
    images, prompts = run(tmp_path / "c", Table([(f"k{i}", picture(c)) for i, c in enumerate(colors(70))], ["b", "aa"]))
    cache = Cache.open(tmp_path / "c")
    assert (images.embedded, prompts.embedded) == (70, 2)
    expected = unit(np.array([[1, r / 255, g / 255, b / 255] for r, g, b in colors(70)]))
    np.testing.assert_allclose(cache.image_embeddings(), expected, atol=1e-3)
    np.testing.assert_allclose(cache.text_embeddings(), unit(np.array([[1, 1, 0, 1], [1, 2, 2, 0]])), atol=1e-3)
    metadata = cache.metadata("images").to_pydict()
    assert metadata["image_path"] == [f"k{i}" for i in range(70)]
    assert metadata["image_id"] == [content_id(picture(c)) for c in colors(70)]
    assert set(metadata["width"]) == {12} and set(metadata["height"]) == {9}
    assert [len(array) for array in cache.arrays("images")] == [10] * 7


def test_batches_start_anew_with_every_shard(tmp_path: Path, small_shards: None) -> None:
    encoder = FakeEncoder(batch_size=4)
    run(tmp_path / "c", Table([(f"k{i}", picture(c)) for i, c in enumerate(colors(23))]), encoder=encoder)
    assert encoder.batches == [4, 4, 2, 4, 4, 2, 3]


def test_equal_content_is_embedded_once_under_all_its_names(tmp_path: Path) -> None:
    red, blue = picture((255, 0, 0)), picture((0, 0, 255))
    (tmp_path / "file.png").write_bytes(red)
    first = Table([("a", red), ("b", blue), ("c", red), ("a", red)], ["same", "same"])
    images, prompts = run(tmp_path / "c", first, Table([("d", tmp_path / "file.png")], ["same"]))
    cache = Cache.open(tmp_path / "c")
    assert (images.embedded, images.known, prompts.embedded, prompts.known) == (2, 3, 1, 2)
    assert cache.image_rows(["a", "b", "c", "d", "e"]).tolist() == [0, 1, 0, 0, -1]
    assert cache.keys()["image_path"].to_pylist() == ["a", "b", "c", "d"]


def test_a_second_table_adds_only_what_is_new(tmp_path: Path) -> None:
    table = [(f"k{i}", picture(c)) for i, c in enumerate(colors(6))]
    run(tmp_path / "c", Table(table[:4], ["x"]))
    before = folder_bytes(tmp_path / "c")
    images, prompts = run(tmp_path / "c", Table(table, ["y", "x"]))
    assert (images.embedded, images.known, prompts.embedded, prompts.known) == (2, 4, 1, 1)
    after = folder_bytes(tmp_path / "c")
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    assert Cache.open(tmp_path / "c").image_rows([f"k{i}" for i in range(6)]).tolist() == list(range(6))


def test_every_record_is_a_step(tmp_path: Path) -> None:
    rows = [("gone", tmp_path / "gone.png"), *((f"k{i}", picture(c)) for i, c in enumerate([*colors(5), *colors(2)]))]
    told: list[tuple[int, str]] = []
    with CacheWriter(tmp_path / "c", IDENTITY, SOURCE) as writer:
        for _ in range(2):  # what is known is done as well
            tables = [Table(rows, ["a", "b", "a"])]
            module.embed_images(tables, writer, FakeEncoder(), InlinePool(), step=lambda *of: told.append(of))
            assert (sum(done for done, _ in told), told[-1][1]) == (8, "failures=1")
            told.clear()
            module.embed_prompts(tables, writer, FakeEncoder(), step=lambda done=1, note="": told.append((done, note)))
            assert sum(done for done, _ in told) == 3
            told.clear()


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    table = write_pictures(tmp_path / "p", 5)
    run(tmp_path / "c", table)
    before = folder_bytes(tmp_path / "c")
    for i in range(5):  # other content under the same size and time: only reading could tell
        file = tmp_path / "p" / f"{i}.png"
        status = file.stat()
        file.write_bytes(bytes(status.st_size))
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    images, _ = run(tmp_path / "c", table)
    assert (images.embedded, images.known, images.failed) == (0, 5, 0)
    assert folder_bytes(tmp_path / "c") == before
    images, _ = run(tmp_path / "c", table, rehash=True)
    assert images.failed == 5


def test_rehash_of_unchanged_files_changes_nothing(tmp_path: Path) -> None:
    table = write_pictures(tmp_path / "p", 5)
    run(tmp_path / "c", table)
    before = folder_bytes(tmp_path / "c")
    images, _ = run(tmp_path / "c", table, rehash=True)
    assert (images.embedded, images.known) == (0, 5)
    assert folder_bytes(tmp_path / "c") == before


def test_a_replaced_file_gets_a_new_row_and_a_restored_one_its_old_one(tmp_path: Path) -> None:
    table = write_pictures(tmp_path / "p", 2)
    file = tmp_path / "p" / "1.png"
    old, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    run(tmp_path / "c", table)
    file.write_bytes(picture((9, 9, 9), (30, 30)))
    run(tmp_path / "c", table)
    assert Cache.open(tmp_path / "c").image_rows(["0.png", "1.png"]).tolist() == [0, 2]
    file.write_bytes(old)
    os.utime(file, ns=times)
    run(tmp_path / "c", table)
    assert Cache.open(tmp_path / "c").image_rows(["0.png", "1.png"]).tolist() == [0, 1]


def test_failures_stand_in_the_ledger_in_the_order_of_the_data(tmp_path: Path) -> None:
    good = picture((1, 2, 3))
    (tmp_path / "torn.png").write_bytes(good[:40])
    rows = [("gone", tmp_path / "gone.png"), ("good", good), ("torn", tmp_path / "torn.png"), ("none", None)]
    images, _ = run(tmp_path / "c", Table(rows))
    cache = Cache.open(tmp_path / "c")
    assert (images.embedded, images.failed) == (1, 3)
    failures = cache.failures().to_pydict()
    assert failures["key"] == ["gone", "torn", "none"]
    assert failures["stage"] == ["read", "decode", "read"]
    assert failures["reason"] == ["no such file", "damaged", "no picture"]
    assert cache.image_rows(["gone", "good", "torn"]).tolist() == [-1, 0, -1]


def test_a_failed_file_is_read_again_only_once_it_has_changed(tmp_path: Path) -> None:
    torn, gone = tmp_path / "torn.png", tmp_path / "gone.png"
    torn.write_bytes(b"no picture")
    table = Table([("torn", torn), ("gone", gone)])
    run(tmp_path / "c", table)
    before = folder_bytes(tmp_path / "c")
    images, _ = run(tmp_path / "c", table)
    assert (images.known, images.failed) == (1, 1)
    assert folder_bytes(tmp_path / "c") == before
    torn.write_bytes(picture((1, 1, 1)))
    gone.write_bytes(picture((2, 2, 2)))
    images, _ = run(tmp_path / "c", table)
    assert (images.embedded, images.failed) == (2, 0)
    assert len(Cache.open(tmp_path / "c").failures()) == 0


def test_many_names_without_new_pictures_are_committed_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_NAMES", 20)
    same = picture((5, 5, 5))
    run(tmp_path / "c", Table([(f"k{i}", same) for i in range(50)]))
    cache = Cache.open(tmp_path / "c")
    assert [cache.manifest["files"][f"images/keys/keys_000{i}.parquet"]["rows"] for i in range(3)] == [20, 20, 10]
    assert cache.image_rows([f"k{i}" for i in range(50)]).tolist() == [0] * 50


def test_pooled_features_lie_beside_the_projected_ones(tmp_path: Path) -> None:
    encoder = FakeEncoder(("projected", "pooled"))
    run(tmp_path / "c", Table([(f"k{i}", picture(c)) for i, c in enumerate(colors(6))]), encoder=encoder)
    cache = Cache.open(tmp_path / "c")
    (pooled,) = cache.arrays("images", "pooled_emb")
    assert pooled.shape == (6, 8) and cache.image_embeddings().shape == (6, 4)
    direction = np.array([1, *(x / 255 for x in colors(6)[5])])
    np.testing.assert_allclose(pooled[5], unit(np.concatenate([direction, direction**2])[None])[0], atol=1e-3)


def test_vectors_that_are_no_numbers_stop_the_job(tmp_path: Path) -> None:
    class Broken(FakeEncoder):
        def images(self, pixels: np.ndarray) -> list[np.ndarray]:
            return [np.full((len(pixels), 4), np.nan, np.float32)]

    with pytest.raises(ValueError, match="--precision fp32"):
        run(tmp_path / "c", Table([("k", picture((1, 2, 3)))]), encoder=Broken())
    assert Cache.open(tmp_path / "c").count("images") == 0


def test_a_job_stopped_by_an_exception_goes_on_to_the_same_bytes(tmp_path: Path, small_shards: None) -> None:
    table = write_pictures(tmp_path / "p", 45)
    (tmp_path / "p" / "13.png").write_bytes(b"no picture")
    run(tmp_path / "whole", table)

    class Stopping(FakeEncoder):
        def images(self, pixels: np.ndarray) -> list[np.ndarray]:
            if len(self.batches) == 7:
                raise KeyboardInterrupt
            return super().images(pixels)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", table, encoder=Stopping())
    assert 0 < Cache.open(tmp_path / "c").count("images") < 44
    run(tmp_path / "c", table)
    assert folder_bytes(tmp_path / "c") == folder_bytes(tmp_path / "whole")


def test_batches_that_are_encoded_side_by_side_make_the_same_cache(tmp_path: Path, small_shards: None) -> None:
    """Of two that are under way, the later one ends first."""
    table = write_pictures(tmp_path / "p", 45)
    run(tmp_path / "whole", table)
    later = [threading.Event() for _ in range(16)]

    class Swapped(FakeEncoder):
        def images(self, pixels: np.ndarray) -> list[np.ndarray]:
            with lock:
                number = next(numbers)
            if number % 3 == 0:  # a shard has two whole batches and one of two rows
                assert later[number + 1].wait(60), "the next batch waited for this one"
            found = super().images(pixels)
            later[number].set()
            return found

    lock, numbers = threading.Lock(), itertools.count()
    run(tmp_path / "c", table, encoder=Swapped(), at_once=2)
    assert folder_bytes(tmp_path / "c") == folder_bytes(tmp_path / "whole")


def test_an_error_of_a_batch_that_is_encoded_beside_another_stops_the_job(tmp_path: Path, small_shards: None) -> None:
    class Stopping(FakeEncoder):
        def images(self, pixels: np.ndarray) -> list[np.ndarray]:
            if len(self.batches) >= 7:
                raise RuntimeError("the device is gone")
            return super().images(pixels)

    table = write_pictures(tmp_path / "p", 45)
    run(tmp_path / "whole", table)
    with pytest.raises(RuntimeError, match="is gone"):
        run(tmp_path / "c", table, encoder=Stopping(), at_once=2)
    assert 0 < Cache.open(tmp_path / "c").count("images") < 45
    run(tmp_path / "c", table, at_once=2)
    assert folder_bytes(tmp_path / "c") == folder_bytes(tmp_path / "whole")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encoder")]
