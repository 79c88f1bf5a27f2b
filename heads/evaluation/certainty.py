"""Whether a head knows how sure it is: how often pairs are ordered right by their difference over its uncertainty."""

import numpy as np

from embed.arrays import Floats
from embed.progress import Progress, silent, stage
from embed.spec import InputError
from heads.data.comparisons import Labels
from heads.data.features import Features
from heads.evaluation.baselines import task_of
from heads.evaluation.evaluate import head_scores
from heads.evaluation.held_out import HeldOut
from heads.evaluation.measured import Measured
from heads.training.committees import unseen_committees

BINS = 8  # of equally many pairs, for the plot
THIRDS = 3


def uncertainties(held: HeldOut, labels: Labels, features: Features, progress: Progress = silent) -> Floats:
    """(m, sides) uncertainty of the score of each item held out, by members that have not seen its row.

    Most of the head's own committee has seen the rows that its training held out: there others are trained, see
    `unseen_committees`. Raise InputError if none can say.
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


@stage("measuring how sure the scores are")
def certainty(measured: Measured, scores: Floats, uncertainty: Floats) -> dict[str, object]:
    """The share of pairs with a winner that scores (m, sides) order right, in parts of equally many pairs: by the
    difference of the two scores over sqrt(u_a^2 + u_b^2), and by the difference alone.

    The two uncertainties are added as those of independent errors, since whoever is given scores has no more of them:
    what errs for both alike, such as the level of a whole prompt, makes a pair less sure than it is.
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
    """The pairs with a winner in parts from the lowest `by` (p,) to the highest: its ends and its middle, how many they
    are, and the share of them ordered right, equal scores half."""
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
