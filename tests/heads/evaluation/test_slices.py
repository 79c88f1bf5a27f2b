"""Pair accuracy by slice, against loops."""

import numpy as np
import pytest
from heads_labels import GROUPS, SIZE, comparisons, measured, single

from embed.spec import InputError
from heads.config import Protocol
from heads.data.split import Split
from heads.evaluation.measured import measure_pairs
from heads.evaluation.slices import pair_accuracy_by

RNG = np.random.default_rng(8)


def test_slices_hold_the_pairs_within_one_value() -> None:
    n = GROUPS * SIZE
    rating, style = RNG.integers(0, 9, n), RNG.choice(["a", "b", "c"], n)
    one = measured(single("ratings", rating, style=style.tolist()))
    scores = RNG.normal(size=(n, 1))
    got = pair_accuracy_by(one, {"head": scores}, "style")
    across, credits = 0, {"a": [], "b": [], "c": []}
    for i in range(n):
        for j in range(i):
            if one.labels.prompt[i] == one.labels.prompt[j] and rating[i] != rating[j]:
                if style[i] == style[j]:
                    credits[style[i]].append((scores[i, 0] > scores[j, 0]) == (rating[i] > rating[j]))
                else:
                    across += 1
    assert got["across"] == across > 0
    assert {s["value"]: s["pairs"] for s in got["slices"]} == {value: len(c) for value, c in credits.items()}
    for s in got["slices"]:
        assert s["pair_accuracy"]["head"]["value"] == pytest.approx(np.mean(credits[s["value"]]))
    assert [s["pairs"] for s in got["slices"]] == sorted((len(c) for c in credits.values()), reverse=True)


def test_many_numbers_are_cut_into_parts_of_equal_size() -> None:
    size = RNG.normal(size=80)
    size[3] = np.nan
    one = measured(comparisons(RNG.choice([0.0, 1.0], 80), np.arange(80) // 4, size=size.tolist(), few=[1, 2] * 40))
    scores = {"head": RNG.normal(size=(80, 2))}
    found = {s["value"]: s["pairs"] for s in pair_accuracy_by(one, scores, "size")["slices"]}
    assert sorted(found.values()) == [1, 19, 20, 20, 20]
    assert found["unknown"] == 1
    assert {s["value"] for s in pair_accuracy_by(one, scores, "few")["slices"]} == {"1", "2"}
    # The parts are of the rows held out: the others, far away, move no edge.
    away = np.append(np.sort(size[:40]), 100 + np.arange(40.0))
    away[np.isnan(away)] = 0.5
    labels = comparisons(RNG.choice([0.0, 1.0], 80), np.arange(80), size=away.tolist())
    half = measure_pairs(labels, Split(np.where(np.arange(80) < 40, 0, -1), np.arange(80), 1), Protocol(resamples=20))
    assert [s["pairs"] for s in pair_accuracy_by(half, scores, "size")["slices"]] == [10] * 4
    with pytest.raises(InputError, match="'colour' is not a column of the table; it has few, row, size"):
        pair_accuracy_by(one, scores, "colour")
