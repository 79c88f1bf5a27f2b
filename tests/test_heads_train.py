"""Training finds a planted preference, repeats itself, and stops where it should."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from embed.spec import InputError
from heads.comparisons import Pairs
from heads.features import Features, features_of
from heads.models import HeadConfig, build_head
from heads.train import TrainConfig, fit, score_items

ITEMS, DIM = 120, 8
HEAD = HeadConfig("fusion", DIM, dropout=0.0, input_dropout=0.0, hidden=16)


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    x = rng.normal(size=(n, DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def features() -> Features:
    rng = np.random.default_rng(0)
    return features_of(unit(rng, ITEMS), unit(rng, 20), np.arange(ITEMS), rng.integers(0, 20, ITEMS))


def planted_pairs(features: Features, seed: int, n: int = 1500) -> Pairs:
    """The crowd prefers a larger first coordinate of the picture."""
    a, b = np.random.default_rng(seed).integers(0, ITEMS, (2, n))
    quality = features.image_embeddings[:, 0].float().numpy()
    target = (np.sign(quality[a] - quality[b]) / 2 + 0.5).astype(np.float32)
    return Pairs(a, b, target, np.ones(n, np.float32), a, b)


def test_a_planted_preference_is_found_and_repeats_to_the_bit(features: Features) -> None:
    train, validation = planted_pairs(features, 1), planted_pairs(features, 2)
    config = TrainConfig(batch_size=256, epochs=40, patience=40, weight_decay=0.0, learning_rate=1e-2)

    def run(seed: int) -> tuple[np.ndarray, list[dict[str, float]]]:
        torch.rand(seed + 1)  # whatever state torch's own generator is in
        head = build_head(HEAD, 0)
        history = fit(head, features, train, validation, TrainConfig(**{**config.to_json(), "seed": seed}))
        return score_items(head, features), history

    scores, history = run(0)
    quality = features.image_embeddings[:, 0].float().numpy()
    assert spearmanr(scores, quality).statistic > 0.95
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert max(record["validation_accuracy"] for record in history) > 0.95
    assert np.array_equal(run(0)[0], scores)
    assert not np.array_equal(run(1)[0], scores)


def test_the_best_epoch_is_kept(features: Features) -> None:
    train = planted_pairs(features, 1)
    opposite = planted_pairs(features, 2)
    opposite = Pairs(opposite.a, opposite.b, 1 - opposite.target, opposite.weight, opposite.a, opposite.b)
    head = build_head(HEAD, 0)
    config = TrainConfig(batch_size=256, epochs=8, patience=2, learning_rate=1e-2)
    history = fit(head, features, train, opposite, config)
    accuracy = [record["validation_accuracy"] for record in history]
    # Every step makes the contrary validation worse: the first epoch is best and two more are allowed.
    assert len(history) == 3
    again = build_head(HEAD, 0)
    fit(again, features, train, None, config, epochs=1)
    assert accuracy[0] == max(accuracy)
    assert np.array_equal(score_items(head, features), score_items(again, features))


def test_weights_decide_what_is_learned(features: Features) -> None:
    pairs = planted_pairs(features, 1)
    contrary = Pairs(*(np.concatenate([x, y]) for x, y in zip(
        (pairs.a, pairs.b, pairs.target, pairs.weight, pairs.a, pairs.b),
        (pairs.a, pairs.b, 1 - pairs.target, 9 * pairs.weight, pairs.a, pairs.b), strict=True)))  # fmt: skip
    head = build_head(HEAD, 0)
    fit(head, features, contrary, None, TrainConfig(batch_size=512, epochs=25, learning_rate=1e-2))
    quality = features.image_embeddings[:, 0].float().numpy()
    assert spearmanr(score_items(head, features), quality).statistic < -0.9


def test_nonsense_is_refused(features: Features) -> None:
    pairs = planted_pairs(features, 1)
    empty = Pairs(*(getattr(pairs, name)[:0] for name in pairs.__dataclass_fields__))
    with pytest.raises(InputError, match="0 pairs for training"):
        fit(build_head(HEAD), features, empty, pairs, TrainConfig())
    with pytest.raises(FloatingPointError, match="at epoch 0, step 0"):
        broken = Pairs(pairs.a, pairs.b, np.full(len(pairs), np.nan, np.float32), pairs.weight, pairs.a, pairs.b)
        fit(build_head(HEAD), features, broken, None, TrainConfig())
    with pytest.raises(InputError, match="some rows of the table have none"):
        score_items(build_head(HEAD), Features(features.image_embeddings, features.text_embeddings,
                                               features.image, torch.full_like(features.prompt, -1)))  # fmt: skip
    with pytest.raises(InputError, match=r"image vector in row 2 of the cache is not finite"):
        bad = np.zeros((4, DIM), np.float16)
        bad[2, 3] = np.nan
        features_of(bad, bad[:1], np.arange(4), np.zeros(4, np.int64))
    with pytest.raises(InputError, match=r"preference-inbatch .* --batch-size 4096 or less"):
        TrainConfig(loss="preference-inbatch")
    with pytest.raises(InputError, match=r"the loss triplet compares embeddings.*--head cosine"):
        fit(build_head(HEAD), features, pairs, None, TrainConfig(loss="triplet"))
    with pytest.raises(InputError, match="unknown loss 'preferences'; near names: preference"):
        TrainConfig(loss="preferences")
    with pytest.raises(InputError, match=r"TrainConfig\.epochs is 0; it must be positive"):
        TrainConfig(epochs=0)
