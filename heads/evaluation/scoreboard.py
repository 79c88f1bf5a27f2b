"""The metrics of all papers for how well scores agree with people, side by side on the same held-out rows.

Each metric states its rule. If the labels do not permit it, the reason is given instead. Parameters of a metric (a tie
threshold, a temperature) are fitted on other held-out parts than they are applied to. Knows scores, no head.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from embed.arrays import Floats, Ints
from embed.progress import stage
from embed.spec import InputError
from heads import metrics
from heads.evaluation.calibration import Temperature, fit_isotonic, fit_temperature
from heads.evaluation.intervals import Interval, calibration_error_interval, mean_interval, spearman_interval
from heads.evaluation.measured import Measured
from heads.pairs import sample_pairs

# Their scores are no logits, so probabilities made of them would mean nothing.
UNCALIBRATED = ("ridge", "prior", "chance")

Need = Literal["pairs", "ties", "prompts", "groups", "values", "logits"]  # what a metric needs from the labels
Map = Literal["raw", "temperature", "isotonic"]  # from a difference of scores to a probability
Value = Callable[[Measured, Floats], Interval]


@dataclass(frozen=True)
class Metric:
    """A metric: `value(measured, scores)` gives its value for scores (m, sides)."""

    label: str
    rule: str
    value: Value
    needs: Need = "pairs"


def _pair_accuracy(measured: Measured, scores: Floats, tie: metrics.TieRule) -> Interval:
    return measured.interval(measured.credit(scores, tie))


def _imagereward_accuracy(measured: Measured, scores: Floats) -> Interval:
    return measured.pooled_interval(measured.credit(scores, "wrong"))


def _pickscore_accuracy(measured: Measured, scores: Floats) -> Interval:
    threshold = _threshold_of_pairs(measured, scores)
    credit = metrics.tie_credit(*measured.of_pairs(scores), measured.pairs.target, threshold)
    return measured.interval(np.where(np.isnan(threshold), np.nan, credit))


def _threshold_of_pairs(measured: Measured, scores: Floats) -> Floats:
    """(p,) the tie threshold of PickScore's rule for each pair: the best one on the split's validation rows, or on the
    other parts if there are no such rows. NaN if there are no pairs to fit it on."""
    rows, target = measured.split.validation, measured.pairs.target
    if rows is not None:
        best = metrics.tie_threshold(scores[rows, 0], scores[rows, 1], measured.labels.values["target"][rows])
        return np.full(len(target), best)
    a, b = measured.of_pairs(scores)
    return measured.crossed(lambda others, _: metrics.tie_threshold(a[others], b[others], target[others]))


def tie_thresholds(measured: Measured, scores: Floats) -> list[float]:
    """The thresholds of PickScore's rule: a single one if the split has validation rows, otherwise one for each part.
    The list is empty if no pair is a labelled tie."""
    if "ties" not in _has(measured):
        return []
    threshold = _threshold_of_pairs(measured, scores)
    known = np.flatnonzero(~np.isnan(threshold))
    part = np.zeros(len(known)) if measured.split.validation is not None else measured.part[known]
    return [float(one) for one in threshold[known[np.unique(part, return_index=True)[1]]]]


def _hps_accuracy(measured: Measured, scores: Floats) -> Interval:
    if measured.labels.kind != "comparisons":
        credit = metrics.rank_accuracy(scores[measured.rows, 0], measured.group, -measured.liked)
        return measured.by_group(credit, measured.group, measured.rows)
    # For pairs: the share of a prompt's pairs that are not inverted; ties of people never are.
    credit = np.nan_to_num(measured.credit(scores), nan=1.0)
    prompt = measured.labels.prompt[measured.pairs.a] * measured.split.folds + measured.fold
    group = np.unique(prompt, return_inverse=True)[1]
    return measured.by_group(np.bincount(group, credit) / np.bincount(group), group, measured.pairs.row_a)


def _at_k(measured: Measured, scores: Floats, credit: Callable[..., Floats], k: int) -> Interval:
    found = credit(scores[measured.rows, 0], measured.group, -measured.liked, k)
    return measured.by_group(found, measured.group, measured.rows)


def _ndcg(measured: Measured, scores: Floats) -> Interval:
    better, _ = metrics.ranked_pairs(measured.group, -measured.liked)
    gain = np.bincount(better, minlength=len(measured.rows))
    credit = metrics.ndcg(scores[measured.rows, 0], gain, measured.group)
    return measured.by_group(credit, measured.group, measured.rows)


def _spearman_in_groups(measured: Measured, scores: Floats) -> Interval:
    credit = metrics.spearman_by_group(scores[measured.rows, 0], measured.liked, measured.group)
    return measured.by_group(credit, measured.group, measured.rows, -1)


def _kendall_in_groups(measured: Measured, scores: Floats) -> Interval:
    credit = metrics.kendall_by_group(scores[measured.rows, 0], measured.liked, measured.group)
    return measured.by_group(credit, measured.group, measured.rows, -1)


def _spearman(measured: Measured, scores: Floats) -> Interval:
    bootstrap = measured.bootstrap_of(measured.rows, measured.rows)
    return spearman_interval(scores[measured.rows, 0], measured.liked, bootstrap, measured.split.fold[measured.rows])


def _kendall(measured: Measured, scores: Floats) -> Interval:
    """tau-b as a mean over pairs. Resamples keep the normalisation for ties that was computed on all pairs."""
    fold = measured.split.fold[measured.rows]
    rng = np.random.default_rng(measured.protocol.seed)
    first, second = sample_pairs(fold, measured.protocol.max_pairs, rng)
    x, y = (np.sign(side[first] - side[second]) for side in (scores[measured.rows, 0], measured.liked))
    fold = fold[first]
    untied_x, untied_y = np.bincount(fold, x * x), np.bincount(fold, y * y)
    scale = np.bincount(fold) / np.sqrt(np.where(untied_x * untied_y > 0, untied_x * untied_y, np.nan))
    bootstrap = replace(measured.bootstrap_of(measured.rows[first], measured.rows[second]), rng=rng)
    return mean_interval(x * y * scale[fold], bootstrap, fold, -1, 1)


def pair_probability(measured: Measured, scores: Floats, map: Map) -> Floats:
    """(p,) P(a preferred). `map` is "raw" (the sigmoid of the difference of scores), or "temperature" or "isotonic",
    which are fitted on the other parts. NaN if they cannot be fitted."""
    a, b = measured.of_pairs(scores)
    target = measured.pairs.target
    if map == "raw":
        return Temperature(1.0).pair_probability(a, b)

    def fitted(others: Ints, part: Ints) -> Floats:
        try:
            if map == "temperature":
                return fit_temperature(a[others], b[others], target[others]).pair_probability(a[part], b[part])
            return fit_isotonic(a[others], b[others], target[others])(a[part] - b[part])
        except InputError:  # the scores order pairs no better than chance, or all of them right
            return np.full(len(part), np.nan)

    key = hashlib.sha256(scores.tobytes()).digest(), map
    if key not in measured.fitted:
        measured.fitted[key] = measured.crossed(fitted)
    return measured.fitted[key]


def reliability(measured: Measured, scores: Floats, map: Map) -> list[metrics.ReliabilityBin]:
    """Ten bins of confidence from 0.5 to 1 of `pair_probability`, without empty bins."""
    probability = pair_probability(measured, scores, map)
    known = np.flatnonzero(~np.isnan(probability))
    return metrics.reliability(probability[known], measured.pairs.target[known])


def _brier(measured: Measured, scores: Floats, map: Map) -> Interval:
    return measured.interval(metrics.brier(pair_probability(measured, scores, map), measured.pairs.target))


def _ece(measured: Measured, scores: Floats, map: Map) -> Interval:
    probability = pair_probability(measured, scores, map)
    known = np.flatnonzero(~np.isnan(probability))
    confidence, outcome, slot = metrics.confidences(probability[known], measured.pairs.target[known])
    return calibration_error_interval(confidence - outcome, slot, measured.bootstrap.of(known))


NEEDS: dict[Need, str] = {
    "pairs": "",
    "ties": "no labelled ties among the pairs",
    "prompts": "needs groups of pictures, by prompt or by the table's column group",
    "groups": "needs groups of pictures, by prompt or by the table's column group",
    "values": "needs ratings or counts, which can be compared between all rows",
    "logits": "",
}
MAPS: dict[Map, tuple[str, str]] = {
    "raw": ("as trained", "P = sigmoid of the difference of scores"),
    "temperature": ("temperature", "one temperature, fitted on the other parts"),
    "isotonic": ("isotonic", "a rising map of the difference of scores, fitted on the other parts"),
}
TIES: tuple[tuple[str, str, metrics.TieRule, str], ...] = (
    ("pair_accuracy", "pair accuracy, tie = ½", "half", "half right"),
    ("strict_accuracy", "strict accuracy", "wrong", "wrong"),
    ("social_reward_accuracy", "Social Reward accuracy, >=", "correct", "right"),
)
METRICS: dict[str, Metric] = {
    **{
        key: Metric(label, f"equal scores are {credit}; labelled ties left out", partial(_pair_accuracy, tie=tie))
        for key, label, tie, credit in TIES
    },
    "pickscore_accuracy": Metric(
        "PickScore accuracy, with ties",
        "three answers, half a point if only one is a tie; a tie is |P(a) - P(b)| <= the threshold of 0, 0.1, ..., 1"
        " that is best on the split's validation rows, or on the other parts if there are none",
        _pickscore_accuracy,
        "ties",
    ),
    "imagereward_accuracy": Metric(
        "ImageReward accuracy, micro",
        "equal scores are wrong, labelled ties left out, and all pairs of all parts have the same weight",
        _imagereward_accuracy,
    ),
    "hps_accuracy": Metric(
        "HPS rank accuracy, macro",
        "1 - inversions / pairs of a group, mean over groups; labelled ties are right, equal scores half an inversion",
        _hps_accuracy,
        "prompts",
    ),
    **{
        f"{name}_at_{k}": Metric(
            f"{name}@{k}",
            f"share of groups whose {k} {side} scores hold one that people ranked {end}; equal scores count against",
            partial(_at_k, credit=credit, k=k),
            "groups",
        )
        for name, credit, side, end in (
            ("recall", metrics.recall_at_k, "highest", "first"),
            ("filter", metrics.filter_at_k, "lowest", "last"),
        )
        for k in (1, 2, 4)
    },
    "ndcg": Metric("NDCG", "gain: how many pictures of the group people like less; mean over groups", _ndcg, "groups"),
    "spearman_in_group": Metric("Spearman in groups", "mean over groups", _spearman_in_groups, "groups"),
    "kendall_in_group": Metric("Kendall in groups", "tau-b, mean over groups", _kendall_in_groups, "groups"),
    "spearman": Metric("Spearman", "over the rows of each part", _spearman, "values"),
    "kendall": Metric("Kendall", "tau-b over the rows of each part", _kendall, "values"),
    **{
        f"brier_{key}": Metric(f"Brier, {label}", f"(P - target)², {rule}", partial(_brier, map=key), "logits")
        for key, (label, rule) in MAPS.items()
    },
    **{
        f"ece_{key}": Metric(
            f"ECE, {label}",
            f"ten bins of confidence from 0.5 to 1, {rule}; its interval is corrected for noise from few pairs",
            partial(_ece, map=key),
            "logits",
        )
        for key, (label, rule) in MAPS.items()
    },
}


@stage("measuring by the rules of every paper")
def scoreboard(measured: Measured, scores: Mapping[str, Floats]) -> dict[str, dict[str, object]]:
    """For each of METRICS its label, its rule, and either `scores` {scorer: {value, low, high}} or `missing`, the
    reason.

    `scores` are named head, zero_shot, ridge, prior, image_only, prompt_only and chance, or some of these.
    """
    result: dict[str, dict[str, object]] = {}
    for key, metric in METRICS.items():
        result[key] = {"label": metric.label, "rule": metric.rule}
        if metric.needs not in _has(measured):
            result[key]["missing"] = NEEDS[metric.needs]
            continue
        judged = {name: s for name, s in scores.items() if metric.needs != "logits" or name not in UNCALIBRATED}
        result[key]["scores"] = {name: metric.value(measured, s).to_json() for name, s in judged.items()}
    return result


def _has(measured: Measured) -> set[str]:
    """The needs of metrics that the labels meet."""
    found = {"pairs", "logits"} | ({"ties"} if not measured.decided.all() else set())
    if measured.labels.kind == "comparisons":
        return found | ({"prompts"} if measured.clusters == "prompts" else set())
    if measured.labels.kind != "groups":
        found.add("values")
    # A table of counts without groups has one group in each fold, for which only the correlation makes sense.
    several = len(np.unique(measured.group)) > len(np.unique(measured.split.fold[measured.rows]))
    return found | ({"prompts", "groups"} if several else set())
