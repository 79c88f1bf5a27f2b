"""Tune an index: find the fastest effort with enough measured recall, at several weights of popularity.

Recall is the share of the true ten best hits, by exact search, that the index finds. The effort is chosen on one half
of the sample queries, and its recall is measured on the other. Knows no file.
"""

from typing import TypedDict

import numpy as np

from embed.arrays import Bools, Float16s, Float32s, Ints
from embed.spec import InputError
from runtime.index.base import Effort, Index
from runtime.index.blend import best_of, scan

WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)
RECALL_AT = 10
CANDIDATES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
LEAST_PROBES = 16
LADDER = 1.25  # factor from one number of probes to the next
CODES = 256  # number of codes of a list that are read in the time of scoring one candidate exactly
MOST_BREADTH = 2048  # the largest breadth of a walk through a graph


class RecallTooLow(InputError):
    """No effort reaches the required recall. The message has the measured recalls."""


class Tuned(TypedDict):
    """The effort for a weight and higher ones, with its recall on queries that were not used to choose it.

    It is stored in this form in a catalogue's manifest.
    """

    weight: float
    probes: int
    candidates: int
    recall_at_10: float


def tune(index: Index, vectors: Float16s, popularity: Float32s, queries: Float32s, min_recall: float) -> list[Tuned]:
    """The fastest effort with a recall of at least `min_recall`, for each of WEIGHTS.

    Raise RecallTooLow if no effort reaches it.

    queries (m, d) float32, m >= 2, which must not be rows of `vectors`.
    """
    choose, report = queries[::2], queries[1::2]
    found = []
    for weight in WEIGHTS:
        effort = _quickest_effort(index, vectors, popularity, choose, weight, min_recall)
        recall = measure(index, vectors, popularity, report, weight, effort)
        found.append(Tuned(weight=weight, probes=effort.probes, candidates=effort.candidates, recall_at_10=recall))
    return found


def measure(
    index: Index, vectors: Float16s, popularity: Float32s, queries: Float32s, weight: float, effort: Effort
) -> float:
    """The recall at ten of one effort at one weight."""
    weights = np.full(len(queries), weight, np.float32)
    truth = exact_rows(vectors, popularity, queries, weights)
    return float(_found(index.candidates(queries, weights, effort), truth).mean())


def exact_rows(vectors: Float16s, popularity: Float32s, queries: Float32s, weights: Float32s) -> Ints:
    """(m, RECALL_AT) int64: the true best rows. There are fewer columns if there are fewer vectors."""
    k = min(RECALL_AT, len(vectors))
    candidates = scan(vectors, popularity, queries, weights, k)
    return best_of(candidates, vectors, popularity, queries, weights, k)[0]


def _quickest_effort(
    index: Index, vectors: Float16s, popularity: Float32s, queries: Float32s, weight: float, min_recall: float
) -> Effort:
    weights = np.full(len(queries), weight, np.float32)
    truth = exact_rows(vectors, popularity, queries, weights)
    most = index.lists or MOST_BREADTH
    per_probe = len(vectors) / index.lists / CODES if index.lists else 1.0  # in units of exactly scored candidates
    probes, curve = min(LEAST_PROBES, most), []
    best: Effort | None = None
    best_cost = np.inf
    while probes * per_probe < best_cost:
        # A walk through a graph gives as many candidates as its breadth.
        counts = [count for count in CANDIDATES if index.lists or count <= probes] or [probes]
        wide = index.candidates(queries, weights, Effort(probes, counts[-1]))
        for count in counts:
            recalls = _found(wide[:, :count], truth).mean(axis=1)
            # Require one standard error more, so that the recall also holds on other queries.
            if recalls.mean() - recalls.std() / np.sqrt(len(recalls)) >= min_recall or recalls.min() == 1:
                if (cost := probes * per_probe + count) < best_cost:
                    best, best_cost = Effort(probes, count), cost
                break
        curve.append(f"{recalls.mean():.4f} at {probes} probes")
        if probes == most:
            break
        probes = min(int(np.ceil(LADDER * probes)), most)
    if best is None:
        raise RecallTooLow(
            f"no effort of the {index.kind} index reaches a recall of {min_recall} at weight {weight}:"
            f" {'; '.join(curve)}; lower --min-recall, or choose another --index"
        )
    return best


def _found(candidates: Ints, truth: Ints) -> Bools:
    """(m, k) bool: whether each true row is among its query's candidates."""
    return np.stack([np.isin(best, found) for best, found in zip(truth, candidates, strict=True)])
