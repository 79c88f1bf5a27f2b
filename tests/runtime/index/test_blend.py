import numpy as np
import pytest
from catalogue_fakes import unit_vectors

from runtime.index.blend import best_of, pareto_front, scan, similarities, to_float32


def test_every_finite_half_becomes_the_same_float():
    half = np.arange(65536, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)]
    assert np.array_equal(to_float32(half, np.empty(len(half), np.float32)), half.astype(np.float32))


@pytest.mark.parametrize("n", [5, 20_000])
@pytest.mark.parametrize("confined", [False, True])
def test_scan_and_best_of_are_brute_force(n, confined):
    vectors, queries = unit_vectors(n, 24).astype(np.float16), unit_vectors(7, 24, seed=1)
    popularity = np.linspace(1, 0, n, dtype=np.float32)
    weights = np.linspace(0, 3, 7, dtype=np.float32)
    rows = np.arange(1, n, 3) if confined else None
    found, similar, scores = best_of(
        scan(vectors, popularity, queries, weights, 10, rows), vectors, popularity, queries, weights, 10
    )
    cosines = queries.astype(np.float64) @ vectors.astype(np.float64).T
    expected = cosines + weights[:, None].astype(np.float64) * popularity
    if rows is not None:
        expected[:, np.setdiff1d(np.arange(n), rows)] = -np.inf
    for i in range(7):
        best = [row for row in np.argsort(-expected[i], kind="stable")[:10] if expected[i, row] > -np.inf]
        assert found[i][: len(best)].tolist() == best
        assert (found[i][len(best) :] == -1).all()
        np.testing.assert_allclose(scores[i][: len(best)], expected[i, best], atol=1e-12)
        np.testing.assert_allclose(similar[i][: len(best)], cosines[i, best], atol=1e-12)


def test_best_of_many_candidates_and_none():
    vectors, queries = unit_vectors(300, 24).astype(np.float16), unit_vectors(3, 24, seed=1)
    popularity, weights = np.zeros(300, np.float32), np.zeros(3, np.float32)
    candidates = np.tile(np.arange(300), (3, 1))
    candidates[2, 4:] = -1
    rows, _, scores = best_of(candidates, vectors, popularity, queries, weights, 10)
    expected = np.argsort(-(queries.astype(np.float64) @ vectors.astype(np.float64).T), axis=1)[:, :10]
    assert np.array_equal(rows[:2], expected[:2])
    assert sorted(rows[2][:4]) == [0, 1, 2, 3]
    assert (rows[2][4:] == -1).all() and (scores[2][4:] == -np.inf).all()


def test_equal_scores_come_by_row():
    vectors = np.tile(unit_vectors(1, 24), (40, 1)).astype(np.float16)
    queries, popularity = unit_vectors(2, 24, seed=1), np.zeros(40, np.float32)
    shuffled = np.random.default_rng(0).permuted(np.tile(np.arange(40), (2, 1)), axis=1)
    rows, _, scores = best_of(shuffled, vectors, popularity, queries, np.zeros(2, np.float32), 40)
    assert rows.tolist() == [list(range(40))] * 2 and np.ptp(scores, axis=1).max() == 0


def test_pareto_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    # Few different values, so that there are ties of every kind.
    similar, popular = rng.integers(0, 8, 60) / 8, rng.integers(0, 8, 60) / 8
    expected = {
        i
        for i in range(60)
        if not any(
            similar[j] >= similar[i]
            and popular[j] >= popular[i]
            and (similar[j], popular[j]) != (similar[i], popular[i])
            for j in range(60)
        )
    }
    front = pareto_front(similar, popular)
    assert set(front) == expected and len(front) == len(expected)
    assert (np.diff(similar[front]) <= 0).all()


def test_similarities_are_cosines():
    vectors, query = unit_vectors(50, 16).astype(np.float16), unit_vectors(1, 16, seed=2)[0]
    rows = np.array([7, 3, 3, 49])
    np.testing.assert_allclose(similarities(vectors, query, rows), vectors[rows].astype(np.float32) @ query, atol=1e-6)
