"""Measure whether a head's uncertainties are right: how often pairs are ordered right, by the difference of their
scores over its uncertainty."""

import numpy as np

from embed.arrays import Floats
from embed.progress import Progress, silent
from embed.spec import InputError
from heads.data.comparisons import Labels
from heads.data.features import Features
from heads.evaluation.baselines import task_of
from heads.evaluation.evaluate import head_scores
from heads.evaluation.held_out import HeldOut
from heads.evaluation.measured import Measured
from heads.training.committees import unseen_committees

BINS = 8  # bins of equally many pairs, for the plot
THIRDS = 3


def uncertainties(held: HeldOut, labels: Labels, features: Features, progress: Progress = silent) -> Floats:
    """(m, sides) uncertainty of the score of each held-out item, by heads that have not seen its row.

    Most members of the head's own committee have seen the rows that its training held out. For these rows new heads are
    trained, see `unseen_committees`. Raise InputError if neither is possible.
    """
    if held.committee is None:
        raise InputError("the head has no committee; train it again with --folds")
    if held.seen_rows:
        raise InputError(f"the committee was trained on {held.seen_rows} of these rows")
    committees = [held.committee] * held.split.folds
    if held.own_split:
        if held.manifest.get("other_data"):
            raise InputError("the head was trained on other tables too, which are not here")
        committees = unseen_committees(task_of(held.manifest, labels, features, held.split, progress), held.heads)
    return head_scores(committees, labels, features, held.split)


def certainty(measured: Measured, scores: Floats, uncertainty: Floats) -> dict[str, object]:
    """How many of the pairs with a winner the scores (m, sides) order right. The pairs are divided into parts of equal
    size by the difference of the two scores over sqrt(u_a^2 + u_b^2), and also by the difference alone.

    The two uncertainties are combined as if the errors were independent, since a user of scores knows no more about
    them. Errors that both scores share, such as the level of a whole prompt, make a pair look less certain than it is.
    """
    difference = np.abs(np.subtract(*measured.of_pairs(scores)))
    doubt = np.hypot(*measured.of_pairs(uncertainty))
    ratio = difference / np.maximum(doubt, np.finfo(np.float32).tiny)
    return {
        "bins": _parts(measured, scores, ratio, BINS),
        "thirds": _parts(measured, scores, ratio, THIRDS),
        "thirds_by_difference": _parts(measured, scores, difference, THIRDS),
        "mean_uncertainty": float(np.nanmean(uncertainty[measured.rows])),
    }


def _parts(measured: Measured, scores: Floats, by: Floats, count: int) -> list[dict[str, object]]:
    """The pairs with a winner in parts from the lowest `by` (p,) to the highest. Each part has the lowest, middle and
    highest `by`, the number of pairs, and the share ordered right; equal scores count half."""
    decided, credit = np.flatnonzero(measured.decided), measured.credit(scores)
    found = []
    for part in np.array_split(decided[np.argsort(by[decided], kind="stable")], count):
        if not len(part):
            continue
        inside = np.full(len(by), np.nan)
        inside[part] = credit[part]
        low, middle, high = (float(by[part[i]]) for i in (0, len(part) // 2, -1))
        right = measured.pooled_interval(inside).to_json()
        found.append({"low": low, "middle": middle, "high": high, "pairs": len(part), "right": right})
    return found
