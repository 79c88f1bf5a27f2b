"""The arithmetic of blended search: cos(q, x) + weight * popularity, over float16 vectors.

Pure functions on arrays. Knows no file and no metadata.
"""

import numpy as np

from embed.arrays import Bools, Float16s, Float32s, Floats, Ints

# Number of vectors that are converted to float32 at a time, to limit memory to some tens of MB.
BLOCK_ROWS = 16_384
SCAN_QUERIES = 1024
RESCORE_VECTORS = 32_768

# Sums in float32 have an error below 1e-6 here, so candidates are summed again in float64. With so many more of them
# than requested, no true hit is lost unless even more lie within that error of the k-th.
SPARE = 16

_CHUNK_VALUES = 65_536  # 256 KB of float32: the four passes of `to_float32` stay inside a core's cache
_EXPONENT_SHIFT = np.float32(2.0**112)  # the exponents of float16 and float32 are biased by 15 and 127


def to_float32(half: Float16s, out: Float32s) -> Float32s:
    """Write the numbers of `half` (float16, finite) to `out` (contiguous float32 of the same size), and return `out`.

    Some builds of numpy convert float16 one value at a time. This is about five times as fast.
    """
    source, target = half.reshape(-1).view(np.int16), out.reshape(-1)
    for start in range(0, len(source), _CHUNK_VALUES):
        values = target[start : start + _CHUNK_VALUES]
        bits = values.view(np.int32)
        np.copyto(bits, source[start : start + _CHUNK_VALUES])  # keeps the sign in the highest bits
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, -0x70002000, out=bits)  # sign, 5 bits of exponent, 10 of fraction
        np.multiply(values, _EXPONENT_SHIFT, out=values)
    return out


def scan(
    vectors: Float16s, popularity: Float32s, queries: Float32s, weights: Float32s, k: int, rows: Ints | None = None
) -> Ints:
    """(m, c) int64, c >= min(k, n), unordered: the rows with the highest blended scores, of all n or of `rows` (n,).

    vectors (N, d) float16, popularity (N,), queries (m, d) float32, weights (m,).
    """
    n = len(vectors) if rows is None else len(rows)
    found = np.empty((len(queries), min(k + SPARE, n)), np.int64)
    for start in range(0, len(queries), SCAN_QUERIES):
        some = slice(start, start + SCAN_QUERIES)
        found[some] = _scan(vectors, popularity, queries[some], weights[some], found.shape[1], rows, n)
    return found if rows is None else rows[found]


def _scan(
    vectors: Float16s, popularity: Float32s, queries: Float32s, weights: Float32s, count: int, rows: Ints | None, n: int
) -> Ints:
    best = np.full((len(queries), count), -np.inf, np.float32)
    found = np.zeros((len(queries), count), np.int64)
    buffer = np.empty((min(BLOCK_ROWS, n), vectors.shape[1]), np.float32)
    for start in range(0, n if count else 0, BLOCK_ROWS):
        some = slice(start, min(start + BLOCK_ROWS, n)) if rows is None else rows[start : start + BLOCK_ROWS]
        half = vectors[some]
        scores = queries @ to_float32(half, buffer[: len(half)]).T
        scores += weights[:, None] * popularity[some]
        least = best.min(axis=1, keepdims=True)
        if start == 0 or np.isinf(least).any():
            columns = np.argpartition(-scores, min(count, len(half)) - 1, axis=1)[:, :count]
            best = np.concatenate([best, np.take_along_axis(scores, columns, axis=1)], axis=1)
            found = np.concatenate([found, columns + start], axis=1)
            kept = np.argpartition(-best, count - 1, axis=1)[:, :count]
            best, found = np.take_along_axis(best, kept, axis=1), np.take_along_axis(found, kept, axis=1)
            continue
        # Few scores of a block are better than the worst kept one. Only these are merged, query by query.
        query, column = np.nonzero(scores > least)
        owner = np.concatenate([np.repeat(np.arange(len(best)), count), query])
        all_scores = np.concatenate([best.ravel(), scores[query, column]])
        order = np.lexsort((-all_scores, owner))
        kept = order[np.searchsorted(owner[order], np.arange(len(best)))[:, None] + np.arange(count)]
        best, found = all_scores[kept], np.concatenate([found.ravel(), column + start])[kept]
    return found


def similarities(vectors: Float16s, query: Float32s, rows: Ints) -> Float32s:
    """(n,) float32: the cosines of a query (d,) with the vectors of `rows` (n,)."""
    result = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), BLOCK_ROWS):
        half = vectors[rows[start : start + BLOCK_ROWS]]
        result[start : start + BLOCK_ROWS] = to_float32(half, np.empty(half.shape, np.float32)) @ query
    return result


def pareto_front(similarities: Float32s, popularity: Float32s) -> Ints:
    """(f,) int64: the Pareto front, most similar first. For each row on it, every more similar row is less popular.

    Rows that tie in both values are all kept.
    """
    order: Ints = np.lexsort((-similarities, -popularity))
    similar, popular = similarities[order], popularity[order]
    best_before = np.maximum.accumulate(np.concatenate([[-np.inf], similar[:-1]]))
    first_of_best = similar > best_before
    # Keep rows that equal the last row on the front in both values.
    leader = np.maximum.accumulate(np.where(first_of_best, np.arange(len(order)), 0))
    on_front: Bools = (similar == similar[leader]) & (popular == popular[leader])
    return order[on_front][::-1]


def best_of(
    candidates: Ints, vectors: Float16s, popularity: Float32s, queries: Float32s, weights: Float32s, k: int
) -> tuple[Ints, Floats, Floats]:
    """Rows (m, k) int64, cosines and blended scores (m, k) float64 of the k best candidates, computed exactly from
    their vectors.

    candidates (m, c) int64, -1 for none, each row at most once per query. The best come first, equal scores by row.
    Past the last, rows are -1 and scores -inf.
    """
    if candidates.shape[1] > k + SPARE:
        candidates = _narrowed(candidates, vectors, popularity, queries, weights, k + SPARE)
    m, c = candidates.shape
    similarities = np.full((m, c), -np.inf)
    step = max(1, RESCORE_VECTORS // max(c, 1))
    for start in range(0, m, step):
        some = candidates[start : start + step]
        taken = vectors[np.maximum(some, 0)].astype(np.float64)
        similarities[start : start + step] = (taken @ queries[start : start + step, :, None].astype(np.float64))[..., 0]
    similarities[candidates < 0] = -np.inf
    scores = similarities + weights[:, None].astype(np.float64) * popularity[np.maximum(candidates, 0)]
    order = np.lexsort((candidates, -scores))[:, :k]
    best = [np.take_along_axis(array, order, axis=1) for array in (candidates, similarities, scores)]
    if (short := k - best[0].shape[1]) > 0:
        fills = (-1, -np.inf, -np.inf)
        best = [np.pad(a, ((0, 0), (0, short)), constant_values=f) for a, f in zip(best, fills, strict=True)]
    return best[0], best[1], best[2]


def _narrowed(
    candidates: Ints, vectors: Float16s, popularity: Float32s, queries: Float32s, weights: Float32s, count: int
) -> Ints:
    """(m, count) the best candidates by float32 scores of the stored vectors, unordered."""
    m, c = candidates.shape
    kept = np.empty((m, count), np.int64)
    step = max(1, RESCORE_VECTORS // c)
    buffer = np.empty((step, c, vectors.shape[1]), np.float32)
    for start in range(0, m, step):
        some = candidates[start : start + step]
        rows = np.maximum(some, 0)
        taken = to_float32(vectors[rows], buffer[: len(some)])
        scores = (taken @ queries[start : start + step, :, None])[..., 0]
        scores += weights[start : start + step, None] * popularity[rows]
        scores[some < 0] = -np.inf
        best = np.argpartition(scores, c - count, axis=1)[:, c - count :]
        kept[start : start + step] = np.take_along_axis(some, best, axis=1)
    return kept
