import json
import math

import numpy as np
import pyarrow as pa
import pytest
from catalogue_fakes import assert_best, between, brute_force, make_catalogue, make_labels, unit_vectors

from embed.spec import InputError
from runtime.catalogue import reader as module
from runtime.catalogue.hits import jsonable
from runtime.catalogue.reader import Catalogue, hit_json
from runtime.config import Wish

WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    return make_catalogue(tmp_path_factory.mktemp("c"), unit_vectors(3000, 32, clusters=30), make_labels(3000))


@pytest.fixture(scope="module")
def queries():
    return unit_vectors(10_000, 32, seed=9)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_ten_thousand_queries_equal_brute_force(catalogue, queries, weight):
    assert_best(catalogue.search_rows(queries, 10, weight), brute_force(catalogue, queries, np.float32(weight)), 10)


def test_each_query_has_its_own_weight(catalogue, queries):
    weights = np.array(WEIGHTS, np.float32)
    together = catalogue.search_rows(queries[:5], 10, weights)
    for i, weight in enumerate(WEIGHTS):
        alone = catalogue.search_rows(queries[i : i + 1], 10, weight)
        assert np.array_equal(together[0][i], alone[0][0])


@pytest.mark.parametrize("percentile", [0, 50, 90, 99, 99.9, 100])
def test_a_least_percentile_is_exact(catalogue, queries, percentile):
    allowed = catalogue.popularity >= np.float32(percentile / 100)
    scores = brute_force(catalogue, queries[:50], np.float32(0.3), allowed)
    assert_best(catalogue.search_rows(queries[:50], 10, 0.3, percentile), scores, 10)


def test_the_percentile_of_a_picture_itself_is_enough(catalogue, queries):
    percentile = 100 * float(catalogue.popularity[17])
    expected = (catalogue.popularity >= catalogue.popularity[17]).sum()
    assert (catalogue.search_rows(queries[:1], 3000, 0.3, percentile)[0] >= 0).sum() == expected


@pytest.mark.parametrize("where", ["kind = 'objects' and year >= 2015", "creator = 'c3'", "image = 'p77.png'"])
def test_a_filter_is_exact_and_meets_a_percentile(catalogue, queries, where):
    rows = catalogue.rows.to_pylist()
    keep = {
        "kind = 'objects' and year >= 2015": lambda row: row["kind"] == "objects" and row["year"] >= 2015,
        "creator = 'c3'": lambda row: row["creator"] == "c3",
        "image = 'p77.png'": lambda row: row["image"] == "p77.png",
    }[where]
    allowed = np.array([keep(row) for row in rows])
    for percentile in (0, 60):
        both = allowed & (catalogue.popularity >= np.float32(percentile / 100))
        scores = brute_force(catalogue, queries[:20], np.float32(1), both)
        assert_best(catalogue.search_rows(queries[:20], 10, 1.0, percentile, where), scores, 10)


def test_hits_say_all_there_is_to_say(catalogue):
    row = catalogue.row_of("p77.png")
    hit = catalogue.search(catalogue.vectors[row : row + 1], 1, 0.0)[0][0]
    assert (hit.key, hit.id) == ("p77.png", f"{77:032x}")
    assert catalogue.row_of(hit.id) == row
    assert hit.similarity == pytest.approx(1, abs=2e-3)
    assert hit.blended_score == hit.similarity and hit.popularity == catalogue.popularity[row]
    assert hit.count == catalogue.rows["count"][row].as_py()
    assert hit.metadata.keys() == {"kind", "year", "creator", "width", "height"}
    assert json.loads(json.dumps(hit_json(hit), allow_nan=False))["metadata"]["kind"] == hit.metadata["kind"]


def test_json_has_text_for_dates_and_null_for_what_is_no_number():
    values = {"at": pa.scalar(0, pa.timestamp("s")).as_py(), "nan": math.nan, "no": None, "yes": True, "n": 1.5}
    assert jsonable(values) == {"at": "1970-01-01 00:00:00", "nan": None, "no": None, "yes": True, "n": 1.5}


def test_more_hits_than_pictures_and_filters_that_match_nothing(catalogue, queries):
    assert len(catalogue.search(queries[:1], 5000)[0]) == 3000
    assert catalogue.search(queries[:2], 5, where="year > 3000") == [[], []]
    assert catalogue.search(queries[:0], 5) == []
    assert catalogue.front(queries[0], Wish(where="year > 3000")) == []


def test_the_front_is_what_no_hit_beats(catalogue, queries):
    front = catalogue.front(queries[0], Wish(where="kind = 'objects'", exclude=[f"{4:032x}"]))
    hits = [hit for hit in catalogue.search(queries[:1], 3000, 0.0, where="kind = 'objects'")[0] if hit.key != "p4.png"]
    expected = [
        hit.key
        for hit in hits
        if not any(
            other.similarity >= hit.similarity and other.popularity >= hit.popularity and other.key != hit.key
            for other in hits
        )
    ]
    assert [hit.key for hit in front] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "colour = 1"}, "colour.*there are count, creator"),
        ({"min_percentile": 101}, "min_percentile is 101"),
        ({"k": 0}, "k is 0"),
        ({"popularity_weight": math.nan}, "popularity weight is nan"),
        ({"popularity_weight": np.ones(3)}, "one for each query"),
    ],
)
def test_bad_requests_are_said(catalogue, queries, options, message):
    with pytest.raises(InputError, match=message):
        catalogue.search(queries[:2], **options)


def test_bad_queries_are_said(catalogue):
    with pytest.raises(InputError, match=r"shape \(1, 31\); .* \(m, 32\)"):
        catalogue.search(np.ones((1, 31)))
    with pytest.raises(InputError, match="not finite"):
        catalogue.search(np.full((1, 32), np.nan))
    with pytest.raises(InputError, match=r"no picture named 'p9999\.png'"):
        catalogue.row_of("p9999.png")


def test_what_is_no_catalogue_or_damaged_is_said(catalogue, tmp_path):
    with pytest.raises(InputError, match="is not a catalogue"):
        Catalogue.open(tmp_path)
    made = make_catalogue(tmp_path, unit_vectors(20, 8), make_labels(20))
    file = made.folder / "popularity.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"popularity.npy has \d+ bytes; the manifest says"):
        Catalogue.open(made.path)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        Catalogue.open(made.path)


@pytest.mark.parametrize("kind", ["ivf-pq", "ivf-sq", "hnsw"])
def test_an_index_gives_exact_scores_and_never_fewer_hits(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SCAN_ROWS", 100)
    monkeypatch.setattr(module, "SCAN_COST", 1e9)  # the index whenever it can be used at all
    indexed = make_catalogue(tmp_path, unit_vectors(3000, 32, clusters=30), make_labels(3000), index=kind)
    assert indexed.index is not None
    queries = between(indexed.vectors, 200)
    creators, kinds = (np.asarray(indexed.rows[name]) for name in ("creator", "kind"))
    for options, allowed in (
        ({}, np.ones(3000, bool)),
        ({"min_percentile": 80}, indexed.popularity >= np.float32(0.8)),
        ({"where": "creator = 'c3'"}, creators == "c3"),
        ({"where": "kind = 'objects'"}, kinds == "objects"),
    ):
        rows, _, scores = indexed.search_rows(queries, 10, 0.3, **options)
        truth = brute_force(indexed, queries, np.float32(0.3), allowed)
        assert (rows >= 0).all()
        np.testing.assert_allclose(scores, np.take_along_axis(truth, rows, axis=1), atol=1e-12)
        best = np.argsort(-truth, axis=1)[:, :10]
        assert np.mean([np.isin(b, r).mean() for b, r in zip(best, rows, strict=True)]) > 0.85
    # More hits than an index would look for come from a scan, and so do those that it does not find.
    assert (indexed.search_rows(queries[:2], 2500, 0.3)[0] >= 0).all()
    monkeypatch.setattr(indexed.index, "candidates", lambda queries, *_: np.full((len(queries), 32), -1))
    assert_best(indexed.search_rows(queries, 10, 0.3), brute_force(indexed, queries, np.float32(0.3)), 10)


def test_a_narrow_filter_is_scanned(tmp_path, queries):
    indexed = make_catalogue(tmp_path, unit_vectors(3000, 32, clusters=30), make_labels(3000), index="ivf-pq")

    def refuse(*_):
        raise AssertionError("a scan is quicker here")

    indexed.index.candidates = refuse
    scores = brute_force(indexed, queries[:9], np.float32(0.3), indexed.popularity >= np.float32(0.99))
    assert_best(indexed.search_rows(queries[:9], 10, 0.3, 99), scores, 10)
