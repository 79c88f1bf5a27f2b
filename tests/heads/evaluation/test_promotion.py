"""Whether a new head takes the place of an old one, on planted scores."""

import numpy as np
import pyarrow as pa
import pytest

from heads.config import PromotionConfig
from heads.data.comparisons import Labels
from heads.evaluation.promotion import judged


def planted(rows: int, prompts: int, accuracies: tuple[float, float], seed: int = 0) -> tuple[Labels, list[np.ndarray]]:
    """Comparisons of pictures of their own, and scores of two heads with these chances of being right."""
    rng = np.random.default_rng(seed)
    target = rng.integers(2, size=rows).astype(np.float64)
    items = np.arange(2 * rows).reshape(rows, 2)
    prompt = np.repeat(np.arange(rows) % prompts, 2)
    labels = Labels("comparisons", np.arange(2 * rows), prompt, items, {"target": target}, pa.table({}), 0)
    scores = []
    for accuracy in accuracies:
        right = rng.random(rows) < accuracy
        first = (target > 0.5) == right
        scores.append(np.stack([first, ~first], axis=1).astype(np.float64))
    return labels, scores


def test_a_head_that_is_better_is_promoted_and_figures_are_those_counted() -> None:
    labels, (old, new) = planted(300, 40, (0.6, 0.8))
    found = judged(labels, old, new, PromotionConfig())
    target = labels.values["target"] > 0.5
    expected = [float(((scores[:, 0] > scores[:, 1]) == target).mean()) for scores in (old, new)]
    assert found.promoted and found.old and found.new and found.test
    assert [found.old.value, found.new.value] == pytest.approx(expected)
    assert found.test.difference.value == pytest.approx(expected[1] - expected[0])
    assert found.clusters == "prompts" and found.pairs == 300 and found.test.p_value < 0.01


def test_one_that_is_worse_or_no_better_is_not() -> None:
    labels, (old, new) = planted(300, 40, (0.8, 0.6))
    assert not judged(labels, old, new, PromotionConfig(allow_equal=True)).promoted
    labels, (old, _) = planted(300, 40, (0.7, 0.7))
    same = judged(labels, old, old, PromotionConfig())
    assert not same.promoted and "not proven better" in same.why
    assert judged(labels, old, old, PromotionConfig(allow_equal=True)).promoted


def test_ties_and_too_few_pairs_say_nothing() -> None:
    labels, (old, new) = planted(60, 5, (0.5, 0.9))
    labels.values["target"][:20] = 0.5
    found = judged(labels, old, new, PromotionConfig())
    assert not found.promoted and found.pairs == 40 and "wanted at least 50" in found.why and found.test is None
    found = judged(labels, old, new, PromotionConfig(least_pairs=40))
    assert found.promoted and found.clusters == "pictures"  # of five prompts no interval says much


def test_shuffled_choices_are_seldom_promoted() -> None:
    """Of two heads that know nothing, no more than about max_p / 2 are promoted."""
    promoted = 0
    for seed in range(60):
        labels, (old, new) = planted(120, 30, (0.5, 0.5), seed)
        promoted += judged(labels, old, new, PromotionConfig()).promoted
    assert promoted <= 5
