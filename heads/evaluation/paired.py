"""One scorer against another on the same held-out pairs, by the paired bootstrap.

Knows scores, no head.
"""

from collections.abc import Mapping
from typing import Any

from embed.arrays import Floats
from heads import metrics
from heads.evaluation.evaluate import Measured
from heads.evaluation.groups import GroupedRows
from heads.evaluation.intervals import paired_interval


def lead(grouped: GroupedRows, scores: Mapping[str, Floats]) -> dict[str, dict[str, object]]:
    """By how much the head's pair accuracy exceeds each other scorer's, on the same pairs: {scorer: {difference,
    p_value}}, with intervals of the paired bootstrap."""
    measured = grouped.measured
    credit = {name: _credit(measured, s) for name, s in scores.items()}
    return {
        name: paired_interval(credit["head"], other, measured.bootstrap, measured.fold).to_json()
        for name, other in credit.items()
        if name != "head"
    }


def compared(measured: Measured, first: Floats, second: Floats) -> dict[str, Any]:
    """`pair_accuracy` of two scorers (m, sides), `first` and `second`, and the paired test of their `difference`, all
    over the pairs of all folds: two heads may have few rows in common in some fold."""
    credit = {"first": _credit(measured, first), "second": _credit(measured, second)}
    accuracy = {name: measured.pooled_interval(c).to_json() for name, c in credit.items()}
    return {
        "pair_accuracy": accuracy,
        **paired_interval(credit["first"], credit["second"], measured.bootstrap).to_json(),
    }


def _credit(measured: Measured, scores: Floats) -> Floats:
    return metrics.pair_credit(*measured.of_pairs(scores), measured.pairs.target)
