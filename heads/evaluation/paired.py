"""One scorer against another on the same held-out pairs, by the paired bootstrap.

Knows scores, no head.
"""

from collections.abc import Mapping

from embed.arrays import Floats
from heads.evaluation.intervals import Interval, PairedInterval, paired_interval
from heads.evaluation.measured import Measured


def lead(measured: Measured, scores: Mapping[str, Floats]) -> dict[str, dict[str, object]]:
    """By how much the head's pair accuracy exceeds each other scorer's, on the same pairs: {scorer: {difference,
    p_value}}, with intervals of the paired bootstrap."""
    credit = {name: measured.credit(s) for name, s in scores.items()}
    return {
        name: paired_interval(credit["head"], other, measured.bootstrap, measured.fold).to_json()
        for name, other in credit.items()
        if name != "head"
    }


def compared(measured: Measured, first: Floats, second: Floats) -> tuple[Interval, Interval, PairedInterval]:
    """The pair accuracy of two scorers (m, sides) each, and the paired test of their difference, all over the pairs of
    all folds: two heads may have few rows in common in some fold."""
    measured.warn_of_few()
    one, other = measured.credit(first), measured.credit(second)
    test = paired_interval(one, other, measured.bootstrap)
    return measured.pooled_interval(one), measured.pooled_interval(other), test
