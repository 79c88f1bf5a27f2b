"""What each loss trains on: which tables it fits, what its examples are, and its value on a batch of them.

The formulas are `losses`'; here items become scores or embeddings, each once a batch, however many examples share it.
A loss of scores is a number of the scores alone, so that a solver can have it without a head.
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
from heads.data.features import Features
from heads.models import Cosine, Head


@dataclass(frozen=True)
class Groups:
    """Ranked groups of two items or more: group i is members start[i] to start[i + 1]."""

    start: Ints  # (g + 1,)
    item: Ints  # (m,)
    rank: Float32s  # (m,) the lowest is the best

    def __len__(self) -> int:
        return len(self.start) - 1


@dataclass(frozen=True)
class Ratings:
    """Items with a number each that their score should be."""

    item: Ints  # (m,)
    rating: Float32s  # (m,)

    def __len__(self) -> int:
        return len(self.item)


Examples = Pairs | Groups | Ratings


# The items that a batch scores, one more than once where examples share it, and the loss of those scores.
Bound = tuple[Ints, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Objective:
    """A loss with its data. `examples(labels, rows, rng, min_ratio)` are those that some rows of a table state;
    `loss(head, features, examples, batch, options)` is the scalar of the examples numbered `batch` (b,).

    `of_scores(examples, batch, options)` is the same as a function of scores alone, where there is one.
    """

    unit: str
    examples: Callable[[Labels, Ints, np.random.Generator, float | None], Examples]
    loss: Callable[[Head, Features, "Examples", Ints, LossOptions], Tensor]
    of_scores: Callable[["Examples", Ints, LossOptions], Bound] | None = None

    @property
    def embeds(self) -> bool:
        """Whether it compares vectors of pictures and prompts, not scores: for the cosine head alone."""
        return self.of_scores is None


@dataclass(frozen=True)
class Part:
    """What one table teaches: its examples, their loss, and what that loss counts for beside other parts'."""

    loss: str
    examples: Examples
    weight: float = 1.0
    options: LossOptions = field(default_factory=LossOptions)


def examples_for(
    loss: str, labels: Labels, rows: Ints, rng: np.random.Generator, min_ratio: float | None = None
) -> Examples:
    """The examples that `rows` state for a loss; InputError where the table is not of its kind."""
    return OBJECTIVES[loss].examples(labels, rows, rng, min_ratio)


def require_head(loss: str, head: Head) -> None:
    """Nothing, or InputError where the loss needs embeddings and the head has none."""
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
            f"{bad} of {len(pairs)} pairs do not compare two pictures of one prompt, which a loss of embeddings wants;"
            " choose --loss preference"
        )
    return pairs


def _triplets(labels: Labels, rows: Ints, rng: np.random.Generator, min_ratio: float | None) -> Pairs:
    """Pairs whose first item is the preferred one; ties have no positive and are left out."""
    pairs = _pairs_of_one_prompt(labels, rows, rng, min_ratio)
    keep = np.flatnonzero(pairs.target != 0.5)
    pairs = Pairs(**{name: getattr(pairs, name)[keep] for name in pairs.__dataclass_fields__})
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
            f"losses of ranked groups want a table with ranks, and this one has {labels.kind}; choose --loss preference"
        )
    rows = rows[np.argsort(labels.values["group"][rows], kind="stable")]
    _, position, size = np.unique(labels.values["group"][rows], return_inverse=True, return_counts=True)
    rows, size = rows[size[position] > 1], size[size > 1]  # a group of one compares nothing
    start = np.concatenate([[0], np.cumsum(size)])
    return Groups(start, labels.items[rows, 0], labels.values["rank"][rows].astype(np.float32))


def _ratings(labels: Labels, rows: Ints, rng: np.random.Generator, min_ratio: float | None) -> Ratings:
    """Ratings as they are; of counts the log rate, less the mean of its group."""
    if labels.kind == "ratings":
        rating = labels.values["rating"][rows]
    elif labels.kind == "counts":
        exposures = exposures_of(labels)
        rating = expected_log_rate(labels.values["count"][rows], None if exposures is None else exposures[rows])
        if "group" in labels.values:
            _, group, size = np.unique(labels.values["group"][rows], return_inverse=True, return_counts=True)
            rating -= (np.bincount(group, rating) / size)[group]  # groups compare nothing with each other
    else:
        raise InputError(
            f"the loss rating wants a table with ratings or counts, and this one has {labels.kind}; choose --loss"
            " preference"
        )
    return Ratings(labels.items[rows, 0], rating.astype(np.float32))


def _scores(head: Head, features: Features, wanted: Ints) -> Tensor:
    """(len(wanted),) scores of items, each item scored once."""
    items, position = torch.unique(torch.from_numpy(wanted), return_inverse=True)
    position = position.to(features.image.device)
    # index_select and not [position]: the gradient of the latter is summed in no fixed order.
    if isinstance(head, Cosine):
        prompts, text_row = torch.unique(features.prompt[items], return_inverse=True)
        one_of_each = torch.empty_like(prompts).scatter_(0, text_row, items.to(prompts.device))
        given = features.take(items, ("image_embedding",)) | features.take(one_of_each, ("text_embedding",))
        return head(**given, text_row=text_row).index_select(0, position)
    return head(**features.take(items, head.inputs)).index_select(0, position)


def _embeddings(head: Head, features: Features, a: Ints, b: Ints) -> tuple[Tensor, Tensor, Tensor]:
    """(m, d) unit vectors of the pictures of items a and b, and of their prompt, each vector computed once."""
    assert isinstance(head, Cosine)
    items = torch.from_numpy(np.concatenate([a, b])).to(features.image.device)
    images, at_image = torch.unique(features.image[items], return_inverse=True)
    prompts, at_prompt = torch.unique(features.prompt[items[: len(a)]], return_inverse=True)
    image = head.embed_image(features.image_embeddings[images].float()).index_select(0, at_image)
    text = head.embed_text(features.text_embeddings[prompts].float()).index_select(0, at_prompt)
    return image[: len(a)], image[len(a) :], text


def _through_scores(of_scores: Callable[[Examples, Ints, LossOptions], Bound]) -> Callable[..., Tensor]:
    def loss(head: Head, features: Features, examples: Examples, batch: Ints, options: LossOptions) -> Tensor:
        items, value = of_scores(examples, batch, options)
        return value(_scores(head, features, items))

    return loss


def _preference(pairs: Examples, batch: Ints, options: LossOptions) -> Bound:
    assert isinstance(pairs, Pairs)
    target, weight = torch.from_numpy(pairs.target[batch]), torch.from_numpy(pairs.weight[batch])
    chosen = options.of("preference")

    def value(scores: Tensor) -> Tensor:
        score_a, score_b = scores.view(2, -1)
        return losses.preference(score_a, score_b, target.to(scores.device), weight.to(scores.device), **chosen)

    return np.concatenate([pairs.a[batch], pairs.b[batch]]), value


def _preference_inbatch(head: Head, features: Features, pairs: Examples, batch: Ints, options: LossOptions) -> Tensor:
    assert isinstance(pairs, Pairs) and isinstance(head, Cosine)
    image_a, image_b, text = _embeddings(head, features, pairs.a[batch], pairs.b[batch])
    target = torch.from_numpy(pairs.target[batch]).to(text.device)
    weight = torch.from_numpy(pairs.weight[batch]).to(text.device)
    return losses.preference_inbatch(image_a, image_b, text, target, weight, head.logit_scale.exp())


def _triplet(head: Head, features: Features, pairs: Examples, batch: Ints, options: LossOptions) -> Tensor:
    assert isinstance(pairs, Pairs)
    positive, negative, anchor = _embeddings(head, features, pairs.a[batch], pairs.b[batch])
    return losses.triplet(anchor, positive, negative, **options.of("triplet"))


def _of_groups(name: str, loss: Callable[..., Tensor]) -> Callable[[Examples, Ints, LossOptions], Bound]:
    def bind(groups: Examples, batch: Ints, options: LossOptions) -> Bound:
        assert isinstance(groups, Groups)
        members = np.concatenate([np.arange(groups.start[i], groups.start[i + 1]) for i in batch])
        group = torch.from_numpy(np.repeat(np.arange(len(batch)), groups.start[batch + 1] - groups.start[batch]))
        rank, chosen = torch.from_numpy(groups.rank[members]), options.of(name)

        def value(scores: Tensor) -> Tensor:
            return loss(scores, group, rank.to(scores.device), **chosen)

        return groups.item[members], value

    return bind


def _rating(ratings: Examples, batch: Ints, options: LossOptions) -> Bound:
    assert isinstance(ratings, Ratings)
    rating = torch.from_numpy(ratings.rating[batch])
    return ratings.item[batch], lambda scores: losses.rating(scores, rating.to(scores.device))


def _objective(unit: str, examples: Callable[..., Examples], of_scores: Callable[..., Bound]) -> Objective:
    return Objective(unit, examples, _through_scores(of_scores), of_scores)


OBJECTIVES = {
    "preference": _objective("pairs", pairs_among, _preference),
    "preference-inbatch": Objective("pairs", _pairs_of_one_prompt, _preference_inbatch),
    "triplet": Objective("pairs", _triplets, _triplet),
    "ranking": _objective("groups", _groups, _of_groups("ranking", losses.ranking)),
    "listwise": _objective("groups", _groups, _of_groups("listwise", losses.listwise)),
    "rating": _objective("ratings", _ratings, _rating),
}
