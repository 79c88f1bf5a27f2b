"""Losses: pure functions of scores or embeddings, each of which returns a scalar.

They know no head, no data set and no optimiser. Half-precision arguments are widened to float32 before any arithmetic
(float64 stays), and the gradient has the argument's own type. An example without anything to learn (a group of one, a
batch without pairs) contributes 0 and a gradient of 0.

`weight` is one number per example; in the papers it is 1 / (number of the prompt's examples). A weighted mean is
sum_i w_i l_i / sum_j w_j over the batch. `target` is the probability that side a is preferred: 1, 0, 0.5 for a
tie, or anything between. `group` holds a whole number per row. Rows with equal numbers are compared with each other,
wherever they are in the batch. It may stay on the CPU. In `rank` the lowest number is the best.
"""

from functools import reduce
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from embed.wording import unknown_name
from heads.config import Distance, Reduction
from heads.pairs import pairs_within

DISTANCES, REDUCTIONS = get_args(Distance), get_args(Reduction)


def triplet(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.3, distance: Distance = "squared_euclidean"
) -> Tensor:
    """Mean of relu(distance(a, p) - distance(a, n) + margin) over the triplets (n,): exactly 0, with no gradient, when
    no triplet of the batch is active.

    `anchor`, `positive` and `negative` (n, d) must have unit norm; this is not checked. The squared Euclidean distance
    is then 2 - 2 cos and the cosine distance 1 - cos, so that a margin has half the effect on the first. The default is
    Social Reward's loss, mean relu(|t - p|^2 - |t - n|^2 + 0.3): the anchor is the prompt.
    """
    anchor, positive, negative = _wide(anchor, positive, negative)
    if distance == "squared_euclidean":
        gap = (anchor - positive).square().sum(1) - (anchor - negative).square().sum(1)
    elif distance == "euclidean":
        # At distance 0 the gradient of vector_norm is 0, while that of a square root is infinite.
        gap = torch.linalg.vector_norm(anchor - positive, dim=1) - torch.linalg.vector_norm(anchor - negative, dim=1)
    elif distance == "cosine":
        gap = (anchor * (negative - positive)).sum(1)
    else:
        raise unknown_name("distance", distance, DISTANCES)
    return _reduce(torch.relu(gap + margin))


def preference(
    score_a: Tensor, score_b: Tensor, target: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """KL(target || softmax(score_a, score_b)), weighted mean over the batch. All arguments (n,).

    PickScore (Kirstain et al. 2023, section 3), ties included: for a target of 0.5 the loss is 0 if the scores are
    equal. `reduction="sum"` is that of HPSv2, without division by the batch size. HPSv2 also leaves out the entropy of
    the target, which changes the value for soft targets but never the gradient.
    """
    score_a, score_b, target = _wide(score_a, score_b, target)
    cross_entropy = F.binary_cross_entropy_with_logits(score_a - score_b, target, reduction="none")
    return _reduce(cross_entropy - _entropy(target), weight, reduction)


def preference_inbatch(
    image_embeddings_a: Tensor,
    image_embeddings_b: Tensor,
    text_embeddings: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    logit_scale: Tensor | float = 1.0,
) -> Tensor:
    """PickScore's variant with in-batch negatives. Embeddings are (n, d) of unit norm, target and weight (n,).

    All 2n images are compared with all n prompts. With CE the cross entropy of the right partner among all,
    l_i = 0.5 (y CE(a_i -> prompts) + (1 - y) CE(b_i -> prompts) + y CE(prompt_i -> images, a_i)
    + (1 - y) CE(prompt_i -> images, b_i) - entropy(y)), weighted mean over i. `logit_scale`, the exponential of CLIP's
    parameter, multiplies the cosines. As in PickScore, a prompt that occurs twice in the batch is its own negative.
    """
    images_a, images_b, prompts = _wide(image_embeddings_a, image_embeddings_b, text_embeddings)
    logits = logit_scale * torch.cat([images_a, images_b]) @ prompts.T  # (2n, n)
    match_a, match_b, target = _wide(logits[: len(prompts)].diagonal(), logits[len(prompts) :].diagonal(), target)
    over_prompts_a, over_prompts_b = logits.logsumexp(1).chunk(2)
    over_images = logits.logsumexp(0)
    prefers_a = over_prompts_a + over_images - 2 * match_a
    prefers_b = over_prompts_b + over_images - 2 * match_b
    return _reduce(0.5 * (target * prefers_a + (1 - target) * prefers_b - _entropy(target)), weight)


def ranking(
    scores: Tensor, group: Tensor, rank: Tensor, reduction: Reduction = "mean", margin: float | None = None
) -> Tensor:
    """-log sigmoid(s_better - s_worse), mean over all pairs of one group with different ranks. Arguments (n,).

    ImageReward (Xu et al. 2023, equation 1): all pairs have the same weight, so larger groups count more. Equal ranks
    make no pair. With `margin` it is HPSv2's hinge, relu(margin - (s_better - s_worse) (rank_worse - rank_better));
    HPSv2's own mean also counts the diagonal, ties and padding, which only scales it. Memory grows with the pairs.
    """
    scores, rank = _wide(scores, rank)
    first, second = _pairs(group, scores.device)
    lead = rank[second] - rank[first]  # positive if the first is better
    first, second, lead = first[lead != 0], second[lead != 0], lead[lead != 0]
    # The gradient of index_select is summed in a fixed order, unlike that of scores[first].
    difference = scores.index_select(0, first) - scores.index_select(0, second)
    if margin is None:
        return _reduce(F.softplus(-difference * lead.sign()), None, reduction)
    return _reduce(torch.relu(margin - difference * lead), None, reduction)


def listwise(scores: Tensor, group: Tensor, rank: Tensor) -> Tensor:
    """Plackett-Luce negative log likelihood of each group's ranking, mean over the groups of two rows or more.

    Arguments (n,). Per group sum_i (log sum_{j: rank_j >= rank_i} exp(s_j) - s_i): the best is chosen from all, the
    next from the rest (Plackett 1975; ListMLE, Xia et al. 2008). Rows of equal rank share one denominator that
    holds all of them (Breslow 1974), so that tied rows get similar scores. Memory grows with the pairs.
    """
    scores, rank = _wide(scores, rank)
    first, second = _pairs(group, scores.device)
    row = torch.arange(len(scores), device=scores.device)
    no_worse, no_better = rank[first] <= rank[second], rank[first] >= rank[second]
    chooser = torch.cat([row, first[no_worse], second[no_better]])
    candidate = torch.cat([row, second[no_worse], first[no_better]])
    offered = scores.index_select(0, candidate)
    peak = scores.detach().scatter_reduce(0, chooser, offered.detach(), "amax")
    total = torch.zeros_like(scores).index_add(0, chooser, (offered - peak.index_select(0, chooser)).exp())
    groups = int((torch.unique(group, return_counts=True)[1] > 1).sum())
    return (peak + total.log() - scores).sum() / max(groups, 1)


def rating(scores: Tensor, ratings: Tensor, weight: Tensor | None = None) -> Tensor:
    """Weighted mean squared error between scores and ratings. All arguments (n,)."""
    scores, ratings = _wide(scores, ratings)
    return _reduce((scores - ratings).square(), weight)


def _pairs(group: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """`pairs_within` as tensors on a device."""
    first, second = (torch.from_numpy(rows).to(device) for rows in pairs_within(group.numpy(force=True)))
    return first, second


def _entropy(target: Tensor) -> Tensor:
    """-y log y - (1 - y) log(1 - y), 0 at 0 and at 1."""
    return -torch.xlogy(target, target) - torch.xlogy(1 - target, 1 - target)


def _reduce(losses: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    if reduction not in REDUCTIONS:
        raise unknown_name("reduction", reduction, REDUCTIONS)
    if weight is None:
        return losses.sum() / (max(len(losses), 1) if reduction == "mean" else 1)
    losses, weight = _wide(losses, weight)
    total = (weight * losses).sum()
    return total / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny) if reduction == "mean" else total


def _wide(*tensors: Tensor) -> list[Tensor]:
    """The tensors in their common type, at least float32. Raise ValueError unless all have the same shape.

    Otherwise (n,) and (n, 1) would broadcast to (n, n).
    """
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ValueError(f"shapes {[tuple(tensor.shape) for tensor in tensors]} differ; wanted equal shapes")
    widest = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return [tensor.to(widest) for tensor in tensors]
