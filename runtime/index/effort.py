"""How hard an index must try: the quickest effort whose measured recall holds, at several weights of popularity.

Recall is the share of the true ten best, by exact search, that the index finds. Effort is chosen on one half of the
sample queries and its recall reported on the other. Knows no file.
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
LADDER = 1.25  # from one number of probes to the next to try
CODES = 256  # that are read from a list in the time in which one candidate is scored anew
MOST_BREADTH = 2048  # of a walk through a graph


class RecallTooLow(InputError):
    """No effort reaches the recall that was asked for; the message has the curve."""


class Tuned(TypedDict):
    """The effort that suffices from a weight on, and the recall that it reached on queries not used to choose it.

    A catalogue's manifest has it in this form.
    """

    weight: float
    probes: int
    candidates: int
    recall_at_10: float


def tune(index: Index, vectors: Float16s, popularity: Float32s, queries: Float32s, min_recall: float) -> list[Tuned]:
    """For each of WEIGHTS the quickest effort with a recall of at least `min_recall`.

    Raise RecallTooLow where none has it.

    queries (m, d) float32, m >= 2, unlike the vectors themselves.
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
    """(m, RECALL_AT) int64: the true best rows; fewer columns where there are fewer vectors."""
    k = min(RECALL_AT, len(vectors))
    candidates = scan(vectors, popularity, queries, weights, k)
    return best_of(candidates, vectors, popularity, queries, weights, k)[0]


def _quickest_effort(
    index: Index, vectors: Float16s, popularity: Float32s, queries: Float32s, weight: float, min_recall: float
) -> Effort:
    weights = np.full(len(queries), weight, np.float32)
    truth = exact_rows(vectors, popularity, queries, weights)
    most = index.lists or MOST_BREADTH
    per_probe = len(vectors) / index.lists / CODES if index.lists else 1.0  # in candidates scored anew
    probes, curve = min(LEAST_PROBES, most), []
    best: Effort | None = None
    best_cost = np.inf
    while probes * per_probe < best_cost:
        # A walk through a graph ends with as many candidates as it is broad.
        counts = [count for count in CANDIDATES if index.lists or count <= probes] or [probes]
        wide = index.candidates(queries, weights, Effort(probes, counts[-1]))
        for count in counts:
            recalls = _found(wide[:, :count], truth).mean(axis=1)
            # One standard error to spare, so that what holds on these queries holds on others.
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
            f"no effort of the {index.kind} index reaches recall {min_recall} at weight {weight}:"
            f" {'; '.join(curve)}; lower --min-recall, or choose another --index"
        )
    return best


def _found(candidates: Ints, truth: Ints) -> Bools:
    """(m, k) bool: whether each true row is among its query's candidates."""
    return np.stack([np.isin(best, found) for best, found in zip(truth, candidates, strict=True)])
