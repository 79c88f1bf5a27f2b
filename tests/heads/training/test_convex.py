"""The solver's answer is the one that scikit-learn or the closed form gives."""

import numpy as np
import pytest
import torch
from heads_tiny import DIM, unit
from sklearn.linear_model import LogisticRegression

from embed.spec import InputError
from heads.config import HeadConfig, LossOptions
from heads.data.comparisons import Pairs
from heads.data.features import Features, features_of
from heads.models import Kernel, Linear, build_head
from heads.training import convex
from heads.training.objectives import Groups, Part, Ratings
from heads.training.train import score_items

N = 90


@pytest.fixture(scope="module")
def features() -> Features:
    return features_of(unit(N, 1), unit(30, 2), np.arange(N), np.arange(N) % 30)


def standardised(features: Features) -> np.ndarray:
    """(N, DIM) pictures, centered and of mean square norm 1."""
    x = features.image_embeddings.double().numpy()
    x = x - x.mean(axis=0)
    return x / np.sqrt((x**2).sum(axis=1).mean())


def some_pairs(seed: int, n: int = 400) -> Pairs:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, N, (2, n))
    a[:N], b[:N] = np.arange(N), (np.arange(N) + 1) % N  # every item occurs
    target = rng.integers(0, 2, n).astype(np.float32)
    return Pairs(a, b, target, np.ones(n, np.float32), a, b)


def solved(kind: str, features: Features, parts: list[Part], penalty: float) -> np.ndarray:
    head = build_head(HeadConfig(kind, DIM, landmarks=N))
    assert convex.solve(head, features, parts, penalty).converged
    return score_items(head, features)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_ratings_are_ridge_regression(features: Features, penalty: float) -> None:
    rating = np.random.default_rng(3).normal(5, 2, N).astype(np.float32)
    scores = solved("linear", features, [Part("rating", Ratings(np.arange(N), rating))], penalty)
    x, y = standardised(features), rating - rating.mean()
    # mean (y - x w)^2 + penalty / 2 |w|^2
    w = np.linalg.solve(x.T @ x / N + penalty / 2 * np.eye(DIM), x.T @ y / N)
    np.testing.assert_allclose(scores, x @ w + rating.mean(), atol=1e-4)


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_preferences_are_logistic_regression_on_differences(features: Features, penalty: float) -> None:
    pairs = some_pairs(4)
    scores = solved("linear", features, [Part("preference", pairs)], penalty)
    x = standardised(features)
    model = LogisticRegression(C=1 / (penalty * len(pairs)), fit_intercept=False, tol=1e-9, max_iter=1000)
    model.fit(x[pairs.a] - x[pairs.b], pairs.target)
    expected = x @ model.coef_[0]
    np.testing.assert_allclose(scores - scores.mean(), expected - expected.mean(), atol=2e-4 * np.ptp(expected))


def test_a_kernel_head_is_kernel_ridge_regression(features: Features) -> None:
    rating = np.random.default_rng(3).normal(5, 2, N).astype(np.float32)
    part = Part("rating", Ratings(np.arange(N), rating))
    penalty = 2 / N
    scores = solved("kernel", features, [part], penalty)
    sides = [features.image_embeddings, features.text_embeddings[features.prompt]]
    x = [side.double().numpy() - side.double().numpy().mean(axis=0) for side in sides]
    x = np.concatenate([side / np.sqrt(2 * (side**2).sum(axis=1).mean()) for side in x], axis=1)
    kernel = np.array([[np.exp(-(((a - b) ** 2).sum())) for b in x] for a in x])
    centering = np.eye(N) - 1 / N
    centered = centering @ kernel @ centering
    alpha = penalty * N / 2 * np.trace(centered) / N
    expected = centered @ np.linalg.solve(centered + alpha * np.eye(N), rating - rating.mean()) + rating.mean()
    np.testing.assert_allclose(scores, expected, atol=2e-3 * np.ptp(expected))


def test_fewer_landmarks_than_items_come_close_and_more_change_nothing(features: Features) -> None:
    x = features.image_embeddings[:, 0].float().numpy()
    parts = [Part("rating", Ratings(np.arange(N), x))]
    scores = {}
    for landmarks in (N // 2, N, 2 * N):
        head = build_head(HeadConfig("kernel", DIM, landmarks=landmarks))
        convex.solve(head, features, parts, 1e-3)
        scores[landmarks] = score_items(head, features)
    np.testing.assert_allclose(scores[2 * N], scores[N], atol=5e-3)
    assert np.corrcoef(scores[N // 2], scores[N])[0, 1] > 0.9
    assert not np.allclose(scores[N // 2], scores[N], atol=5e-3)


def test_groups_and_mixed_tables_are_solved_by_their_weights(features: Features) -> None:
    quality = features.image_embeddings[:, 0].float().numpy()
    ranked = Groups(np.arange(0, N + 1, 3), np.arange(N), -quality)
    contrary = Ratings(np.arange(N), -quality)
    for weight, sign in ((0.001, 1), (1000.0, -1)):
        scores = solved("linear", features, [Part("ranking", ranked), Part("rating", contrary, weight)], 1e-3)
        assert sign * np.corrcoef(scores, quality)[0, 1] > 0.9


def test_the_penalty_is_chosen_by_the_loss_of_the_rows_kept_aside(features: Features) -> None:
    rng = np.random.default_rng(5)
    quality = features.image_embeddings[:, 0].float().numpy()
    noisy = (quality + rng.normal(0, 2, N)).astype(np.float32)
    train, aside = (Part("rating", Ratings(rows, noisy[rows])) for rows in (np.arange(40), np.arange(40, N)))
    a, b = rng.integers(40, N, (2, 500))
    pairs = Pairs(a, b, (np.sign(quality[a] - quality[b]) / 2 + 0.5).astype(np.float32), np.ones(500, np.float32), a, b)

    def new_head() -> Linear:
        head = build_head(HeadConfig("linear", DIM))
        assert isinstance(head, Linear)
        return head

    penalties = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    best, history = convex.choose_penalty(new_head, features, [convex.Round([train], pairs, aside)], penalties)
    for record in history:
        scores = solved("linear", features, [train], record["penalty"])
        right = np.sign(scores[a] - scores[b]) == np.sign(quality[a] - quality[b])
        assert record["validation_accuracy"] == pytest.approx(
            np.where(quality[a] == quality[b], 0.5, right).mean(), 0.01
        )
        assert record["validation_loss"] == pytest.approx(np.square(scores[40:] - noisy[40:]).mean(), 1e-3)
    losses = [record["validation_loss"] for record in history]
    assert history[np.argmin(losses)]["penalty"] == best
    assert len(history) == len(penalties) or len(history) - 1 - np.argmin(losses) == convex.PATIENCE


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (1, 5)])
def test_principal_axes_make_the_covariance_again(shape: tuple[int, int]) -> None:
    basis = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    basis -= basis.mean(dim=0)
    variance, axes = convex.principal_axes(basis)
    assert axes.shape == (shape[1], min(shape))
    np.testing.assert_allclose(axes.T @ axes, np.eye(min(shape)), atol=1e-12)
    covariance = np.cov(basis.double().numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose((axes * variance) @ axes.T, covariance, atol=1e-6)


def test_nothing_to_learn_from_is_said(features: Features) -> None:
    same = features_of(unit(1, 1).repeat(5, axis=0), unit(1, 2), np.arange(5), np.zeros(5, np.int64))
    ratings = Ratings(np.arange(5), np.arange(5, dtype=np.float32))
    with pytest.raises(InputError, match="all 5 items to train on have the same vectors"):
        convex.solve(build_head(HeadConfig("linear", DIM)), same, [Part("rating", ratings)], 1.0)
    with pytest.raises(InputError, match="take no margin and no reduction"):
        summed = Part("preference", some_pairs(1), options=LossOptions(reduction="sum"))
        convex.solve(build_head(HeadConfig("linear", DIM)), features, [summed], 1.0)
    with pytest.raises(FloatingPointError, match="objective is nan at penalty 1"):
        broken = Ratings(np.arange(5), np.full(5, np.nan, np.float32))
        other = features_of(unit(5, 1), unit(1, 2), np.arange(5), np.zeros(5, np.int64))
        convex.solve(build_head(HeadConfig("linear", DIM)), other, [Part("rating", broken)], 1.0)


def test_solving_repeats_to_the_bit(features: Features) -> None:
    part = Part("preference", some_pairs(6))
    first, again = (build_head(HeadConfig("kernel", DIM, landmarks=20)) for _ in range(2))
    for head in (first, again):
        torch.rand(1)
        convex.solve(head, features, [part], 1e-3)
    assert isinstance(first, Kernel) and isinstance(again, Kernel)
    assert torch.equal(first.weight, again.weight)
