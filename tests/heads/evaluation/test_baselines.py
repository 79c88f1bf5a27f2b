"""Baselines: what a blinded head cannot see, and the prior against a loop."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch
from heads_labels import GROUPS, SIZE, comparisons, single
from sklearn.linear_model import RidgeCV

from embed.spec import InputError
from heads.config import HeadConfig, Protocol, TrainConfig
from heads.data.comparisons import Labels
from heads.data.features import Features
from heads.data.split import Split, rows_apart_from
from heads.evaluation.baselines import (
    image_only,
    prior_columns,
    prior_scores,
    prompt_only,
    ridge_scores,
    trained_scores,
)
from heads.evaluation.evaluate import fast_scores
from heads.evaluation.measured import measure_pairs
from heads.metrics import pair_credit
from heads.models import build_head
from heads.training.train import score_items

RNG = np.random.default_rng(3)
N, DIM = 60, 6


@pytest.fixture(autouse=True)
def _same_draws_for_each_test() -> None:
    global RNG
    RNG = np.random.default_rng(3)


def unit(rows: int, dim: int = DIM) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(RNG.normal(size=(rows, dim))).float(), dim=-1)


def features(pooled: bool = True) -> Features:
    """One picture and one prompt an item."""
    rows = torch.arange(N)
    return Features(unit(N), unit(N), rows, rows, unit(N, 4) if pooled else None)


def test_a_blinded_head_does_not_see_the_side_it_is_denied() -> None:
    head = build_head(HeadConfig("fusion", DIM, 4, hidden=8))
    for parameter in head.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    whole = features()
    shuffled = torch.from_numpy(RNG.permutation(N))
    for blind, side in ((image_only, "prompt"), (prompt_only, "image")):
        changed = replace(whole, **{side: shuffled})
        assert not np.allclose(score_items(head, whole), score_items(head, changed), atol=1e-3)
        np.testing.assert_array_equal(score_items(head, blind(whole)), score_items(head, blind(changed)))
        kept = replace(whole, **{{"prompt": "image", "image": "prompt"}[side]: shuffled})
        assert not np.allclose(score_items(head, blind(whole)), score_items(head, blind(kept)), atol=1e-3)
    assert image_only(whole).text_embeddings.norm().item() == pytest.approx(1)


def test_zero_shot_scores_are_those_of_an_untrained_cosine_head() -> None:
    whole = features()
    labels = comparisons(RNG.choice([0.0, 1.0], N // 2), np.arange(N // 2))
    measured = measure_pairs(labels, Split(np.zeros(N // 2, np.int64), np.arange(N // 2), 1), Protocol())
    got = fast_scores(measured, whole, [build_head(HeadConfig("cosine", DIM))])
    np.testing.assert_allclose(got["zero_shot"], got["head"], rtol=1e-5)
    assert np.ptp(got["zero_shot"]) > 50  # logits, not cosines
    assert "zero_shot" not in fast_scores(measured, replace(whole, prompt=-1 + 0 * whole.prompt),
                                          [build_head(HeadConfig("linear", DIM))])  # fmt: skip


def test_a_head_that_reads_prompts_alone_finds_a_leak() -> None:
    """Ratings that the prompt gives away: the prompt-only head orders held-out pairs, the image-only head cannot."""
    whole = features(pooled=False)
    rating = 3 * whole.text_embeddings[:, 0].numpy().astype(float)
    table = pa.table({"image": [str(i) for i in range(N)]})
    labels = Labels("counts", np.arange(N), np.arange(N), np.arange(N)[:, None],
                    {"count": np.exp(4 + rating)}, table, 0)  # fmt: skip
    split = Split(np.arange(N) % 3, np.arange(N), 3)
    config = HeadConfig("fusion", DIM, hidden=16, dropout=0.0, input_dropout=0.0)
    training = vars(TrainConfig(epochs=6, learning_rate=0.02, weight_decay=0.01, batch_size=128))
    manifest = {"head": vars(config), "training": {**training, "min_ratio": None, "epochs_run": 6}}
    measured = measure_pairs(labels, split, Protocol(min_ratio=1.5))
    accuracy = {}
    for name in ("image_only", "prompt_only"):
        scores = trained_scores(name, labels, whole, split, manifest)
        accuracy[name] = np.nanmean(pair_credit(*measured.of_pairs(scores), measured.pairs.target))
    assert accuracy["prompt_only"] > 0.7 > 0.65 > accuracy["image_only"]
    # A head that reads pictures as pooled features alone reads both sides too.
    pooled = replace(whole, image_pooled=unit(N, 4))
    kernel = {"head": vars(HeadConfig("kernel", DIM, 4, landmarks=16)), "training": manifest["training"]}
    assert "image_embedding" not in build_head(HeadConfig("kernel", DIM, 4)).inputs
    scores = trained_scores("prompt_only", labels, pooled, split, kernel)
    assert np.nanmean(pair_credit(*measured.of_pairs(scores), measured.pairs.target)) > 0.7
    linear = {"head": vars(HeadConfig("linear", DIM)), "training": manifest["training"]}
    assert trained_scores("prompt_only", labels, whole, split, linear) is None


def test_the_prior_is_the_mean_of_training_rows() -> None:
    count = RNG.integers(0, 1000, GROUPS * SIZE).astype(float)
    style = [f"s{i}" for i in RNG.integers(0, 5, GROUPS * SIZE)]
    style[0] = "only here"
    labels = single("counts", count, style=style)
    prompt = labels.prompt
    split = Split(np.where(prompt % 3 == 2, -1, prompt % 3), prompt, 2)
    # A picture that stands in a row held out and in one that is not: the second is no row of training.
    labels.image[10] = labels.image[0]
    labels.image[11] = labels.image[5]
    pictures = [{int(labels.image[i]) for i in range(len(count)) if split.fold[i] == fold} for fold in (0, 1)]
    sharing = [{i for i in range(len(count)) if labels.image[i] in held_out} for held_out in pictures]
    assert split.fold[10] == split.fold[11] == -1 and split.fold[0] == 0 and split.fold[5] == 1
    got = prior_scores(labels, split, "style")
    for row in range(len(count)):
        if split.fold[row] < 0:
            assert np.isnan(got[row, 0])
            continue
        train = [i for i in range(len(count)) if split.fold[i] != split.fold[row] and i not in sharing[split.fold[row]]]
        same = [i for i in train if style[i] == style[row]] or train
        assert got[row, 0] == pytest.approx(np.mean(np.log1p(count[same])))


def test_columns_of_few_values_are_priors() -> None:
    n = GROUPS * SIZE
    columns = {"maker": ["x", "y"] * (n // 2), "one": ["x"] * n, "year": [i % 24 for i in range(n)],
               "id": list(range(n)), "list": [[1]] * n, "many": [i % 25 for i in range(n)],
               "a,b": ["x", "y"] * (n // 2), "took": [timedelta(i % 3) for i in range(n)]}  # fmt: skip
    assert prior_columns(single("ratings", np.ones(n), **columns)) == ["maker", "year"]
    columns["of_group"] = [f"g{i // SIZE}" for i in range(n)]  # every pair within a group has one value
    columns["of_some"] = ["g1", *columns["of_group"][1:]]
    assert prior_columns(single("groups", np.ones(n), **columns)) == ["maker", "year", "of_some"]
    sides = {"model_0": ["m", "n"] * 20, "model_1": ["n", "m"] * 20, "pos_by": ["p", "q"] * 20,
             "neg_by": ["q", "p"] * 20, "style": ["s", "t"] * 20}  # fmt: skip
    found = prior_columns(comparisons(np.ones(40), np.arange(40), **sides))
    assert sorted(found) == ["model_0,model_1", "pos_by,neg_by"]


@pytest.mark.parametrize("kind", ["ratings", "comparisons"])
def test_ridge_regression_sees_training_rows_alone_and_is_scikit_learns(kind: str) -> None:
    pictures = unit(GROUPS * SIZE, 12)
    liked = pictures[:, 0].numpy() + RNG.normal(0, 0.1, GROUPS * SIZE)
    if kind == "ratings":
        labels = single(kind, liked)
    else:
        labels = comparisons((liked[::2] > liked[1::2]).astype(float), np.arange(60))
    split = Split(np.arange(len(labels)) // SIZE % 3 - 1, np.arange(len(labels)), 2)
    # The first picture held out stands in the last row too, which is in training and must be left out.
    labels.image[labels.items[-1, 0]] = labels.image[labels.items[np.flatnonzero(split.fold == 0)[0], 0]]
    assert split.fold[-1] == 1
    features = Features(unit(120), unit(120), torch.arange(120), torch.arange(120), pictures)
    if kind == "ratings":
        liked[-1] = labels.values["rating"][-1] = np.nan  # what nobody knows teaches nothing
    got = ridge_scores(labels, features, split)
    assert np.isnan(got[split.fold < 0]).all()
    for fold in (0, 1):
        test = np.flatnonzero(split.fold == fold)
        train = rows_apart_from(labels, test)
        train = train[np.isfinite(liked[train])] if kind == "ratings" else train
        assert 20 < len(train) < len(labels) and (fold == 1 or len(labels) - 1 not in train)
        x, means = pictures.numpy()[labels.image], np.zeros(12)
        if kind == "ratings":
            inputs, wanted = x[train], liked[train]
            means = inputs.mean(0)
        else:
            inputs = x[labels.items[train, 0]] - x[labels.items[train, 1]]
            wanted = 2 * labels.values["target"][train] - 1
        model = RidgeCV(np.logspace(0, 6, 13), fit_intercept=kind == "ratings")
        model.fit((inputs - means) / inputs.std(0), wanted)
        np.testing.assert_allclose(got[test], model.predict((x - means) / inputs.std(0))[labels.items[test]], atol=1e-4)
    # Without pooled features it reads the projected ones, and what it has not seen changes nothing.
    projected = ridge_scores(labels, Features(pictures, unit(120), torch.arange(120), torch.arange(120)), split)
    np.testing.assert_array_equal(projected, got)


def test_the_prior_of_comparisons_is_how_often_each_side_won() -> None:
    target = RNG.choice([0.0, 0.5, 1.0], 40)
    models = [[f"m{i}" for i in RNG.integers(0, 3, 40)] for _ in range(2)]
    labels = comparisons(target, np.arange(40), a=models[0], b=models[1])
    split = Split(np.arange(40) % 2, np.arange(40), 2)
    got = prior_scores(labels, split, "a,b")
    won = [
        w
        for i in range(1, 40, 2)
        for w, model in ((target[i], models[0][i]), (1 - target[i], models[1][i]))
        if model == models[1][0]
    ]
    assert got[0, 1] == pytest.approx(np.mean(won))
    with pytest.raises(InputError, match="two columns A,B"):
        prior_scores(labels, split, "a")
    with pytest.raises(InputError, match="one column of the table, which has image"):
        prior_scores(single("ratings", np.ones(GROUPS * SIZE)), split, "style")
