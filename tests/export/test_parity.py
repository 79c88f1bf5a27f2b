"""Figures of parity against slow loops and scipy, and the limits that refuse an export."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from export import parity
from export.parity import ParityError, require_parity, score_parity, uncertainty_parity


def scores() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    reference = generator.standard_normal((20, 3))
    return reference, reference + generator.normal(0, 0.05, (20, 3))


def test_flips_equal_a_slow_loop() -> None:
    reference, ours = scores()
    noise = 0.1
    decided = flipped = 0
    for column in range(3):
        for i in range(20):
            for j in range(i):
                gap, new = reference[i, column] - reference[j, column], ours[i, column] - ours[j, column]
                if abs(gap) > noise:
                    decided += 1
                    flipped += (gap > 0) != (new > 0)
    found = score_parity("int8", reference, ours, noise)
    assert found.decided_pairs == decided
    assert found.flips == pytest.approx(flipped / decided)
    assert 0 < found.flips < 0.1
    assert found.max_score_difference == pytest.approx(np.abs(reference - ours).max())
    assert found.spearman == pytest.approx(min(stats.spearmanr(reference[:, i], ours[:, i])[0] for i in range(3)))


def test_margins_hold_all_decided_pairs_from_narrow_to_wide() -> None:
    found = score_parity("int8", *scores(), 0.0)
    assert sum(margin.pairs for margin in found.margins) == found.decided_pairs == 3 * 190
    assert len(found.margins) == 10
    assert all(a.high <= b.low for a, b in zip(found.margins, found.margins[1:], strict=False))
    assert sum(m.flips * m.pairs for m in found.margins) == pytest.approx(found.flips * found.decided_pairs)
    assert found.margins[0].flips > found.margins[-1].flips == 0


def test_a_tie_made_of_a_decided_pair_is_a_flip() -> None:
    found = score_parity("int8", np.array([[0.0], [1.0]]), np.array([[0.5], [0.5]]), 0.0)
    assert found.flips == 1


def test_rank_correlation_with_ties_is_scipys_and_of_constant_scores_whether_both_are() -> None:
    def spearman(a: list[float], b: list[float]) -> float:
        return score_parity("int8", np.array(a)[:, None], np.array(b)[:, None], 0.0).spearman

    a, b = [1.0, 1, 2, 3, 3, 3], [2.0, 1, 1, 5, 4, 5]
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    assert spearman([1.0, 1, 1], [2.0, 2, 2]) == 1
    assert spearman([1.0, 1, 1], [1.0, 1, 2]) == 0


def test_limits_refuse_and_say_by_how_much() -> None:
    reference, ours = scores()
    fp32 = score_parity("fp32", reference, reference + 1e-6, 1e-5)
    require_parity(fp32, 1.0, 1e-4, 0.0)
    with pytest.raises(ParityError, match=r"differs by 1\.00e-03, more than 1\.00e-04"):
        require_parity(replace(fp32, max_score_difference=1e-3), 1.0, 1e-4, 0.0)
    with pytest.raises(ParityError, match=r"cosine is 0\.9999900"):
        require_parity(fp32, 0.99999, 1e-4, 0.0)
    with pytest.raises(ParityError, match="nan"):
        require_parity(replace(fp32, max_score_difference=float("nan")), 1.0, 1e-4, 0.0)
    int8 = score_parity("int8", reference, ours, 1e-5)
    require_parity(int8, 0.9, 1e-4, 0.5)
    with pytest.raises(ParityError, match=r"pairs change their order, more than 0\.10%"):
        require_parity(int8, 0.9, 1e-4, 0.001)


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        score_parity("fp32", np.ones((1, 2)), np.ones((1, 2)), 0.0)


def test_generated_pictures_are_the_same_each_time_and_all_different() -> None:
    first, second = parity.generated_pictures(3), parity.generated_pictures(3)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({picture.tobytes() for picture in first}) == 3
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 and p.std() > 10 for p in first)


def test_uncertainties_are_bound_at_fp32_alone() -> None:
    reference = np.abs(scores()[0])
    ours = reference.copy()
    ours[3, 1] += 0.02
    found = uncertainty_parity("fp32", reference, ours, 0.03)
    assert found == {"max_difference": pytest.approx(0.02), "mean": pytest.approx(reference.mean())}
    with pytest.raises(ParityError, match=r"an uncertainty differs by 2\.00e-02, more than 1\.00e-02"):
        uncertainty_parity("fp32", reference, ours, 0.01)
    assert uncertainty_parity("int8", reference, ours, 0.01)["max_difference"] > 0.01
