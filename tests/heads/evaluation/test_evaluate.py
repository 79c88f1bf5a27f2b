"""What is written of each score, against a loop over its fold."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from heads_labels import GROUPS, SIZE, comparisons, measured, single

from heads.evaluation.evaluate import percentiles, write_scores


def test_a_table_may_have_columns_named_as_those_that_are_written(tmp_path: Path) -> None:
    columns = {
        name: [letter] * 120 for name, letter in zip(("score", "table_score", "fold", "group"), "xyzg", strict=True)
    }
    labels = single("counts", np.arange(GROUPS * SIZE), **columns)
    one = measured(labels)
    write_scores(tmp_path / "scores.parquet", labels, one.split, np.random.default_rng(0).random((120, 1)))
    written = pq.read_table(tmp_path / "scores.parquet")
    assert len(set(written.column_names)) == len(written.column_names)
    first = written.to_pylist()[0]
    assert [first[name] for name in ("table_score", "table_table_score", "table_fold", "group")] == list("xyzg")
    assert 0 <= first["score"] <= 1 and first["fold"] == 0 and first["image"].endswith(".png")


def test_a_percentile_is_over_all_of_the_fold_both_sides_included(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = measured(comparisons(rng.choice([0.0, 1.0], 90), np.arange(90)))
    scores = rng.integers(0, 12, (90, 2)) / 4 + np.array([0.0, 2.0])  # ties, and one side mostly above the other
    fold = np.where(np.arange(90) < 80, one.split.fold, -1)
    one.split.fold[:] = fold
    expected = np.full((90, 2), np.nan)
    for row, side in np.ndindex(90, 2):
        if fold[row] >= 0:
            part = [scores[i, j] for i, j in np.ndindex(90, 2) if fold[i] == fold[row]]
            expected[row, side] = 100 * sum(other < scores[row, side] for other in part) / (len(part) - 1)
    np.testing.assert_allclose(percentiles(scores, fold), expected)
    write_scores(tmp_path / "scores.parquet", one.labels, one.split, scores)
    written = pq.read_table(tmp_path / "scores.parquet")
    assert len(written) == 160 and written["percentile"].to_numpy().max() > 90
    by_score = dict(zip(zip(fold.repeat(2), scores.ravel(), strict=True), expected.ravel(), strict=True))
    for row in written.to_pylist():
        assert row["percentile"] == pytest.approx(by_score[row["fold"], row["score"]])
