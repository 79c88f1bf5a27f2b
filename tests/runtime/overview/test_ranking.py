"""All of a catalogue by a measure, against sorting in plain Python."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from catalogue_fakes import make_catalogue, make_labels, unit_vectors

from embed.spec import InputError
from runtime.overview.ranking import (
    Direction,
    few_of_each,
    gap,
    measure,
    measure_names,
    places,
    rank_correlation,
    ranked_rows,
)

NAN = float("nan")


def test_the_measures_of_a_catalogue(tmp_path: Path) -> None:
    labels = make_labels(20).append_column("exposures", pa.array([0.0, *[500.0] * 19]))
    labels = labels.set_column(labels.column_names.index("count"), "count", pa.array([float(i) for i in range(20)]))
    catalogue = make_catalogue(tmp_path, unit_vectors(20, 8), labels)
    assert measure_names(catalogue.rows) == ["popularity", "count", "year", "exposures", "rate"]
    np.testing.assert_array_equal(measure(catalogue, "popularity"), 100 * catalogue.popularity.astype(np.float64))
    rows = catalogue.rows.to_pylist()
    rates = [row["count"] / row["exposures"] if row["exposures"] else NAN for row in rows]
    np.testing.assert_allclose(measure(catalogue, "rate"), rates)
    for name in ("kind", "width", "nothing"):
        with pytest.raises(InputError, match="there is no measure"):
            measure(catalogue, name)


@pytest.mark.parametrize("direction", ["highest", "lowest", "apart"])
def test_order(direction: Direction) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-4, 5, 60).astype(float)
    values[::7] = NAN
    allowed = rng.random(60) < 0.7
    key = {"highest": lambda v: -v, "lowest": lambda v: v, "apart": lambda v: -abs(v)}[direction]
    wanted = sorted((i for i in range(60) if allowed[i] and values[i] == values[i]), key=lambda i: (key(values[i]), i))
    assert ranked_rows(values, direction, allowed).tolist() == wanted
    assert len(ranked_rows(values, direction)) == np.isfinite(values).sum()


def test_how_far_two_measures_are_apart() -> None:
    first, second = np.array([1.0, 2, 3, 4, NAN, 9]), np.array([40.0, 30, 20, 10, 5, NAN])
    found = places(first, second)
    np.testing.assert_allclose(found, [[12.5, 37.5, 62.5, 87.5, NAN, NAN], [87.5, 62.5, 37.5, 12.5, NAN, NAN]])
    np.testing.assert_allclose(gap(*found), [-75, -25, 25, 75, NAN, NAN])
    assert gap(*places(first, 2 * first + 1))[:4].tolist() == [0, 0, 0, 0], "only the order counts"


def test_how_alike_two_measures_rank() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    first = rng.integers(0, 9, 70).astype(float)  # many are equal
    second = first + 4 * rng.standard_normal(70)
    first[::9], second[5::11] = NAN, NAN
    allowed = rng.random(70) < 0.8
    both = ~np.isnan(first + second)
    for chosen, given in ((both, None), (both & allowed, allowed)):
        wanted = spearmanr(first[chosen], second[chosen]).statistic
        assert rank_correlation(first, second, given) == pytest.approx(wanted, abs=1e-6)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    assert rank_correlation(first, np.ones(70)) is None
    assert rank_correlation(first, second, np.zeros(70, bool)) is None


def test_few_of_each() -> None:
    rng = np.random.default_rng(0)
    names = [None if n == 0 else f"c{n}" for n in rng.integers(0, 6, 80)]
    rows = rng.permutation(80)[:50]
    for column in (pa.chunked_array([names[:30], names[30:]]), pa.chunked_array([pa.array(names).dictionary_encode()])):
        for most in (1, 3):
            seen: dict[str, int] = {}
            wanted = []
            for row in rows.tolist():
                name = names[row]
                if name is None or seen.get(name, 0) < most:
                    wanted.append(row)
                if name is not None:
                    seen[name] = seen.get(name, 0) + 1
            assert few_of_each(rows, column, most).tolist() == wanted
    assert few_of_each(rows[:0], pa.chunked_array([names]), 1).tolist() == []
