import numpy as np
import pytest
from catalogue_fakes import between, unit_vectors

from runtime.indexes import TIER_MEANS, Effort, Index, build_index, bytes_per_vector, refill_graph
from runtime.search import best_of
from runtime.tuning import RecallTooLow, exact_rows, measure, tune

N, DIM = 6000, 30  # a length that is no multiple of a register or a subvector


@pytest.fixture(scope="module")
def data():
    vectors = unit_vectors(N, DIM, clusters=40).astype(np.float16)
    return vectors, np.linspace(1, 0, N, dtype=np.float32), between(vectors, 200)


@pytest.fixture(scope="module", params=["ivf-pq", "ivf-sq", "hnsw"])
def index(request, data):
    built, cells = build_index(request.param, *data[:2])
    assert (cells is None) == (request.param == "hnsw")
    return Index(request.param, DIM, built, np.arange(N, dtype=np.int32) if cells is None else None)


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
    assert all(one.recall > 0.9 for one in tuned)
    assert tuned[2].effort.probes < (index.lists or 2048)


def test_a_recall_out_of_reach_is_an_error_with_the_curve(data):
    vectors, popularity, queries = data
    built, _ = build_index("ivf-pq", vectors, popularity)
    hopeless = Index("ivf-pq", DIM, built)
    hopeless.candidates = lambda queries, *_: np.zeros((len(queries), 1024), np.int64)  # type: ignore[method-assign]
    with pytest.raises(RecallTooLow, match=r"recall 0.9 at weight 0.0: 0.\d+ at 16 probes; .* at 22 probes"):
        tune(hopeless, vectors, popularity, queries, 0.9)


def test_a_graph_takes_new_popularities_pictures_and_deletions(data):
    vectors, popularity, queries = data
    graph, _ = build_index("hnsw", vectors[:5000], popularity[:5000])
    # Rows turn round: node i was row i, and 100 pictures are deleted, 1000 new ones come.
    order = np.random.default_rng(0).permutation(np.arange(100, N))
    now = np.full(N, -1, np.int32)
    now[order] = np.arange(len(order))
    nodes = refill_graph(graph, now[:5000], vectors[order], popularity[: len(order)])
    index = Index("hnsw", DIM, graph, nodes)
    zeros = np.zeros(len(queries), np.float32)
    assert (index.candidates(queries, zeros, Effort(1000, 512)) >= 0).all()  # the deleted take no one's place
    # No popularity is what it was, the worst case for the links.
    for weight in (0.0, 3.0):
        assert measure(index, vectors[order], popularity[: len(order)], queries, weight, Effort(400, 128)) > 0.95


def test_the_size_foretold_is_the_size(data, tmp_path):
    import faiss

    for kind in ("ivf-pq", "ivf-sq", "hnsw"):
        built, cells = build_index(kind, *data[:2])
        faiss.write_index(built, str(tmp_path / kind))
        centroids = 0 if cells is None else (cells.max() + 1) * len(TIER_MEANS) * (DIM + 18) * 4 * 1.6
        size_bytes = (tmp_path / kind).stat().st_size
        assert 0.9 * bytes_per_vector(kind, DIM) * N < size_bytes < 1.35 * bytes_per_vector(kind, DIM) * N + centroids
