"""Every loss learns from the tables that fit it, on a batch equals its formula, and refuses the others."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from heads_tiny import make_cache, unit

from embed.spec import InputError
from heads import losses
from heads.cli.main import main
from heads.config import HeadConfig, LossOptions, TrainConfig, require_use
from heads.data.comparisons import Labels, Pairs
from heads.data.features import Features, features_of
from heads.models import Cosine, Head, build_head
from heads.training.objectives import OBJECTIVES, Groups, Ratings, examples_for, items_of
from heads.training.train import fit, score_items

N, PROMPTS = 60, 12
RNG = np.random.default_rng(0)
OWN = LossOptions()  # the losses' own choices


@pytest.fixture(scope="module")
def features() -> Features:
    return features_of(unit(N, 1), unit(PROMPTS, 2), np.arange(N), np.arange(N) % PROMPTS)


def quality(features: Features) -> np.ndarray:
    """What the crowd likes: the first coordinate of the picture."""
    return features.image_embeddings[:, 0].float().numpy().astype(float)


def labels_of(features: Features, kind: str) -> Labels:
    """All items of each prompt as a table of one kind."""
    prompt = features.prompt.numpy()
    items = np.arange(N)[:, None]
    values = {"group": prompt, "rank": -quality(features), "rating": quality(features)}
    if kind == "comparisons":
        items = np.array([(a, b) for a in range(N) for b in range(a + 1, N) if prompt[a] == prompt[b]])
        a, b = quality(features)[items.T]
        values = {"target": np.sign(a - b) / 2 + 0.5, "weight": np.ones(len(items))}
    return Labels(kind, np.arange(N), prompt, items, values, pa.table({"image": range(len(items))}), 0)


def moved(features: Features) -> Head:
    """A cosine head that is no longer zero-shot CLIP."""
    head = build_head(HeadConfig("cosine", 8))
    torch.nn.init.normal_(head.image_residual, 0, 0.2)
    return head


TABLES = {"ranking": "groups", "listwise": "groups", "rating": "ratings"}


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_every_loss_finds_what_was_planted(features: Features, loss: str) -> None:
    labels = labels_of(features, TABLES.get(loss, "comparisons"))
    examples = examples_for(loss, labels, np.arange(len(labels)), RNG)
    kind = "mlp" if loss == "rating" else "cosine"
    head = build_head(HeadConfig(kind, 8, reads="image"))
    config = TrainConfig(loss, 1e-2, weight_decay=0.0, batch_size=64, epochs=60)
    history = fit(head, features, examples, None, config)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    scores, prompt = score_items(head, features), features.prompt.numpy()
    right = [
        (scores[a] > scores[b]) == (quality(features)[a] > quality(features)[b])
        for a in range(N) for b in range(a) if prompt[a] == prompt[b]
    ]  # fmt: skip
    # In-batch negatives also ask which prompt a picture belongs to, of which these vectors know nothing.
    assert np.mean(right) > (0.75 if loss == "preference-inbatch" else 0.9)


@torch.no_grad()
def test_losses_of_groups_see_whole_groups(features: Features) -> None:
    head = moved(features)
    scores = head(**features.take(torch.arange(N), head.inputs))
    groups = Groups(
        np.array([0, 3, 5, 9]), np.array([7, 8, 9, 20, 3, 4, 40, 41, 7]), np.float32([1, 2, 2, 2, 1, 4, 3, 2, 1])
    )
    batch = np.array([2, 0])
    members = [5, 6, 7, 8, 0, 1, 2]
    item, rank = torch.tensor(groups.item[members]), torch.tensor(groups.rank[members])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    for name, formula in (("ranking", losses.ranking), ("listwise", losses.listwise)):
        value = OBJECTIVES[name].loss(head, features, groups, batch, OWN)
        torch.testing.assert_close(value, formula(scores[item], group, rank))
    ratings = Ratings(np.array([4, 9, 30]), np.float32([1, 2, 3]))
    value = OBJECTIVES["rating"].loss(head, features, ratings, np.array([2, 0]), OWN)
    torch.testing.assert_close(value, ((scores[[30, 4]] - torch.tensor([3.0, 1.0])) ** 2).mean())


@torch.no_grad()
def test_losses_of_embeddings_compare_projected_vectors(features: Features) -> None:
    head = moved(features)
    assert isinstance(head, Cosine)
    labels = labels_of(features, "comparisons")
    labels.values["target"][:3] = 0.5
    rows, batch = np.arange(10), np.array([4, 0, 2])
    images = head.embed_image(features.image_embeddings.float())
    prompts = head.embed_text(features.text_embeddings.float())[features.prompt]
    triplets = examples_for("triplet", labels, rows, RNG)
    assert len(triplets) == 7
    hinges = []
    for row in (rows[3:])[batch]:
        a, b = labels.items[row]
        better, worse = (a, b) if labels.values["target"][row] == 1 else (b, a)
        gap = (prompts[a] - images[better]).square().sum() - (prompts[a] - images[worse]).square().sum()
        hinges.append(max(float(gap) + 0.3, 0))
    assert float(OBJECTIVES["triplet"].loss(head, features, triplets, batch, OWN)) == pytest.approx(
        np.mean(hinges), abs=1e-5
    )

    pairs = examples_for("preference-inbatch", labels, rows, RNG)
    a, b = labels.items[batch].T
    expected = losses.preference_inbatch(
        images[a], images[b], prompts[a], torch.tensor(labels.values["target"][batch]).float(), logit_scale=100.0
    )
    value = OBJECTIVES["preference-inbatch"].loss(head, features, pairs, batch, OWN)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("distance", losses.DISTANCES)
def test_distance_and_margin_of_triplets_are_chosen(features: Features, distance: str) -> None:
    head = moved(features)
    assert isinstance(head, Cosine)
    images = head.embed_image(features.image_embeddings.float()).double()
    prompts = head.embed_text(features.text_embeddings.float()).double()[features.prompt]
    triplets = examples_for("triplet", labels_of(features, "comparisons"), np.arange(20), RNG)
    batch = np.array([3, 11, 0, 7])

    def apart(anchor: torch.Tensor, picture: torch.Tensor) -> float:
        squared = sum((float(x) - float(y)) ** 2 for x, y in zip(anchor, picture, strict=True))
        return {"squared_euclidean": squared, "euclidean": squared**0.5, "cosine": squared / 2}[distance]

    assert isinstance(triplets, Pairs)
    hinges = [
        max(apart(prompts[a], images[a]) - apart(prompts[a], images[b]) + 0.9, 0)
        for a, b in zip(triplets.a[batch], triplets.b[batch], strict=True)
    ]
    value = OBJECTIVES["triplet"].loss(head, features, triplets, batch, LossOptions(distance=distance, margin=0.9))
    assert float(value) == pytest.approx(np.mean(hinges), abs=1e-5)


@torch.no_grad()
def test_hpsv2_sums_and_its_hinge_are_chosen(features: Features) -> None:
    head = moved(features)
    scores = head(**features.take(torch.arange(N), head.inputs)).double()
    pairs = examples_for("preference", labels_of(features, "comparisons"), np.arange(30), RNG)
    assert isinstance(pairs, Pairs)
    pairs.target[:3], batch = 0.7, np.arange(2, 9)
    total = 0.0
    for i in batch:
        p = torch.softmax(scores[[pairs.a[i], pairs.b[i]]], 0)
        y = torch.tensor([pairs.target[i], 1 - pairs.target[i]])
        total += float((torch.xlogy(y, y) - torch.xlogy(y, p)).sum())
    value = OBJECTIVES["preference"].loss(head, features, pairs, batch, LossOptions(reduction="sum", margin=3.0))
    assert float(value) == pytest.approx(total, rel=1e-4)

    groups = examples_for("ranking", labels_of(features, "groups"), np.arange(N), RNG)
    assert isinstance(groups, Groups)
    hinges = [
        max(1.5 - float(scores[groups.item[i]] - scores[groups.item[j]]) * (groups.rank[j] - groups.rank[i]), 0)
        for first, last in ((groups.start[g], groups.start[g + 1]) for g in (4, 1))
        for i in range(first, last) for j in range(first, last) if groups.rank[i] < groups.rank[j]
    ]  # fmt: skip
    for reduction, expected in (("mean", np.mean(hinges)), ("sum", np.sum(hinges))):
        options = LossOptions(margin=1.5, reduction=reduction)
        value = OBJECTIVES["ranking"].loss(head, features, groups, np.array([4, 1]), options)
        assert float(value) == pytest.approx(expected, rel=1e-4)


def test_loss_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"distance is 'euclidian'; .* \(near names: euclidean"):
        LossOptions(distance="euclidian")
    with pytest.raises(InputError, match="reduction is 'total'; wanted mean or sum"):
        LossOptions(reduction="total")
    for margin in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"margin is .*; wanted more than 0"):
            LossOptions(margin=margin)
    require_use(LossOptions(margin=1.0, reduction="sum"), ["rating", "ranking"])
    with pytest.raises(InputError, match="--distance is for triplet and does nothing for the loss rating and ranking"):
        require_use(LossOptions(distance="cosine"), ["rating", "ranking"])


def test_groups_of_one_are_left_out(features: Features) -> None:
    labels = labels_of(features, "groups")
    rows = np.flatnonzero(np.isin(np.arange(N), [0, 12, 24, 1, 2, 14]))  # of prompts 0, 0, 0, 1, 2, 2
    groups = examples_for("listwise", labels, rows, RNG)
    assert isinstance(groups, Groups)
    assert (len(groups), groups.item.tolist(), groups.start.tolist()) == (2, [0, 12, 24, 2, 14], [0, 3, 5])
    assert items_of(groups).tolist() == [0, 2, 12, 14, 24]


def test_a_loss_refuses_a_table_that_it_cannot_use(features: Features) -> None:
    comparisons, groups = labels_of(features, "comparisons"), labels_of(features, "groups")
    rows = np.arange(10)
    for loss in ("ranking", "listwise"):
        with pytest.raises(InputError, match="need a table with ranks, and this one has comparisons"):
            examples_for(loss, comparisons, rows, RNG)
    with pytest.raises(InputError, match=r"need.* a table with ratings or counts, and this one has groups"):
        examples_for("rating", groups, rows, RNG)
    for loss in ("triplet", "preference-inbatch"):
        comparisons.items[3] = (0, 1)  # of two prompts
        with pytest.raises(InputError, match="1 of 10 pairs do not compare two pictures of one prompt"):
            examples_for(loss, comparisons, rows, RNG)


def test_idle_batches_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts that are their own best pictures, and worst ones opposite: no triplet is ever active."""
    monkeypatch.chdir(tmp_path)
    names, prompts = [f"p{i}.png" for i in range(40)], [f"prompt {i}" for i in range(20)]
    cache = make_cache(tmp_path / "cache", names, prompts)
    closest = cache.image_embeddings().astype(float) @ cache.text_embeddings().astype(float).T
    table = [
        {"prompt": f"prompt {j}", "pos_path": f"p{2 * j + swap}.png", "neg_path": f"p{2 * j + 1 - swap}.png"}
        for j in range(20)
        for swap in [int(closest[2 * j + 1, j] > closest[2 * j, j])]
        if abs(closest[2 * j, j] - closest[2 * j + 1, j]) > 0.2  # more than the margin of 0.15
    ]
    Path("table.json").write_text(json.dumps(table))
    options = ["--data", "table.json", "--out", "head", "--head", "cosine", "--folds", "2", "--epochs", "2", "--json"]
    assert main(["train", "cache", *options, "--loss", "triplet"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("changed nothing: every triplet in them is right by the margin") == 1
    result = json.loads(captured.out)
    assert result["pair_accuracy"]["value"] == result["zero_shot_pair_accuracy"]["value"] == 1.0


def test_counts_are_rated_by_their_log_rate_within_their_group() -> None:
    counts, groups = np.array([0.0, 9, 99, 5, 7]), np.array([4, 4, 4, 1, 1])
    labels = Labels(
        "counts", np.arange(5), np.arange(5), np.arange(5)[:, None], {"count": counts, "group": groups}, pa.table({}), 0
    )
    rng = np.random.default_rng(0)
    ratings = examples_for("rating", labels, np.array([4, 0, 1, 2]), RNG)
    assert isinstance(ratings, Ratings)
    assert ratings.item.tolist() == [4, 0, 1, 2]
    # The posterior of a rate after a count is Gamma(count + 1): its mean log, by drawing from it.
    drawn = np.log(rng.gamma(counts[:3, None] + 1, size=(3, 200_000))).mean(axis=1)
    np.testing.assert_allclose(ratings.rating, [0, *(drawn - drawn.mean())], atol=0.01)

    shown = Labels(
        "counts", np.arange(2), np.arange(2), np.arange(2)[:, None],
        {"count": np.array([2.0, 1]), "exposures": np.array([10.0, 30])}, pa.table({}), 0,
    )  # fmt: skip
    ratings = examples_for("rating", shown, np.arange(2), RNG)
    assert isinstance(ratings, Ratings)
    rate = rng.beta([[3.0], [2.0]], [[9.0], [30.0]], size=(2, 200_000))
    np.testing.assert_allclose(ratings.rating, np.log(rate / (1 - rate)).mean(axis=1), atol=0.01)
