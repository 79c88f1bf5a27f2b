"""Queries of a catalogue with more than one vector: several likes and dislikes, no near-duplicates, few hits of a kind.

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

DISTINCT_ROWS = 128  # number of vectors that are compared with each other at a time
MOST_RELEVANT = 2000  # with a least similarity, hits are chosen among so many pictures


def unit_vector(vector: Floats, given: str) -> Float32s:
    """(d,) float32: the unit vector of the same direction. Raise InputError, which begins with `given`, for a zero
    vector."""
    largest = np.abs(vector).max()
    if not 0 < largest < np.inf:
        raise InputError(f"{given} a vector without a direction")
    vector = vector.astype(np.float64) / largest  # otherwise the square of a large number would overflow
    unit: Float32s = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def mixed_query(
    likes: Float32s,
    dislikes: Float32s | None = None,
    like_weights: Sequence[float] | None = None,
    dislike_weights: Sequence[float] | None = None,
) -> Float32s:
    """(d,) unit vector: the mean of `likes` (a, d), minus the mean of `dislikes` (b, d) if there are any.

    If weights are given, each vector is multiplied by its weight before the mean is taken. Raise InputError if the
    result is zero, for example if likes and dislikes are the same.
    """
    if not len(likes):
        raise InputError("the query is empty; give a picture, a text, an id or a vector that the hits should be like")
    mixed = _weighed(likes, like_weights)
    if dislikes is not None and len(dislikes):
        mixed = mixed - _weighed(dislikes, dislike_weights)
    length = np.linalg.norm(mixed)
    if not length > 1e-6:
        raise InputError("likes and dislikes cancel each other out; change one of them")
    return (mixed / length).astype(np.float32)


def _weighed(vectors: Float32s, weights: Sequence[float] | None) -> Floats:
    """(d,) float64: the weighted sum of the vectors, divided by their number."""
    each = np.ones(len(vectors)) if weights is None else np.asarray(weights, np.float64)
    total: Floats = each @ vectors.astype(np.float64)
    return total / len(vectors)


def find(catalogue: Searchable, query: Float32s, wish: Wish) -> Hits:
    """The best hits for a query (d,) that meet the wish: k of them, or fewer if there are fewer.

    More hits are fetched until enough are left after filtering, so that no existing hit is missed.
    """
    if wish.min_similarity_percentile:
        return Hits(_relevant(catalogue, query, wish), catalogue)
    fetch = wish.k + len(wish.excluded)
    if wish.dedup is not None or wish.group_by is not None:
        fetch *= 2 if wish.group_by is None else 4
    while True:
        fetch = min(fetch, len(catalogue))
        hits = catalogue.search(query[None], fetch, wish.popularity_weight, wish.min_percentile, wish.where)[0]
        kept = _kept(catalogue, hits, wish)
        if len(kept) >= wish.k or len(hits) < fetch or fetch == len(catalogue):
            return Hits(kept[: wish.k], catalogue)
        fetch *= 4


def _relevant(catalogue: Searchable, query: Float32s, wish: Wish) -> list[Hit]:
    """The hits with the best blended scores, among those of the MOST_RELEVANT most similar ones that reach the least
    percentile of similarity."""
    least = catalogue.least_similarity(query, wish.min_similarity_percentile)
    count = min(MOST_RELEVANT, len(catalogue))
    found = catalogue.search(query[None], count, 0.0, wish.min_percentile, wish.where)[0]

    def blended(hit: Hit) -> float:
        return hit.similarity + wish.popularity_weight * hit.popularity

    best = sorted((hit for hit in found if hit.similarity >= least), key=blended, reverse=True)
    return [replace(hit, blended_score=blended(hit)) for hit in _kept(catalogue, best, wish)[: wish.k]]


def _kept(catalogue: Searchable, hits: list[Hit], wish: Wish) -> list[Hit]:
    hits = [hit for hit in hits if hit.id not in wish.excluded]
    if wish.dedup is not None and hits:
        most = wish.k if wish.group_by is None else None
        hits = [hits[row] for row in distinct_rows(catalogue.vectors_of(hits), wish.dedup, most)]
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


def distinct_rows(vectors: Float16s | Float32s, threshold: float, most: int | None = None) -> list[int]:
    """The numbers of the rows of `vectors` (n, d) to keep: those whose cosine with every earlier kept row is at most
    `threshold`. With `most`, only the first so many."""
    found: list[int] = []
    for start in range(0, len(vectors), DISTINCT_ROWS):
        block = vectors[start : start + DISTINCT_ROWS].astype(np.float32)
        near: Bools = np.zeros(len(block), bool)  # rows near a kept one
        np.any(block @ vectors[found].astype(np.float32).T > threshold, axis=1, out=near)
        alike = block @ block.T > threshold
        for row in range(len(block)):
            if len(found) == most:
                return found
            if not near[row]:
                found.append(start + row)
                near |= alike[row]
    return found
