"""Training finds a planted preference, repeats itself, and stops where it should."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from embed.spec import InputError
from heads.config import HeadConfig, TrainConfig
from heads.data.comparisons import Pairs
from heads.data.features import Features, features_of
from heads.models import build_head
from heads.training import train
from heads.training.checkpoint import Checkpoints
from heads.training.objectives import Part, Ratings
from heads.training.train import _order, fit, score_items

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
        history = fit(head, features, train, validation, replace(config, seed=seed))
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


def test_losses_are_summed_and_not_averaged_where_that_is_chosen(features: Features) -> None:
    pairs = planted_pairs(features, 1)
    weighted = Pairs(pairs.a, pairs.b, pairs.target, np.full(len(pairs), 0.5, np.float32), pairs.a, pairs.b)
    configs = [TrainConfig(epochs=1, batch_size=16384, reduction=reduction) for reduction in (None, "mean", "sum")]
    first = [fit(build_head(HEAD, 0), features, weighted, None, config)[0]["train_loss"] for config in configs]
    assert first[0] == first[1] == pytest.approx(first[2] / (0.5 * len(pairs)), rel=1e-5)


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
        TrainConfig(loss="preference-inbatch", batch_size=5000)
    assert TrainConfig(loss="preference-inbatch").sized(10**6).batch_size == 128
    with pytest.raises(InputError, match=r"the loss triplet compares embeddings.*--head cosine"):
        fit(build_head(HEAD), features, pairs, None, TrainConfig(loss="triplet"))
    with pytest.raises(InputError, match=r"loss is 'preferences'; .* \(near names: preference"):
        TrainConfig(loss="preferences")
    with pytest.raises(InputError, match="epochs is 0; wanted at least 1"):
        TrainConfig(epochs=0)


class Killed(Exception):
    """The process ends here."""


def kill_after(epochs: int) -> Callable[[int, dict[str, float]], None]:
    def observe(epoch: int, record: dict[str, float]) -> None:
        if epoch + 1 == epochs:
            raise Killed

    return observe


@pytest.mark.parametrize("killed_after", [2, 3, 5])
def test_a_killed_training_goes_on_to_the_same_bytes(features: Features, tmp_path: Path, killed_after: int) -> None:
    train, validation = planted_pairs(features, 1), planted_pairs(features, 2)
    shape = HeadConfig("fusion", DIM, hidden=16)  # with dropout, which draws random numbers
    config = TrainConfig(batch_size=256, epochs=8, patience=2, learning_rate=1e-2)
    whole = build_head(shape, 0)
    expected = fit(whole, features, train, validation, config)
    assert len(expected) > killed_after

    saved = Checkpoints(tmp_path, "this", every_s=0)
    with pytest.raises(Killed):
        fit(build_head(shape, 0), features, train, validation, config, None, kill_after(killed_after), saved)
    seen: list[int] = []
    head = build_head(shape, 0)
    history = fit(
        head,
        features,
        train,
        validation,
        config,
        None,
        lambda epoch, _: seen.append(epoch),
        Checkpoints(tmp_path, "this"),
    )
    # The epoch in which it was killed had not been saved.
    assert seen == list(range(killed_after - 1, len(expected)))
    assert history == expected
    assert all(torch.equal(x, y) for x, y in zip(head.parameters(), whole.parameters(), strict=True))


def test_several_tables_teach_by_their_weights_in_every_batch(features: Features) -> None:
    pairs = planted_pairs(features, 1)
    quality = features.image_embeddings[:, 0].float().numpy()
    contrary = Ratings(np.arange(ITEMS), -5 * quality)
    for weight, sign in ((0.001, 1), (100.0, -1)):
        head = build_head(HEAD, 0)
        config = TrainConfig(batch_size=256, epochs=25, learning_rate=1e-2)
        parts = [Part("preference", pairs), Part("rating", contrary, weight)]
        history = fit(head, features, parts, None, config)
        assert sign * spearmanr(score_items(head, features), quality).statistic > 0.8
        assert len(history) == 25
    # One table of a single example still has its place in one batch of every epoch.
    lone = Part("rating", Ratings(np.array([0]), np.float32([3])))
    fit(build_head(HEAD, 0), features, [Part("preference", pairs), lone], None, TrainConfig(batch_size=1, epochs=1))


def test_batches_hold_whole_prompts_so_that_pictures_are_scored_once(features: Features) -> None:
    prompt = features.prompt.numpy()
    a, b = np.array([(a, b) for a in range(ITEMS) for b in range(a) if prompt[a] == prompt[b]]).T
    one = np.ones(len(a), np.float32)
    of_prompt = Part("preference", Pairs(a, b, one, one, a, b))
    torch.manual_seed(0)
    order, other = _order(of_prompt, features), _order(of_prompt, features)
    assert sorted(order) == list(range(len(a)))
    assert (np.diff(prompt[a[order]]) != 0).sum() == len(np.unique(prompt)) - 1
    assert not np.array_equal(prompt[a[order]], prompt[a[other]])
    inside = order[prompt[a[order]] == prompt[a[order[0]]]]
    assert not (np.diff(inside) > 0).all(), "the pairs of a prompt are drawn anew as well"
    # In-batch negatives, and pairs across prompts, are shuffled one by one.
    scattered = _order(Part("preference-inbatch", of_prompt.examples), features)
    assert (np.diff(prompt[a[scattered]]) != 0).mean() > 0.8
    across = planted_pairs(features, 1)
    assert sorted(_order(Part("preference", across), features)) == list(range(len(across)))


def test_a_head_takes_its_means_from_no_more_items_than_fit(
    features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, config = planted_pairs(features, 1), TrainConfig(epochs=1, learning_rate=1e-9)
    centers = []
    for most in (10**9, 7):
        monkeypatch.setattr(train, "PREPARE_ITEMS", most)
        head = build_head(HeadConfig("fusion", features.image_embeddings.shape[1]))
        fit(head, features, pairs, None, config)
        centers.append(head.center / head.scale)
    items = np.unique([pairs.a, pairs.b])
    for center, some in zip(centers, (items, items[:: -(-len(items) // 7)]), strict=True):
        image = features.image_embeddings[features.image[some]]
        torch.testing.assert_close(center[: image.shape[1]], image.float().mean(dim=0))


def test_a_loss_that_is_no_number_names_its_step_and_batch(features: Features) -> None:
    pairs = planted_pairs(features, 1)
    target = pairs.target.copy()
    target[77] = np.nan
    broken = Pairs(pairs.a, pairs.b, target, pairs.weight, pairs.a, pairs.b)
    with pytest.raises(InputError, match=r"the loss is nan at epoch 0, step \d+, of a batch of 1 pairs, .* number 77;"):
        fit(build_head(HEAD), features, broken, None, TrainConfig(batch_size=1))
