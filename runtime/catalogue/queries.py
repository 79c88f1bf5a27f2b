"""What a person asks of a catalogue beyond one vector: several likes and dislikes, no near-duplicates, few of a kind.

Works on any catalogue. Knows no index and no encoder.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from embed.arrays import Bools, Float16s, Float32s, Floats
from embed.spec import InputError
from runtime.catalogue.hits import Hit, Hits, Searchable
from runtime.config import Wish

MOST_RELEVANT = 2000  # pictures among which hits are looked for where dissimilar ones are to be none


def unit_vector(vector: Floats, given: str) -> Float32s:
    """(d,) float32 of the same direction; raise InputError, which begins with `given`, where there is none."""
    largest = np.abs(vector).max()
    if not 0 < largest < np.inf:
        raise InputError(f"{given} a vector without a direction")
    vector = vector.astype(np.float64) / largest  # or the square of a large number would overflow
    unit: Float32s = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def mixed_query(
    likes: Float32s,
    dislikes: Float32s | None = None,
    like_weights: Sequence[float] | None = None,
    dislike_weights: Sequence[float] | None = None,
) -> Float32s:
    """(d,) unit vector: the mean of `likes` (a, d), less the mean of `dislikes` (b, d) where there are any.

    A vector is multiplied by its weight, if weights are given, before the mean is taken. Raise InputError where nothing
    is left, as when likes and dislikes are the same.
    """
    if not len(likes):
        raise InputError("a query needs a picture, a text, an id or a vector that is liked")
    mixed = _weighed(likes, like_weights)
    if dislikes is not None and len(dislikes):
        mixed = mixed - _weighed(dislikes, dislike_weights)
    length = np.linalg.norm(mixed)
    if not length > 1e-6:
        raise InputError("likes and dislikes cancel each other out; nothing is left to search for")
    return (mixed / length).astype(np.float32)


def _weighed(vectors: Float32s, weights: Sequence[float] | None) -> Floats:
    """(d,) float64: the sum of the vectors by their weights, over their number."""
    each = np.ones(len(vectors)) if weights is None else np.asarray(weights, np.float64)
    total: Floats = each @ vectors.astype(np.float64)
    return total / len(vectors)


def find(catalogue: Searchable, query: Float32s, wish: Wish) -> Hits:
    """The best hits for a query (d,) that meet the wish: k of them, or as many as there are.

    More are fetched until enough are left, so what is taken out never costs a hit that exists.
    """
    if wish.min_similarity_percentile:
        return Hits(_kept(catalogue, _relevant(catalogue, query, wish), wish)[: wish.k], catalogue)
    fetch = wish.k + len(wish.excluded)
    if wish.dedup is not None or wish.group_by is not None:
        fetch *= 4
    while True:
        fetch = min(fetch, len(catalogue))
        hits = catalogue.search(query[None], fetch, wish.popularity_weight, wish.min_percentile, wish.where)[0]
        kept = _kept(catalogue, hits, wish)
        if len(kept) >= wish.k or len(hits) < fetch or fetch == len(catalogue):
            return Hits(kept[: wish.k], catalogue)
        fetch *= 4


def _relevant(catalogue: Searchable, query: Float32s, wish: Wish) -> list[Hit]:
    """Of the MOST_RELEVANT most similar hits those at or above the least percentile, the best blended first."""
    least = catalogue.least_similarity(query, wish.min_similarity_percentile)
    count = min(MOST_RELEVANT, len(catalogue))
    found = catalogue.search(query[None], count, 0.0, wish.min_percentile, wish.where)[0]
    weight = wish.popularity_weight
    blended = [
        replace(hit, blended_score=hit.similarity + weight * hit.popularity) for hit in found if hit.similarity >= least
    ]
    return sorted(blended, key=lambda hit: -hit.blended_score)


def _kept(catalogue: Searchable, hits: list[Hit], wish: Wish) -> list[Hit]:
    hits = [hit for hit in hits if hit.id not in wish.excluded]
    if wish.dedup is not None and hits:
        distinct = distinct_rows(catalogue.vectors_of(hits), wish.dedup)
        hits = [hit for hit, keep in zip(hits, distinct, strict=True) if keep]
    if wish.group_by is None:
        return hits
    seen: Counter[object] = Counter()
    kept = []
    for hit in hits:
        if wish.group_by not in hit.metadata:
            known = ", ".join(sorted(hit.metadata))
            raise InputError(f"there is no column {wish.group_by!r} to group by; there are {known}")
        group = hit.metadata[wish.group_by]
        seen[group] += group is not None
        if seen[group] <= wish.per_group:
            kept.append(hit)
    return kept


def distinct_rows(vectors: Float16s | Float32s, threshold: float) -> Bools:
    """(n,) bool: False for each vector whose cosine with an earlier one that is kept exceeds `threshold`."""
    vectors = np.asarray(vectors, np.float32)
    kept = np.zeros(len(vectors), bool)
    for row, vector in enumerate(vectors):
        kept[row] = not (vectors[:row][kept[:row]] @ vector > threshold).any()
    return kept
