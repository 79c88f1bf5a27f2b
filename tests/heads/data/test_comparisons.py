"""Labels find their vectors, and pairs are those that the table states."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heads_tiny import make_cache

from embed.cache.store import Cache
from embed.records.formats import read_records
from embed.spec import InputError
from heads.data.comparisons import Labels, labels_alone, match_labels, pairs_among


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    images = [f"p{i}.png" for i in range(6)]
    return make_cache(tmp_path_factory.mktemp("cache"), images, [f"prompt {i}" for i in range(3)])


def read(tmp_path: Path, cache: Cache, **columns: list) -> Labels:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns), path)
    return match_labels(read_records(path), cache)


def as_names(labels: Labels, pairs: object) -> set[tuple[int, int, int, float]]:
    """(picture a, picture b, prompt a, target) of each pair."""
    return {
        (int(labels.image[a]), int(labels.image[b]), int(labels.prompt[a]), float(t))
        for a, b, t in zip(pairs.a, pairs.b, pairs.target, strict=True)
    }


def test_comparisons_keep_their_sides(tmp_path: Path, cache: Cache) -> None:
    labels = read(
        tmp_path,
        cache,
        prompt=["prompt 0", "prompt 2", "prompt 0"],
        pos_path=["p1.png", "p0.png", "p5.png"],
        neg_path=["p4.png", "p1.png", "p1.png"],
    )
    pairs = pairs_among(labels, np.arange(3), np.random.default_rng(0))
    assert as_names(labels, pairs) == {(1, 4, 0, 1.0), (0, 1, 2, 1.0), (5, 1, 0, 1.0)}
    # p1.png under "prompt 0" is one item although it stands in two rows.
    assert len(labels.image) == 5
    only = pairs_among(labels, np.array([1]), np.random.default_rng(0))
    assert as_names(labels, only) == {(0, 1, 2, 1.0)}


def test_counts_give_every_pair_of_a_group(tmp_path: Path, cache: Cache) -> None:
    labels = read(
        tmp_path,
        cache,
        image=[f"p{i}.png" for i in range(5)],
        count=[8, 4, 3, 100, 100],
        group=["x", "x", "x", "y", "y"],
    )
    rng = np.random.default_rng(0)
    hard = pairs_among(labels, np.arange(5), rng, min_ratio=2)
    assert as_names(labels, hard) == {(0, 1, -1, 1.0), (0, 2, -1, 1.0)}
    soft = pairs_among(labels, np.arange(5), rng)
    targets = {(a, b): t for a, b, _, t in as_names(labels, soft)}
    assert set(targets) == {(0, 1), (0, 2), (1, 2), (3, 4)}
    assert targets[3, 4] == pytest.approx(0.5)
    assert 0.5 < targets[1, 2] < targets[0, 1] < targets[0, 2] < 1


def test_ratings_are_compared_within_a_prompt(tmp_path: Path, cache: Cache) -> None:
    labels = read(
        tmp_path,
        cache,
        image=["p0.png", "p1.png", "p2.png", "p3.png"],
        prompt=["prompt 0", "prompt 0", "prompt 1", "prompt 1"],
        rating=[1.0, 3.0, 2.0, 2.0],
    )
    pairs = pairs_among(labels, np.arange(4), np.random.default_rng(0))
    assert as_names(labels, pairs) == {(0, 1, 0, 0.0), (2, 3, 1, 0.5)}


def test_rows_without_vectors_are_counted_or_refused(tmp_path: Path, cache: Cache) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"image": ["p0.png", "gone.png", "p2.png"], "count": [1, 2, 3]}), path)
    records = read_records(path)
    labels = match_labels(records, cache, max_missing=0.5)
    assert (labels.missing, len(labels)) == (1, 2)
    assert labels.image.tolist() == [0, 2]
    with pytest.raises(InputError, match=r"1 of 3 rows .* \(first: 'gone.png'\)"):
        match_labels(records, cache)
    pq.write_table(pa.table({"image": ["p0.png"], "count": [1], "prompt": ["never embedded"]}), path)
    with pytest.raises(InputError, match="1 of 1 rows"):
        match_labels(read_records(path), cache)


def test_labels_alone_are_those_met_with_a_cache_under_other_numbers(tmp_path: Path, cache: Cache) -> None:
    columns = {"prompt": ["prompt 2", "prompt 0"], "pos_path": ["p4.png", "p1.png"], "neg_path": ["p1.png", "p0.png"]}
    met = read(tmp_path, cache, **columns)
    alone = labels_alone(read_records(tmp_path / "table.parquet"))
    for name in ("target", "weight"):
        np.testing.assert_array_equal(met.values[name], alone.values[name])
    for of_item in ("image", "prompt"):
        met_ids, alone_ids = (getattr(one, of_item)[one.items].ravel() for one in (met, alone))
        np.testing.assert_array_equal(met_ids[:, None] == met_ids, alone_ids[:, None] == alone_ids)


@pytest.mark.parametrize(
    "names, root",
    [
        (["{}/sub/a.png", "{}/b.png"], None),
        (["./sub/a.png", "sub/../b.png"], "{}"),
        (["a.png", "../b.png"], "{}/sub"),
    ],
)
def test_pictures_are_found_by_where_they_lie(tmp_path: Path, names: list[str], root: str | None) -> None:
    (tmp_path / "sub").mkdir()
    names, root = [name.format(tmp_path) for name in names], root and root.format(tmp_path)
    places = [f"{tmp_path}/b.png", f"{tmp_path}/sub/a.png"]
    cache = make_cache(tmp_path / "c", ["b.png", "sub/a.png"], [], places=places)
    pq.write_table(pa.table({"image": names, "rating": [1.0, 2.0]}), tmp_path / "table.parquet")
    labels = match_labels(read_records(tmp_path / "table.parquet", images_root=root), cache)
    assert labels.image.tolist() == [1, 0]


def test_where_no_picture_is_found_both_spellings_are_shown(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", ["pictures/a.png"], ["a dog"])
    pq.write_table(pa.table({"image": ["a.png"], "rating": [1.0]}), tmp_path / "table.parquet")
    with pytest.raises(InputError) as caught:
        match_labels(read_records(tmp_path / "table.parquet"), cache)
    said = str(caught.value)
    assert f"the table has 'a.png' in {tmp_path}" in said and "the cache has 'pictures/a.png'" in said
    assert "--images-root" in said and "--max-missing" not in said
    pq.write_table(pa.table({"image": ["pictures/a.png"], "prompt": ["cat"], "rating": [1.0]}), tmp_path / "p.parquet")
    with pytest.raises(
        InputError, match=r"have a prompt without a vector in .*the table has 'cat', and the cache has 'a dog'"
    ):
        match_labels(read_records(tmp_path / "p.parquet"), cache)
