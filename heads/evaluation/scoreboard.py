"""Every paper's figure of how well scores agree with people, on the same held-out rows, side by side.

Each metric says its rule, and why it is missing where the labels do not permit it. What a metric must fit (a tie
threshold, a temperature) is fitted on other held-out parts than it is applied to. Knows scores, no head.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from embed.arrays import Floats, Ints
from embed.spec import InputError
from heads import metrics
from heads.evaluation.calibration import Temperature, fit_isotonic, fit_temperature
from heads.evaluation.groups import GroupedRows
from heads.evaluation.intervals import Interval, calibration_error_interval, mean_interval, spearman_interval
from heads.pairs import sample_pairs

# Their scores are no logits, so that a probability made of them says nothing.
UNCALIBRATED = ("prior", "chance")

Need = Literal["pairs", "ties", "prompts", "groups", "values", "logits"]  # what a metric asks of the labels
Map = Literal["raw", "temperature", "isotonic"]  # from a difference of scores to a probability
Value = Callable[[GroupedRows, Floats], Interval]


@dataclass(frozen=True)
class Metric:
    """`value(grouped, scores)` is the figure of scores (m, sides)."""

    label: str
    rule: str
    value: Value
    needs: Need = "pairs"


def _pair_accuracy(tie: metrics.TieRule) -> Value:
    def value(grouped: GroupedRows, scores: Floats) -> Interval:
        measured = grouped.measured
        return measured.interval(metrics.pair_credit(*measured.of_pairs(scores), measured.pairs.target, tie))

    return value


def _imagereward_accuracy(grouped: GroupedRows, scores: Floats) -> Interval:
    measured = grouped.measured
    return measured.pooled_interval(metrics.pair_credit(*measured.of_pairs(scores), measured.pairs.target, "wrong"))


def _pickscore_accuracy(grouped: GroupedRows, scores: Floats) -> Interval:
    a, b = grouped.measured.of_pairs(scores)
    target = grouped.measured.pairs.target
    if (threshold := _validated_threshold(grouped, scores)) is not None:
        return grouped.measured.interval(metrics.tie_credit(a, b, target, threshold))

    def fitted(others: Ints, part: Ints) -> Floats:
        threshold = metrics.tie_threshold(a[others], b[others], target[others])
        return metrics.tie_credit(a[part], b[part], target[part], threshold)

    return grouped.measured.interval(grouped.crossed(fitted))


def _validated_threshold(grouped: GroupedRows, scores: Floats) -> float | None:
    """The tie threshold that is best on the split's rows for validation; None where it has none."""
    rows = grouped.measured.split.validation
    if rows is None:
        return None
    return metrics.tie_threshold(scores[rows, 0], scores[rows, 1], grouped.measured.labels.values["target"][rows])


def tie_thresholds(grouped: GroupedRows, scores: Floats) -> list[float]:
    """The threshold that each part is judged with by PickScore's rule: the best one on the rows for validation, or
    else on the other parts. Empty where no pair is a labelled tie."""
    a, b = grouped.measured.of_pairs(scores)
    target, found = grouped.measured.pairs.target, list[float]()

    def fitted(others: Ints, part: Ints) -> Floats:
        found.append(metrics.tie_threshold(a[others], b[others], target[others]))
        return a[part]

    if "ties" in _has(grouped):
        if (threshold := _validated_threshold(grouped, scores)) is not None:
            return [threshold]
        grouped.crossed(fitted)
    return found


def _hps_accuracy(grouped: GroupedRows, scores: Floats) -> Interval:
    measured = grouped.measured
    if measured.labels.kind != "comparisons":
        credit = metrics.rank_accuracy(scores[grouped.rows, 0], grouped.group, -grouped.liked)
        return grouped.by_group(credit, grouped.group, grouped.rows)
    # The same of pairs: the share of a prompt's pairs that are not inverted, where people's ties never are.
    pairs = measured.pairs
    credit = np.nan_to_num(metrics.pair_credit(*measured.of_pairs(scores), pairs.target), nan=1.0)
    prompt = measured.labels.prompt[pairs.a] * measured.split.folds + measured.fold
    group = np.unique(prompt, return_inverse=True)[1]
    return grouped.by_group(np.bincount(group, credit) / np.bincount(group), group, pairs.row_a)


def _at_k(credit: Callable[..., Floats], k: int) -> Value:
    def value(grouped: GroupedRows, scores: Floats) -> Interval:
        found = credit(scores[grouped.rows, 0], grouped.group, -grouped.liked, k)
        return grouped.by_group(found, grouped.group, grouped.rows)

    return value


def _ndcg(grouped: GroupedRows, scores: Floats) -> Interval:
    better, _ = metrics.ranked_pairs(grouped.group, -grouped.liked)
    gain = np.bincount(better, minlength=len(grouped.rows))
    return grouped.by_group(metrics.ndcg(scores[grouped.rows, 0], gain, grouped.group), grouped.group, grouped.rows)


def _in_groups(correlation: Callable[..., Floats]) -> Value:
    def value(grouped: GroupedRows, scores: Floats) -> Interval:
        credit = correlation(scores[grouped.rows, 0], grouped.liked, grouped.group)
        return grouped.by_group(credit, grouped.group, grouped.rows)

    return value


def _spearman(grouped: GroupedRows, scores: Floats) -> Interval:
    measured = grouped.measured
    bootstrap = measured.bootstrap_of(grouped.rows, grouped.rows)
    return spearman_interval(scores[grouped.rows, 0], grouped.liked, bootstrap, measured.split.fold[grouped.rows])


def _kendall(grouped: GroupedRows, scores: Floats) -> Interval:
    """tau-b as a mean over pairs, whose resamples keep the normalisation for ties that all pairs gave."""
    measured = grouped.measured
    fold = measured.split.fold[grouped.rows]
    rng = np.random.default_rng(measured.protocol.seed)
    first, second = sample_pairs(fold, measured.protocol.max_pairs, rng)
    x, y = (np.sign(side[first] - side[second]) for side in (scores[grouped.rows, 0], grouped.liked))
    fold = fold[first]
    untied_x, untied_y = np.bincount(fold, x * x), np.bincount(fold, y * y)
    scale = np.bincount(fold) / np.sqrt(np.where(untied_x * untied_y > 0, untied_x * untied_y, np.nan))
    bootstrap = replace(measured.bootstrap_of(grouped.rows[first], grouped.rows[second]), rng=rng)
    return mean_interval(x * y * scale[fold], bootstrap, fold)


def pair_probability(grouped: GroupedRows, scores: Floats, map: Map) -> Floats:
    """(p,) P(a preferred): `map` is "raw" (the sigmoid of the difference of scores), "temperature" or "isotonic", both
    fitted on the other parts; NaN where nothing fits."""
    a, b = grouped.measured.of_pairs(scores)
    target = grouped.measured.pairs.target
    if map == "raw":
        return Temperature(1.0).pair_probability(a, b)

    def fitted(others: Ints, part: Ints) -> Floats:
        try:
            if map == "temperature":
                return fit_temperature(a[others], b[others], target[others]).pair_probability(a[part], b[part])
            return fit_isotonic(a[others], b[others], target[others])(a[part] - b[part])
        except InputError:  # scores that order no better than chance, or without a fault
            return np.full(len(part), np.nan)

    if (id(scores), map) not in grouped.fitted:
        grouped.fitted[id(scores), map] = grouped.crossed(fitted)
    return grouped.fitted[id(scores), map]


def reliability(grouped: GroupedRows, scores: Floats, map: Map) -> list[metrics.ReliabilityBin]:
    """Ten bins of confidence from 0.5 to 1 of `pair_probability`, the empty ones left out."""
    probability = pair_probability(grouped, scores, map)
    known = np.flatnonzero(~np.isnan(probability))
    return metrics.reliability(probability[known], grouped.measured.pairs.target[known])


def _brier(map: Map) -> Value:
    def value(grouped: GroupedRows, scores: Floats) -> Interval:
        probability = pair_probability(grouped, scores, map)
        return grouped.measured.interval(metrics.brier(probability, grouped.measured.pairs.target))

    return value


def _ece(map: Map) -> Value:
    def value(grouped: GroupedRows, scores: Floats) -> Interval:
        measured, probability = grouped.measured, pair_probability(grouped, scores, map)
        known = np.flatnonzero(~np.isnan(probability))
        confidence, outcome, slot = metrics.confidences(probability[known], measured.pairs.target[known])
        return calibration_error_interval(confidence - outcome, slot, measured.bootstrap.of(known))

    return value


NEEDS: dict[Need, str] = {
    "pairs": "",
    "ties": "no labelled ties among the pairs",
    "prompts": "wants groups of pictures, of one prompt or of the table's column group",
    "groups": "wants groups of pictures, of one prompt or of the table's column group",
    "values": "wants ratings or counts, which mean the same everywhere",
    "logits": "",
}
MAPS: dict[Map, tuple[str, str]] = {
    "raw": ("as trained", "P = sigmoid of the difference of scores"),
    "temperature": ("temperature", "one temperature, fitted on the other parts"),
    "isotonic": ("isotonic", "a rising map of the difference of scores, fitted on the other parts"),
}
METRICS: dict[str, Metric] = {
    "pair_accuracy": Metric(
        "pair accuracy, tie = ½", "equal scores are half right; labelled ties left out", _pair_accuracy("half")
    ),
    "strict_accuracy": Metric(
        "strict accuracy", "equal scores are wrong; labelled ties left out", _pair_accuracy("wrong")
    ),
    "social_reward_accuracy": Metric(
        "Social Reward accuracy, >=", "equal scores are right; labelled ties left out", _pair_accuracy("correct")
    ),
    "pickscore_accuracy": Metric(
        "PickScore accuracy, with ties",
        "three answers, half a point where one side is a tie; a tie is |P(a) - P(b)| <= the threshold of 0, 0.1, ..., 1"
        " that is best on the split's rows for validation, or else on the other parts",
        _pickscore_accuracy,
        "ties",
    ),
    "imagereward_accuracy": Metric(
        "ImageReward accuracy, micro",
        "equal scores are wrong, labelled ties left out, and every pair of all parts weighs the same",
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
            _at_k(credit, k),
            "groups",
        )
        for name, credit, side, end in (
            ("recall", metrics.recall_at_k, "highest", "first"),
            ("filter", metrics.filter_at_k, "lowest", "last"),
        )
        for k in (1, 2, 4)
    },
    "ndcg": Metric("NDCG", "gain: how many of the group people like less; mean over groups", _ndcg, "groups"),
    "spearman_in_group": Metric(
        "Spearman in groups", "mean over groups", _in_groups(metrics.spearman_by_group), "groups"
    ),
    "kendall_in_group": Metric(
        "Kendall in groups", "tau-b, mean over groups", _in_groups(metrics.kendall_by_group), "groups"
    ),
    "spearman": Metric("Spearman", "over the rows of each part", _spearman, "values"),
    "kendall": Metric("Kendall", "tau-b over the rows of each part", _kendall, "values"),
    **{
        f"brier_{key}": Metric(f"Brier, {label}", f"(P - target)², {rule}", _brier(key), "logits")
        for key, (label, rule) in MAPS.items()
    },
    **{
        f"ece_{key}": Metric(
            f"ECE, {label}",
            f"ten bins of confidence from 0.5 to 1, {rule}; its interval allows for what few pairs add",
            _ece(key),
            "logits",
        )
        for key, (label, rule) in MAPS.items()
    },
}


def scoreboard(grouped: GroupedRows, scores: Mapping[str, Floats]) -> dict[str, dict[str, object]]:
    """For each of METRICS its label, rule, and either `scores` {scorer: {value, low, high}} or `missing`, a reason.

    `scores` are named head, zero_shot, image_only, prompt_only, prior and chance, or some of these.
    """
    result: dict[str, dict[str, object]] = {}
    for key, metric in METRICS.items():
        result[key] = {"label": metric.label, "rule": metric.rule}
        if metric.needs not in _has(grouped):
            result[key]["missing"] = NEEDS[metric.needs]
            continue
        judged = {name: s for name, s in scores.items() if metric.needs != "logits" or name not in UNCALIBRATED}
        result[key]["scores"] = {name: metric.value(grouped, s).to_json() for name, s in judged.items()}
    return result


def _has(grouped: GroupedRows) -> set[str]:
    """What of NEEDS the labels meet."""
    measured = grouped.measured
    found = {"pairs", "logits"} | ({"ties"} if not measured.decided.all() else set())
    if measured.labels.kind == "comparisons":
        return found | ({"prompts"} if measured.clusters == "prompts" else set())
    if measured.labels.kind != "groups":
        found.add("values")
    # A table of counts without groups is one group a fold, of which nothing can be said but its correlation.
    several = len(np.unique(grouped.group)) > len(np.unique(measured.split.fold[grouped.rows]))
    return found | ({"prompts", "groups"} if several else set())
