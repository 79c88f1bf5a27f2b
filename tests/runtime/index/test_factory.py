import os

import numpy as np
import pytest
from catalogue_fakes import between, unit_vectors

from runtime.index.base import Effort, let_threads_sleep
from runtime.index.blend import best_of
from runtime.index.effort import RecallTooLow, exact_rows, measure, tune
from runtime.index.factory import KINDS, build_index, bytes_per_vector, read_index

N, DIM = 6000, 30  # a length that is no multiple of a register or a subvector


@pytest.fixture(scope="module")
def data():
    vectors = unit_vectors(N, DIM, clusters=40).astype(np.float16)
    return vectors, np.linspace(1, 0, N, dtype=np.float32), between(vectors, 200)


@pytest.fixture(scope="module", params=KINDS)
def index(request, data):
    return build_index(request.param, *data[:2])


def everything(index):
    return Effort(index.lists or 2048, 256)


@pytest.mark.parametrize("weight", [0.0, 0.3, 3.0])
def test_looking_everywhere_finds_the_best(index, data, weight):
    assert measure(index, *data, weight, everything(index)) > 0.995


def test_the_blend_is_searched_and_not_only_the_vector(index, data):
    """Little effort suffices at a large weight: the lists of popular pictures come first."""
    _, popularity, queries = data
    weights = np.full(len(queries), 3, np.float32)
    found = index.candidates(queries, weights, Effort(max(index.lists // 8, 40), 64))
    assert popularity[found[found >= 0]].mean() > 0.75
    assert measure(index, *data, 3.0, Effort(max(index.lists // 8, 40), 64)) > 0.8


@pytest.mark.parametrize("rows", [900, np.arange(N) % 5 == 2])
def test_confined_to_rows(index, data, rows):
    vectors, popularity, queries = data
    allowed = np.arange(N) < rows if isinstance(rows, int) else rows
    weights = np.zeros(len(queries), np.float32)
    found = index.candidates(queries, weights, everything(index), rows)
    assert allowed[found[found >= 0]].all()
    best = best_of(found, vectors, popularity, queries, weights, 10)[0]
    there = np.flatnonzero(allowed)
    truth = there[exact_rows(vectors[there], popularity[there], queries, weights)]
    assert np.mean([np.isin(t, b).mean() for t, b in zip(truth, best, strict=True)]) > 0.99


def test_more_lists_are_asked_for_than_there_are(index, data):
    _, _, queries = data
    found = index.candidates(queries, np.zeros(len(queries), np.float32), Effort(10**6 if index.lists else 512, 64))
    assert (found >= 0).all() and found.max() < N


def test_tuning_reaches_the_recall_with_less_than_everything(index, data):
    tuned = tune(index, *data, min_recall=0.95)
    assert all(one["recall_at_10"] > 0.9 for one in tuned)
    assert tuned[2]["probes"] < (index.lists or 2048)


def test_a_recall_out_of_reach_is_an_error_with_the_curve(data):
    vectors, popularity, queries = data
    hopeless = build_index("ivf-pq", vectors, popularity)
    hopeless.candidates = lambda queries, *_: np.zeros((len(queries), 1024), np.int64)  # type: ignore[method-assign]
    with pytest.raises(RecallTooLow, match=r"recall of 0.9 at weight 0.0: 0.\d+ at 16 probes; .* at 20 probes"):
        tune(hopeless, vectors, popularity, queries, 0.9)


@pytest.mark.parametrize("kind", KINDS)
def test_new_popularities_pictures_and_deletions(data, kind, tmp_path):
    vectors, popularity, queries = data
    build_index(kind, vectors[:5000], popularity[:5000]).write(tmp_path)
    # Rows turn round: 100 pictures are deleted, 1000 new ones come.
    order = np.random.default_rng(0).permutation(np.arange(100, N))
    known = np.where(order < 5000, order, -1)
    vectors, popularity = vectors[order], popularity[: len(order)]
    index = read_index(tmp_path, kind, mapped=False).refilled(known, vectors, popularity)
    zeros = np.zeros(len(queries), np.float32)
    effort = Effort(index.lists or 1000, 512)
    assert (index.candidates(queries, zeros, effort) >= 0).all()  # the deleted take no one's place
    # No popularity is what it was, the worst case for a graph's links.
    for weight in (0.0, 3.0):
        assert measure(index, vectors, popularity, queries, weight, Effort(effort.probes, 128)) > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_and_as_large_as_foretold(data, kind, tmp_path):
    _, _, queries = data
    steps: list[int] = []
    built = build_index(kind, *data[:2], steps.append)
    assert sum(steps) == N
    built.write(tmp_path)
    weights, effort = np.full(len(queries), 0.3, np.float32), Effort(60, 64)
    found = read_index(tmp_path, kind).candidates(queries, weights, effort)
    assert np.array_equal(found, built.candidates(queries, weights, effort))
    size_bytes = (tmp_path / "index.faiss").stat().st_size
    per_list = 40 + 32 * bytes_per_vector(kind, DIM) // 2  # codes come in blocks of 32, the last half empty
    foretold = bytes_per_vector(kind, DIM) * N
    assert 0.9 * foretold < size_bytes < 1.05 * foretold + per_list * built.lists


def test_threads_sleep_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
