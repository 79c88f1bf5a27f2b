"""A blend is the mean of the regressions that scikit-learn solves, of every kind of label, and needs no prompts."""

from dataclasses import replace

import numpy as np
import pytest
from heads_labels import comparisons
from heads_planted import accuracy, made
from heads_tiny import DIM, unit
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from embed.spec import InputError
from heads.config import HeadConfig, SplitConfig, TrainConfig
from heads.data.features import Features, features_of
from heads.data.split import split_rows
from heads.models import Blend, build_head
from heads.training.auto import BLEND_ROWS, choose_head
from heads.training.blend import Choice, Member, Rows, Table, fit_blend, rows_of
from heads.training.folds import Task, train_heads
from heads.training.train import score_items

N = 90


@pytest.fixture(scope="module")
def features() -> Features:
    pooled = np.hstack([unit(N, 4), unit(N, 5)])[:, :12]
    return features_of(unit(N, 1), unit(N, 2), np.arange(N), np.arange(N), pooled)


def rated(value: np.ndarray) -> Rows:
    n = len(value)
    return Rows(np.arange(n), value, np.zeros(n, np.int64), np.full(n, 1 / n))


def standardised(vectors: np.ndarray) -> np.ndarray:
    x = vectors.astype(np.float64)
    x = x - x.mean(axis=0)
    return x / np.sqrt((x**2).sum(axis=1).mean())


def installed(features: Features, rows: Rows, chosen: list[Choice]) -> np.ndarray:
    head = build_head(HeadConfig("blend", DIM, 12, landmarks=N))
    assert isinstance(head, Blend)
    Table(head, features, rows, []).install(head, rows, chosen)
    return score_items(head, features)


def test_a_ridge_member_is_scikit_learns_ridge(features: Features) -> None:
    value = np.random.default_rng(3).normal(5, 2, N)
    kinds, penalty = ("image_pooled", "text_embedding"), 1e-2
    scores = installed(features, rated(value), [Choice(Member(kinds, None), penalty, 0.0, [])])
    assert features.image_pooled is not None
    blocks = [features.image_pooled.numpy(), features.text_embeddings.numpy()]
    x = np.hstack([standardised(block) for block in blocks]) / np.sqrt(2)  # of mean square norm 1
    expected = Ridge(alpha=penalty * N).fit(x, value).predict(x)
    np.testing.assert_allclose(scores, expected, atol=2e-3 * np.ptp(expected))


def test_a_kernel_member_is_kernel_ridge_and_the_head_is_the_mean(features: Features) -> None:
    value = np.random.default_rng(3).normal(0, 2, N)
    member = Member(("image_embedding",), 2.0)
    x = standardised(features.image_embeddings.numpy())
    kernel = np.array([[np.exp(-((a - b) ** 2).sum() / 2.0) for b in x] for a in x])
    centering = np.eye(N) - 1 / N
    alpha = 1e-2 * np.trace(centering @ kernel @ centering)
    centered = centering @ kernel @ centering
    model = KernelRidge(alpha=alpha, kernel="precomputed").fit(centered, value - value.mean())
    expected = model.predict(centered)
    scores = installed(features, rated(value), [Choice(member, 1e-2, 0.0, [])])
    np.testing.assert_allclose(scores - scores.mean(), expected - expected.mean(), atol=0.02 * np.ptp(expected))
    linear = Choice(Member(("image_embedding",), None), 1e-2, 0.0, [])
    other = installed(features, rated(value), [linear])
    both = installed(features, rated(value), [linear, Choice(member, 1e-2, 0.0, [])])
    np.testing.assert_allclose(both, (scores + other) / 2, atol=1e-4)


def test_comparisons_are_a_ridge_on_differences(features: Features) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, N, (2, 200))
    b = np.where(a == b, (a + 1) % N, b)
    a[:N], b[:N] = np.arange(N), (np.arange(N) + 1) % N  # every item occurs
    target = rng.choice([0.0, 0.5, 1.0], 200)
    labels = comparisons(target, np.zeros(200, np.int64))
    labels = replace(labels, items=np.stack([a, b], axis=1), image=np.arange(N), prompt=np.arange(N))
    rows = rows_of(labels, np.arange(200))
    scores = installed(features, rows, [Choice(Member(("image_embedding",), None), 1e-2, 0.0, [])])
    x = standardised(features.image_embeddings.numpy())
    d = x[a] - x[b]
    # A pair's squared error about its mean is half that of its difference: 4 (target - 1/2).
    moments = d.T @ d / 4 / len(d)
    w = np.linalg.solve(moments + 1e-2 * np.trace(moments) * np.eye(DIM), d.T @ (4 * target - 2) / 4 / len(d))
    np.testing.assert_allclose(scores - scores.mean(), x @ w - (x @ w).mean(), atol=5e-3 * np.ptp(x @ w))


@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize("kind", ["comparisons", "groups", "ratings", "counts"])
def test_a_planted_direction_is_found_in_every_kind_of_table(kind: str, prompts: bool) -> None:
    labels, features = made(kind, prompts, 600)
    reads = {} if prompts else {"reads": "image"}
    assert accuracy(labels, features, "blend", **reads) > 0.9


def test_scores_keep_the_scale_of_ratings() -> None:
    labels, features = made("ratings", True, shift=4)
    split = split_rows(labels, SplitConfig(folds=3))
    config = HeadConfig("blend", features.dim)
    trained = train_heads(Task(labels, features, split, config, TrainConfig("rating")))
    scores = score_items(trained.head, features)
    assert scores.mean() == pytest.approx(4, abs=0.1)
    assert scores.std() == pytest.approx(labels.values["rating"].std(), rel=0.2)


def test_text_is_read_only_where_rows_kept_aside_gain_by_it(features: Features) -> None:
    found = {}
    for side in ("image", "text"):
        vectors = features.image_embeddings if side == "image" else features.text_embeddings
        value = vectors.numpy()[:, 0].astype(np.float64)
        rounds = []
        for part in np.array_split(np.arange(N), 5):
            left, aside = np.setdiff1d(np.arange(N), part), part
            rounds.append(tuple(
                Rows(own, value[own], np.zeros(len(own), np.int64), np.full(len(own), 1 / len(own)))
                for own in (left, aside)
            ))  # fmt: skip
        head = build_head(HeadConfig("blend", DIM, 12, landmarks=N))
        assert isinstance(head, Blend)
        chosen, _ = fit_blend(head, features, rated(value), rounds)
        found[side] = chosen["reads_text"]
    assert found["text"] == 1.0


def test_a_blend_refuses_what_it_cannot_learn_from() -> None:
    labels, features = made("ratings", True, 60)
    task = Task(
        labels, features, split_rows(labels, SplitConfig()), HeadConfig("blend", features.dim), TrainConfig("triplet")
    )
    with pytest.raises(InputError, match="only the cosine head has"):
        train_heads(task)
    with pytest.raises(InputError, match="losses of ranked groups need a table with ranks"):
        train_heads(replace(task, config=TrainConfig("ranking")))
    with pytest.raises(InputError, match="takes no margin and no reduction"):
        train_heads(replace(task, config=TrainConfig("preference", reduction="sum")))
    same = replace(features, image_embeddings=features.image_embeddings[:1].repeat(60, 1),
                   text_embeddings=features.text_embeddings[:1].repeat(60, 1))  # fmt: skip
    with pytest.raises(InputError, match="have the same vectors; nothing can be learned"):
        train_heads(replace(task, features=same, config=TrainConfig("rating")))


def test_auto_goes_by_rows_prompts_loss_and_options() -> None:
    labels, features = made("ratings", True, 60)
    assert choose_head([labels], features, ["preference"], {}).head == "blend"
    bare = replace(labels, prompt=np.full(60, -1))
    choice = choose_head([bare], features, ["preference"], {})
    assert (choice.head, choice.reads) == ("blend", "image") and "no prompt" in choice.why
    many = replace(labels, items=np.zeros((BLEND_ROWS + 1, 1), np.int64))
    assert choose_head([many], features, ["preference"], {}).head == "fusion"
    assert choose_head([labels, many], features, ["rating", "rating"], {}).head == "fusion"
    assert choose_head([labels], features, ["triplet"], {}).head == "cosine"
    choice = choose_head([labels], features, ["preference"], {"--hidden": ("fusion",), "--epochs": ("fusion", "mlp")})
    assert choice.head == "fusion" and "--hidden and --epochs" in choice.why
    with pytest.raises(InputError, match="no head reads --hidden, --penalty together"):
        choose_head([labels], features, ["preference"], {"--hidden": ("fusion",), "--penalty": ("kernel",)})
