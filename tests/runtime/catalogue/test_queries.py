import numpy as np
import pyarrow as pa
import pytest
from catalogue_fakes import make_catalogue, make_labels, unit_vectors

from embed.spec import InputError
from runtime.catalogue.queries import distinct_rows, find, mixed_query
from runtime.config import Wish


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    vectors = unit_vectors(400, 16, clusters=12)
    vectors[1::4] = vectors[::4]  # a quarter are twins
    return make_catalogue(tmp_path_factory.mktemp("c"), vectors, make_labels(400))


def test_likes_are_averaged_and_dislikes_taken_away():
    likes, dislikes = unit_vectors(3, 16), unit_vectors(2, 16, seed=1)
    query = mixed_query(likes, dislikes)
    expected = likes.mean(axis=0) - dislikes.mean(axis=0)
    np.testing.assert_allclose(query, expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(mixed_query(likes[:1]), likes[0], atol=1e-6)
    with pytest.raises(InputError, match="cancel each other out"):
        mixed_query(likes, likes)
    with pytest.raises(InputError, match="the query is empty"):
        mixed_query(likes[:0], dislikes)


def test_weights_multiply_before_the_mean_is_taken():
    likes, dislikes = unit_vectors(3, 16), unit_vectors(2, 16, seed=1)
    weights, others = [2.0, 0.5, 1.0], [1.0, 3.0]
    expected = sum(w * v for w, v in zip(weights, likes, strict=True)) / 3
    expected = expected - sum(w * v for w, v in zip(others, dislikes, strict=True)) / 2
    query = mixed_query(likes, dislikes, weights, others)
    np.testing.assert_allclose(query, expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(mixed_query(likes, dislikes, [1.0] * 3), mixed_query(likes, dislikes), atol=1e-7)


@pytest.mark.parametrize("percentile", [50, 90, 99, 100])
@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_dissimilar_pictures_are_no_hits_however_popular(catalogue, percentile, weight):
    query = unit_vectors(1, 16, seed=2)[0]
    cosines = catalogue.vectors.astype(np.float64) @ query
    near = [i for i in range(400) if cosines[i] >= np.percentile(cosines, percentile) - 1e-6]
    best = sorted(near, key=lambda i: -(cosines[i] + weight * catalogue.popularity[i]))
    hits = find(catalogue, query, Wish(30, weight, min_similarity_percentile=percentile))
    scores = [cosines[i] + weight * catalogue.popularity[i] for i in best[:30]]
    np.testing.assert_allclose([hit.blended_score for hit in hits], scores, atol=1e-6)
    assert {hit.row for hit in hits} <= set(near)


def test_pictures_without_a_value_are_no_group(tmp_path):
    creators = ["x", None, None, "x", None, "y", "y", None]
    labels = make_labels(8).drop_columns(["creator"]).append_column("creator", pa.array(creators))
    few = make_catalogue(tmp_path / "c", unit_vectors(8, 16), labels)
    query = unit_vectors(1, 16, seed=2)[0]
    ranked = [hit.metadata["creator"] for hit in few.search(query[None], 8)[0]]
    found = [hit.metadata["creator"] for hit in find(few, query, Wish(8, group_by="creator"))]
    assert found.count(None) == 4 and sorted(filter(None, found)) == ["x", "y"]
    assert len(ranked) == 8


def test_a_plain_wish_is_a_search(catalogue):
    query = unit_vectors(1, 16, seed=2)
    assert find(catalogue, query[0], Wish(7, 0.3)) == catalogue.search(query, 7, 0.3)[0]


def test_constraints_are_met_and_cost_no_hit(catalogue):
    query = unit_vectors(1, 16, seed=2)[0]
    ranked = catalogue.search(query[None], 400, 0.3)[0]
    wish = Wish(30, 0.3, dedup=0.98, group_by="creator", per_group=3, exclude=[ranked[0].id, ranked[5].id])
    vectors = {hit.key: catalogue.vector_of(hit.key).astype(np.float64) for hit in ranked}
    # The rule, one hit at a time.
    distinct, expected = [], []
    for hit in ranked:
        if hit.id in wish.exclude or any(vectors[hit.key] @ vectors[other.key] > 0.98 for other in distinct):
            continue
        distinct.append(hit)
        if sum(other.metadata["creator"] == hit.metadata["creator"] for other in expected) < 3:
            expected.append(hit)
    found = find(catalogue, query, wish)
    assert [hit.key for hit in found] == [hit.key for hit in expected[:30]]
    assert len(found) == 21  # seven creators, three each: all there are
    # So strict a wish that more must be fetched again and again.
    kept = []
    for hit in ranked:
        if not any(vectors[hit.key] @ vectors[other.key] > 0.3 for other in kept):
            kept.append(hit)
    found = find(catalogue, query, Wish(len(kept), 0.3, dedup=0.3))
    assert [hit.key for hit in found] == [hit.key for hit in kept]
    assert ranked.index(kept[-1]) > 4 * len(kept)


def test_near_duplicates_are_found_without_a_search_for_their_names(catalogue, monkeypatch):
    query, wish = unit_vectors(1, 16, seed=2)[0], Wish(20, dedup=0.98)
    expected = find(catalogue, query, wish)
    monkeypatch.setattr(catalogue, "image_rows", None)
    monkeypatch.setattr(catalogue, "row_of", None)
    assert find(catalogue, query, wish) == expected


def test_grouping_by_a_column_that_is_not_there(catalogue):
    with pytest.raises(InputError, match="no column 'maker' to group by; there are creator"):
        find(catalogue, unit_vectors(1, 16)[0], Wish(group_by="maker"))


@pytest.mark.parametrize("options", [{"k": 0}, {"dedup": 2.0}, {"per_group": 0}])
def test_bad_wishes_are_said(options):
    with pytest.raises(InputError, match=f"{next(iter(options))} is"):
        Wish(**options)


def test_the_first_of_near_duplicates_stays():
    x = np.array([[1, 0], [0.999, 0.0447], [0, 1], [0.7071, 0.7071]], np.float32)
    assert distinct_rows(x, 0.99) == [0, 2, 3]
    assert distinct_rows(x, 0.7) == [0, 2]
    assert distinct_rows(x, 0.99, most=2) == [0, 2]
    many = unit_vectors(60, 3)  # of which many lie close together
    slow: list[int] = []
    for i in range(len(many)):
        if all(float(many[i] @ many[j]) <= 0.8 for j in slow):
            slow.append(i)
    assert 5 < len(slow) < 50
    assert distinct_rows(many, 0.8) == slow
    assert distinct_rows(many, 0.8, most=5) == slow[:5]
