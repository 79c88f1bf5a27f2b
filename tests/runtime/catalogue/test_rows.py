import datetime

import numpy as np
import pyarrow as pa
import pytest
from catalogue_fakes import make_cache, unit_vectors

from embed.spec import InputError
from runtime.catalogue.popularity import percentiles, posterior_rates
from runtime.catalogue.rows import popular_rows
from runtime.config import PopularityConfig


@pytest.fixture
def cache(tmp_path):
    return make_cache(tmp_path / "cache", unit_vectors(6, 8))


def names(*numbers):
    return [f"p{i}.png" for i in numbers]


def test_rows_come_most_popular_first_with_their_vectors(cache):
    labels = pa.table({"image": names(3, 0, 5), "count": [2.0, 9.0, 4.0], "kind": ["a", "b", "c"]})
    rows = popular_rows(labels, cache, PopularityConfig())
    assert rows.table["image"].to_pylist() == names(0, 5, 3)
    assert rows.vector_rows.tolist() == [0, 5, 3]
    assert rows.table["kind"].to_pylist() == ["b", "c", "a"]
    assert rows.table["image_id"].to_pylist() == [f"{i:032x}" for i in (0, 5, 3)]
    np.testing.assert_allclose(rows.table["popularity"], [5 / 6, 3 / 6, 1 / 6], rtol=1e-6)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("drop", names(0, 1, 3)), ("zero", names(0, 1, 3, 5, 2, 4)), ("median", names(0, 5, 1, 2, 4, 3))],
)
def test_pictures_without_a_count(cache, missing, expected):
    images, counts = [*names(3, 0, 5, 1), "gone.png"], [1.0, 9.0, None, 2.0, 7.0]
    labels = pa.table({"image": images, "count": counts, "kind": list("abcde")})
    rows = popular_rows(labels, cache, PopularityConfig(missing))
    assert rows.table["image"].to_pylist() == expected
    assert (rows.not_embedded, rows.without_count) == (1, 3)
    if missing != "drop":
        # What the table says of a picture stays, though its count is unknown.
        found = rows.table["image"].to_pylist().index("p5.png")
        assert (rows.table["kind"][found].as_py(), rows.table["count"][found].as_py()) == ("c", None)


def test_a_picture_of_several_rows_stands_once(tmp_path):
    """A cache of vectors that were made elsewhere has a row for each name; equal ones are of one picture."""
    ids = [f"{i:032x}" for i in (0, 1, 0, 2, 2, 3)]
    cache = make_cache(tmp_path / "twice", unit_vectors(6, 8), ids=ids)
    labels = pa.table({"image": names(1, 2), "count": [5.0, 9.0]})
    rows = popular_rows(labels, cache, PopularityConfig("zero"))
    assert rows.table["image"].to_pylist() == names(2, 1, 3, 5) and rows.vector_rows.tolist() == [0, 1, 3, 5]


def test_what_nobody_has_seen_takes_its_predicted_place(cache):
    labels = pa.table({"image": names(0, 1, 2), "count": [1.0, 5.0, 9.0], "prompt": list("abc")})

    def predict(pictures, rows, prompts, sources):
        assert pictures is cache and rows.tolist() == [0, 1, 2, 3, 4, 5]
        assert prompts.to_pylist() == ["a", "b", "c", None, None, None]
        return np.array([0, 0, 0, 3, 2, 1])

    rows = popular_rows(labels, cache, PopularityConfig("predicted"), predict)
    assert rows.table["image"].to_pylist() == names(3, 2, 4, 5, 1, 0)
    nothing_seen = popular_rows(
        pa.table({"image": pa.array([], pa.string())}),
        cache,
        PopularityConfig("predicted"),
        lambda pictures, rows, *_: pictures.image_embeddings()[rows, 0],
    )
    assert nothing_seen.vector_rows.tolist() == np.argsort(-cache.image_embeddings()[:, 0], kind="stable").tolist()
    with pytest.raises(InputError, match="needs a bundle"):
        popular_rows(labels, cache, PopularityConfig("predicted"))


def test_exposures_make_rates(cache):
    counts, shown = np.array([1.0, 90.0, 30.0]), np.array([1.0, 100.0, 100.0])
    labels = pa.table({"image": names(0, 1, 2), "count": counts, "exposures": shown})
    rows = popular_rows(labels, cache, PopularityConfig())
    order = np.argsort(-posterior_rates(counts, shown))
    assert rows.vector_rows.tolist() == order.tolist() == [1, 0, 2]


def test_old_counts_fade(cache):
    days = [datetime.date(2024, 1, 1), datetime.date(2024, 1, 11), datetime.date(2024, 1, 11)]
    labels = pa.table({"image": names(0, 1, 2), "count": [12.0, 5.0, 4.0], "timestamp": days})
    assert popular_rows(labels, cache, PopularityConfig()).vector_rows.tolist() == [0, 1, 2]
    assert popular_rows(labels, cache, PopularityConfig(half_life_s=5 * 86_400)).vector_rows.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("columns", "config", "message"),
    [
        ({"count": [1.0, -1.0]}, {}, "1 values of 'count' are negative or not finite; the first is -1.0, of 'p1.png'"),
        ({"count": [1.0, float("nan")]}, {}, "the first is nan, of 'p1.png'"),
        ({"count": [1.0, 2.0], "image": ["p0.png", "p0.png"]}, {}, "names 1 pictures more than once, such as 'p0.png'"),
        ({"count": [1.0, 2.0], "exposures": [4.0, 1.0]}, {}, "fewer than their count; the first is 'p1.png'"),
        ({"count": [1.0, 2.0], "exposures": [4.0, None]}, {}, "fewer than their count; the first is 'p1.png'"),
        ({"count": [1.0, 2.0], "image": ["x.png", "y.png"]}, {}, "no picture has both"),
        ({"count": [1.0, 2.0]}, {"half_life_s": 5.0}, "needs a column 'timestamp'; the table has image, count"),
        (
            {"count": [1.0, 2.0], "timestamp": ["2024-05-01", "later"]},
            {"half_life_s": 5.0},
            "'p1.png', 'later', is not a",
        ),
        (
            {"count": [1.0, 2.0], "timestamp": [None, 1.7e9]},
            {"half_life_s": 5.0},
            "no timestamp; the first is 'p0.png'",
        ),
    ],
)
def test_bad_tables_are_said(cache, columns, config, message):
    with pytest.raises(InputError, match=message):
        popular_rows(pa.table({"image": names(0, 1), **columns}), cache, PopularityConfig(**config))


def test_bad_configs_are_said():
    with pytest.raises(InputError, match="missing is 'mean'"):
        PopularityConfig("mean")
    with pytest.raises(InputError, match="half_life_s is 0"):
        PopularityConfig(half_life_s=0)


def test_one_content_under_two_names_has_one_vector_twice(tmp_path):
    cache = make_cache(tmp_path / "cache", unit_vectors(3, 8))
    assert percentiles(np.array([1.0, 1.0])).tolist() == [0.5, 0.5]
    rows = popular_rows(pa.table({"image": names(1), "count": [1.0]}), cache, PopularityConfig())
    assert rows.vector_rows.tolist() == [1]
