"""Connect losses with tables: which tables a loss fits, its examples, and its value on a batch of them.

The formulas are in `losses`. Here items become scores or embeddings, each once per batch even if several examples share
it. A loss of scores depends only on the scores, so that a solver can use it without a head.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from embed.arrays import Float32s, Ints
from embed.spec import InputError
from heads import losses
from heads.config import LossOptions
from heads.data.comparisons import Labels, Pairs, exposures_of, pairs_among
from heads.data.counts import expected_log_rate
from heads.data.features import Features, moved
from heads.models import Cosine, Head


@dataclass(frozen=True)
class Groups:
    """Ranked groups of two items or more. Group i has the members start[i] to start[i + 1]."""

    start: Ints  # (g + 1,)
    item: Ints  # (m,)
    rank: Float32s  # (m,) the lowest is the best

    def __len__(self) -> int:
        return len(self.start) - 1

    def take(self, batch: Ints) -> "Groups":
        """Only the groups with the numbers `batch`."""
        members = np.concatenate([np.arange(self.start[i], self.start[i + 1]) for i in batch])
        start = np.concatenate([[0], np.cumsum(np.diff(self.start)[batch])])
        return Groups(start, self.item[members], self.rank[members])


@dataclass(frozen=True)
class Ratings:
    """Items with the value that their score should have."""

    item: Ints  # (m,)
    rating: Float32s  # (m,)

    def __len__(self) -> int:
        return len(self.item)

    def take(self, batch: Ints) -> "Ratings":
        """Only the ratings with the numbers `batch`."""
        return Ratings(self.item[batch], self.rating[batch])


Examples = Pairs | Groups | Ratings

# The items of a batch (repeated if examples share one) and the loss as a function of their scores. For objectives that
# embed: the items a, then the items b, and the loss as a function of `_embeddings`.
Bound = tuple[Ints, Callable[..., Tensor]]


@dataclass(frozen=True)
class Objective:
    """A loss with its data. `examples(labels, rows, rng, min_ratio)` makes the examples of some rows of a table.
    `bind(examples, batch, options)` gives the loss of the examples with the numbers `batch` (b,), without a head."""

    unit: str
    examples: Callable[[Labels, Ints, np.random.Generator, float | None], Examples]
    bind: Callable[[Examples, Ints, LossOptions], Bound]
    embeds: bool = False  # it compares vectors of pictures and prompts: only for the cosine head

    def loss(self, head: Head, features: Features, examples: Examples, batch: Ints, options: LossOptions) -> Tensor:
        """The loss, a scalar, of the examples with the numbers `batch` (b,)."""
        items, value = self.bind(examples, batch, options)
        return value(*_embeddings(head, features, items)) if self.embeds else value(_scores(head, features, items))


@dataclass(frozen=True)
class Part:
    """The part of one table in a training: its examples, their loss, and its weight."""

    loss: str
    examples: Examples
    weight: float = 1.0
    options: LossOptions = field(default_factory=LossOptions)


def examples_for(
    loss: str, labels: Labels, rows: Ints, rng: np.random.Generator, min_ratio: float | None = None
) -> Examples:
    """The examples that a loss makes of `rows`. Raise InputError if the table is not of the kind that it needs."""
    return OBJECTIVES[loss].examples(labels, rows, rng, min_ratio)


def require_head(loss: str, head: Head) -> None:
    """Raise InputError if the loss needs embeddings and the head has none."""
    if OBJECTIVES[loss].embeds and not isinstance(head, Cosine):
        raise InputError(f"the loss {loss} compares embeddings, which only the cosine head has; choose --head cosine")


def items_of(examples: Examples) -> Ints:
    """The different items among the examples."""
    return np.unique([examples.a, examples.b] if isinstance(examples, Pairs) else examples.item)


def _pairs_of_one_prompt(labels: Labels, rows: Ints, rng: np.random.Generator, min_ratio: float | None) -> Pairs:
    pairs = pairs_among(labels, rows, rng, min_ratio)
    prompt_a, prompt_b = labels.prompt[pairs.a], labels.prompt[pairs.b]
    if bad := int(((prompt_a != prompt_b) | (prompt_a < 0)).sum()):
        raise InputError(
            f"{bad} of {len(pairs)} pairs do not compare two pictures of one prompt, as a loss of embeddings needs;"
            " choose --loss preference"
        )
    return pairs


def _triplets(labels: Labels, rows: Ints, rng: np.random.Generator, min_ratio: float | None) -> Pairs:
    """Pairs whose first item is the preferred one. Ties are left out."""
    pairs = _pairs_of_one_prompt(labels, rows, rng, min_ratio)
    pairs = pairs.take(np.flatnonzero(pairs.target != 0.5))
    a_wins = pairs.target > 0.5
    return replace(
        pairs,
        a=np.where(a_wins, pairs.a, pairs.b),
        b=np.where(a_wins, pairs.b, pairs.a),
        target=np.maximum(pairs.target, 1 - pairs.target),
        row_a=np.where(a_wins, pairs.row_a, pairs.row_b),
        row_b=np.where(a_wins, pairs.row_b, pairs.row_a),
    )


def _groups(labels: Labels, rows: Ints, rng: np.random.Generator, min_ratio: float | None) -> Groups:
    if labels.kind != "groups":
        raise InputError(
            f"losses of ranked groups need a table with ranks, and this one has {labels.kind}; choose --loss preference"
        )
    rows = rows[np.argsort(labels.values["group"][rows], kind="stable")]
    _, position, size = np.unique(labels.values["group"][rows], return_inverse=True, return_counts=True)
    rows, size = rows[size[position] > 1], size[size > 1]  # leave out groups of one
    start = np.concatenate([[0], np.cumsum(size)])
    return Groups(start, labels.items[rows, 0], labels.values["rank"][rows].astype(np.float32))


def _ratings(labels: Labels, rows: Ints, rng: np.random.Generator, min_ratio: float | None) -> Ratings:
    """The ratings, or for counts the log rate minus the mean of its group."""
    if labels.kind == "ratings":
        rating = labels.values["rating"][rows]
    elif labels.kind == "counts":
        exposures = exposures_of(labels)
        rating = expected_log_rate(labels.values["count"][rows], None if exposures is None else exposures[rows])
        if "group" in labels.values:
            _, group, size = np.unique(labels.values["group"][rows], return_inverse=True, return_counts=True)
            rating -= (np.bincount(group, rating) / size)[group]  # groups are not compared with each other
    else:
        raise InputError(
            f"the loss rating needs a table with ratings or counts, and this one has {labels.kind}; choose --loss"
            " preference"
        )
    return Ratings(labels.items[rows, 0], rating.astype(np.float32))


def _scores(head: Head, features: Features, wanted: Ints) -> Tensor:
    """(len(wanted),) scores of items. An item that occurs several times is scored once."""
    items, position = torch.unique(torch.from_numpy(wanted), return_inverse=True)
    position = moved(position, features.image.device)
    # The gradient of index_select is summed in a fixed order, unlike that of [position].
    if isinstance(head, Cosine):
        prompts, text_row = torch.unique(features.prompt[items], return_inverse=True)
        one_of_each = torch.empty_like(prompts).scatter_(0, text_row, items.to(prompts.device))
        given = features.take(items, ("image_embedding",)) | features.take(one_of_each, ("text_embedding",))
        return head(**given, text_row=text_row).index_select(0, position)
    return head(**features.take(items, head.inputs)).index_select(0, position)


def _embeddings(head: Head, features: Features, wanted: Ints) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(m, d) unit vectors of the pictures of the items a and b in `wanted` (2 m,), and of their prompts, and the head's
    scale. Each vector is computed once."""
    assert isinstance(head, Cosine)
    items, half = torch.from_numpy(wanted).to(features.image.device), len(wanted) // 2
    images, at_image = torch.unique(features.image[items], return_inverse=True)
    prompts, at_prompt = torch.unique(features.prompt[items[:half]], return_inverse=True)
    image = head.embed_image(features.image_embeddings[images].float()).index_select(0, at_image)
    text = head.embed_text(features.text_embeddings[prompts].float()).index_select(0, at_prompt)
    return image[:half], image[half:], text, head.logit_scale.exp()


def _preference(pairs: Examples, batch: Ints, options: LossOptions) -> Bound:
    items, target, weight = _of_pairs(pairs, batch)
    loss: Callable[..., Tensor] = losses.preference

    def value(scores: Tensor) -> Tensor:
        score_a, score_b = scores.view(2, -1)
        given = score_a, score_b, moved(target, scores.device), moved(weight, scores.device)
        return loss(*given, **options.of("preference"))

    return items, value


def _preference_inbatch(pairs: Examples, batch: Ints, options: LossOptions) -> Bound:
    items, target, weight = _of_pairs(pairs, batch)

    def value(image_a: Tensor, image_b: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return losses.preference_inbatch(image_a, image_b, text, target.to(text.device), weight.to(text.device), scale)

    return items, value


def _triplet(pairs: Examples, batch: Ints, options: LossOptions) -> Bound:
    loss: Callable[..., Tensor] = losses.triplet

    def value(positive: Tensor, negative: Tensor, anchor: Tensor, scale: Tensor) -> Tensor:
        return loss(anchor, positive, negative, **options.of("triplet"))

    return _of_pairs(pairs, batch)[0], value


def _of_pairs(pairs: Examples, batch: Ints) -> tuple[Ints, Tensor, Tensor]:
    """The items a and then b of the pairs with the numbers `batch` (b,), their targets and their weights."""
    assert isinstance(pairs, Pairs)
    items = np.concatenate([pairs.a[batch], pairs.b[batch]])
    return items, torch.from_numpy(pairs.target[batch]), torch.from_numpy(pairs.weight[batch])


def _of_groups(name: str, loss: Callable[..., Tensor]) -> Callable[[Examples, Ints, LossOptions], Bound]:
    def bind(groups: Examples, batch: Ints, options: LossOptions) -> Bound:
        assert isinstance(groups, Groups)
        chosen = groups.take(batch)
        group = torch.from_numpy(np.repeat(np.arange(len(batch)), np.diff(chosen.start)))
        rank = torch.from_numpy(chosen.rank)
        return chosen.item, lambda scores: loss(scores, group, rank.to(scores.device), **options.of(name))

    return bind


def _rating(ratings: Examples, batch: Ints, options: LossOptions) -> Bound:
    assert isinstance(ratings, Ratings)
    rating = torch.from_numpy(ratings.rating[batch])
    return ratings.item[batch], lambda scores: losses.rating(scores, moved(rating, scores.device))


OBJECTIVES = {
    "preference": Objective("pairs", pairs_among, _preference),
    "preference-inbatch": Objective("pairs", _pairs_of_one_prompt, _preference_inbatch, embeds=True),
    "triplet": Objective("pairs", _triplets, _triplet, embeds=True),
    "ranking": Objective("groups", _groups, _of_groups("ranking", losses.ranking)),
    "listwise": Objective("groups", _groups, _of_groups("listwise", losses.listwise)),
    "rating": Objective("ratings", _ratings, _rating),
}
