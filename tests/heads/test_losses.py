"""Every loss against a slow loop written from its formula, forward and gradient."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from embed.spec import InputError
from heads import losses

WIDE = {"dtype": torch.float64}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **WIDE)


def unit(n: int, d: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(normal(n, d, seed=seed), dim=1)


def value_and_gradients(loss, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = loss(*inputs)
    assert value.shape == ()
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def assert_same(fast, slow, *inputs: Tensor) -> None:
    """Equal in float64; from half precision the value is that of float32 arithmetic and gradients are half."""
    for got, wanted in zip(value_and_gradients(fast, inputs), value_and_gradients(slow, inputs), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    for half in (torch.float16, torch.bfloat16):
        rounded = [tensor.to(half) for tensor in inputs]
        got = value_and_gradients(fast, rounded)
        wanted = value_and_gradients(slow, [tensor.double() for tensor in rounded])
        assert got[0].dtype == torch.float32
        torch.testing.assert_close(got[0].double(), wanted[0], rtol=3e-6, atol=1e-6)
        for mine, exact in zip(got[1:], wanted[1:], strict=True):
            assert mine.dtype == half
            torch.testing.assert_close(mine.double(), exact, rtol=2 * torch.finfo(half).eps, atol=1e-5)


# Two rows of a group apart from each other, groups of one, ties, a group of nothing but ties, ranks with gaps.
GROUP = torch.tensor([7, 2, 7, 5, 2, 7, 9, 7, 3, 3, 2, 8, 8, 8])
RANK = torch.tensor([2, 1, 2, 1, 4, 1, 3, 5, 1, 1, 4, 3, 2, 1])


def groups() -> list[list[int]]:
    return [[i for i, g in enumerate(GROUP.tolist()) if g == name] for name in sorted(set(GROUP.tolist()))]


def strict_pairs() -> list[tuple[int, int]]:
    return [(i, j) for rows in groups() for i, j in permutations(rows, 2) if RANK[i] < RANK[j]]


@pytest.mark.parametrize("distance", losses.DISTANCES)
def test_triplet(distance: str) -> None:
    def loop(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        total = torch.zeros((), **WIDE)
        for a, p, n in zip(anchor, positive, negative, strict=True):
            apart = {
                "squared_euclidean": lambda x, y: sum((u - v) ** 2 for u, v in zip(x, y, strict=True)),
                "euclidean": lambda x, y: sum((u - v) ** 2 for u, v in zip(x, y, strict=True)) ** 0.5,
                "cosine": lambda x, y: 1 - sum(u * v for u, v in zip(x, y, strict=True)),
            }[distance]
            hinge = apart(a, p) - apart(a, n) + 0.3
            total = total + (hinge if hinge > 0 else 0 * hinge)
        return total / len(anchor)

    anchor, positive, negative = unit(16, 5, 1), unit(16, 5, 2), unit(16, 5, 3)
    anchor[3] = anchor[2]  # a prompt met twice
    assert_same(lambda *e: losses.triplet(*e, distance=distance), loop, anchor, positive, negative)
    triplets = zip(*(vectors.split(1) for vectors in (anchor, positive, negative)), strict=True)
    each = [losses.triplet(*triplet, distance=distance) for triplet in triplets]
    assert 0 < sum(loss > 0 for loss in each) < 16


def test_squared_distance_of_unit_vectors_halves_the_margin_of_cosine() -> None:
    # Social Reward: |t - p|^2 - |t - n|^2 + 0.3 = 2 (cos(t, n) - cos(t, p) + 0.15)
    embeddings = unit(30, 8, 1), unit(30, 8, 2), unit(30, 8, 3)
    torch.testing.assert_close(
        losses.triplet(*embeddings), 2 * losses.triplet(*embeddings, margin=0.15, distance="cosine")
    )


def test_satisfied_triplets_give_exactly_zero_and_coinciding_points_no_nan() -> None:
    anchor = unit(6, 4, 1).float().requires_grad_()
    assert losses.triplet(anchor, anchor.detach(), -anchor.detach()).item() == 0
    loss = losses.triplet(anchor, anchor.detach(), anchor.detach(), distance="euclidean")
    loss.backward()
    assert loss.item() == pytest.approx(0.3)
    assert anchor.grad is not None and not anchor.grad.any()


TARGET = torch.tensor([1, 0, 0.5, 0.75, 1, 0.5, 0, 0.125])
WEIGHT = 1 / torch.tensor([4, 4, 4, 1, 2, 2, 4, 8])  # by how many examples the prompt has


def kl(target: Tensor, cross_entropy_a: Tensor, cross_entropy_b: Tensor) -> Tensor:
    """y log y + (1 - y) log(1 - y) + y CE_a + (1 - y) CE_b, with 0 log 0 = 0."""
    total = torch.zeros((), **WIDE)
    for y, cross_entropy in ((target, cross_entropy_a), (1 - target, cross_entropy_b)):
        if y > 0:
            total = total + y * (y.log() + cross_entropy)
    return total


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_preference(weighted: bool, reduction: str) -> None:
    weight = WEIGHT if weighted else None

    def loop(score_a: Tensor, score_b: Tensor) -> Tensor:
        total, weights = torch.zeros((), **WIDE), 0.0
        for i, y in enumerate(TARGET.double()):
            p = torch.stack([score_a[i], score_b[i]]).softmax(0)
            w = float(WEIGHT[i]) if weighted else 1.0
            total, weights = total + w * kl(y, -p[0].log(), -p[1].log()), weights + w
        return total / weights if reduction == "mean" else total

    a, b = 3 * normal(8, seed=1), 3 * normal(8, seed=2)
    a[0] = b[0]
    assert_same(lambda *scores: losses.preference(*scores, TARGET, weight, reduction), loop, a, b)


def test_preference_is_pickscores_for_ties_and_stays_finite() -> None:
    def loss(a: float, b: float, y: float) -> float:
        return losses.preference(torch.tensor([a]), torch.tensor([b]), torch.tensor([y])).item()

    assert loss(2.0, 2.0, 0.5) == 0.0  # a perfect tie costs nothing
    assert loss(0.0, 0.0, 1.0) == pytest.approx(0.693147, abs=1e-6)
    assert loss(1e4, -1e4, 1.0) == 0.0
    assert loss(1e4, -1e4, 0.0) == 2e4
    scores = torch.tensor([60000.0, -60000.0], dtype=torch.float16, requires_grad=True)
    value = losses.preference(scores, -scores.detach(), torch.tensor([0.0, 1.0]))
    value.backward()
    assert value.item() == pytest.approx(2 * 60000, rel=1e-3)  # float16 would overflow at 65504
    assert scores.grad is not None and scores.grad.tolist() == [0.5, -0.5]


@pytest.mark.parametrize("weighted", [True, False])
def test_preference_inbatch(weighted: bool) -> None:
    def loop(images_a: Tensor, images_b: Tensor, prompts: Tensor, scale: Tensor) -> Tensor:
        n, images = len(prompts), [*images_a, *images_b]

        def cross_entropy(query: Tensor, candidates: list[Tensor], right: int) -> Tensor:
            logits = torch.stack([scale * (query * candidate).sum() for candidate in candidates])
            return -(logits.softmax(0)[right].log())

        total, weights = torch.zeros((), **WIDE), 0.0
        for i, y in enumerate(TARGET.double()):
            a = cross_entropy(images_a[i], list(prompts), i) + cross_entropy(prompts[i], images, i)
            b = cross_entropy(images_b[i], list(prompts), i) + cross_entropy(prompts[i], images, n + i)
            # PickScore's tie term is inside the half, beside four cross entropies.
            entropy = -kl(y, 0 * a, 0 * b)
            w = float(WEIGHT[i]) if weighted else 1.0
            total, weights = total + w * 0.5 * (y * a + (1 - y) * b - entropy), weights + w
        return total / weights

    prompts = unit(8, 6, 3)
    prompts[1] = prompts[0]  # repeated prompts are not masked
    weight = WEIGHT if weighted else None
    assert_same(
        lambda a, b, t, s: losses.preference_inbatch(a, b, t, TARGET, weight, s),
        loop,
        unit(8, 6, 1),
        unit(8, 6, 2),
        prompts,
        torch.tensor(7.0, **WIDE),
    )


@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
@pytest.mark.parametrize("margin", [None, 1.0])
def test_ranking(reduction: str, margin: float | None) -> None:
    def loop(scores: Tensor) -> Tensor:
        total = torch.zeros((), **WIDE)
        for better, worse in strict_pairs():
            difference = scores[better] - scores[worse]
            if margin is None:
                total = total - torch.sigmoid(difference).log()
            else:
                hinge = margin - difference * (RANK[worse] - RANK[better])
                total = total + (hinge if hinge > 0 else 0 * hinge)
        return total / len(strict_pairs()) if reduction == "mean" else total

    assert len(strict_pairs()) == 10
    assert_same(lambda s: losses.ranking(s, GROUP, RANK, reduction, margin), loop, normal(len(GROUP), seed=4))


def test_listwise() -> None:
    def loop(scores: Tensor) -> Tensor:
        total, lists = torch.zeros((), **WIDE), [rows for rows in groups() if len(rows) > 1]
        for rows in lists:
            for i in rows:
                rest = [scores[j].exp() for j in rows if RANK[j] >= RANK[i]]
                total = total + torch.stack(rest).sum().log() - scores[i]
        return total / len(lists)

    assert_same(lambda s: losses.listwise(s, GROUP, RANK), loop, normal(len(GROUP), seed=5))


def test_listwise_probabilities_of_all_orders_sum_to_one() -> None:
    scores, group = 2 * normal(4, seed=6), torch.zeros(4, dtype=torch.int64)
    chances = [(-losses.listwise(scores, group, torch.tensor(order))).exp() for order in permutations(range(4))]
    assert sum(chances).item() == pytest.approx(1.0)
    huge = losses.listwise(1e4 * scores.float(), group, torch.tensor([0, 1, 2, 3]))
    assert huge.isfinite()


def test_listwise_draws_ties_together() -> None:
    scores = torch.tensor([0.3, 0.3, 0.3], requires_grad=True)
    losses.listwise(scores, torch.zeros(3), torch.ones(3)).backward()
    assert scores.grad is not None and scores.grad.abs().max() < 1e-7
    apart = torch.tensor([1.0, 0.0], requires_grad=True)
    losses.listwise(apart, torch.zeros(2), torch.ones(2)).backward()
    assert apart.grad is not None and apart.grad[0] > 0 > apart.grad[1]


def test_rating() -> None:
    ratings, weight = normal(8, seed=8).float(), WEIGHT

    def loop(scores: Tensor) -> Tensor:
        total = sum(w * (s - r) ** 2 for w, s, r in zip(weight, scores, ratings, strict=True))
        return total / sum(weight)

    assert_same(lambda s: losses.rating(s, ratings, weight), loop, normal(8, seed=7))
    assert losses.rating(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 2.0])).item() == 5.0


@pytest.mark.parametrize("loss", [losses.ranking, losses.listwise])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_groups_of_one_give_zero_and_zero_gradient(loss, rows: int) -> None:
    scores = torch.linspace(-90, 90, rows).half().requires_grad_()
    value = loss(scores, torch.arange(rows), torch.ones(rows))
    value.backward()
    assert value.item() == 0.0
    assert scores.grad is not None and not scores.grad.any()


def test_nothing_to_weigh_gives_zero() -> None:
    scores = torch.ones(3, requires_grad=True)
    for weight in (torch.zeros(3), None):
        rows = scores if weight is not None else scores[:0]
        value = losses.preference(rows, rows.detach() - 1, torch.zeros(len(rows)), weight)
        value.backward()
        assert value.item() == 0.0
    assert scores.grad is not None and not scores.grad.any()


@pytest.mark.parametrize("loss", [losses.ranking, losses.listwise])
def test_gradients_are_summed_in_a_fixed_order(loss) -> None:
    # The gradient of scores[rows] adds up in the order in which threads arrive: other last bits in each run. Whether
    # two runs differ depends on how busy the machine is, so look for the operation itself.
    def operations(node) -> set[str]:
        return {node.name()}.union(*(operations(before) for before, _ in node.next_functions if before))

    found = operations(loss(normal(14).requires_grad_(), GROUP, RANK).grad_fn)
    assert "IndexSelectBackward0" in found and "IndexBackward0" not in found


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(3,\), \(3, 1\)"):
        losses.rating(torch.ones(3), torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"\(2,\), \(2, 1\)"):
        losses.preference_inbatch(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 1))
    with pytest.raises(InputError, match="unknown distance 'manhattan'"):
        losses.triplet(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2), distance="manhattan")
    with pytest.raises(InputError, match="unknown reduction 'max'"):
        losses.ranking(torch.ones(2), torch.ones(2), torch.ones(2), reduction="max")
