"""Train the `blend` head by least squares on the rows' labels. Validation rows choose penalties and widths.

A member is a ridge regression or Gaussian kernel ridge regression on some kinds of features. The head is the plain mean
of its members, because a few hundred rows cannot tell which member is best. Knows no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from embed.arrays import Floats, Ints
from embed.spec import InputError
from heads.data.comparisons import Labels, exposures_of, groups_of
from heads.data.counts import expected_log_rate
from heads.data.features import Features
from heads.models import Blend
from heads.training.convex import PENALTIES

WIDTHS = (1.0, 2.0, 4.0)  # of Gaussian kernels; the mean squared distance is 2
NUGGET = 1e-5  # added to the landmarks' kernel, whose smallest eigenvalues are noise in float32
SMALLEST_VARIANCE = 1e-9  # of unit vectors; below this they differ only by rounding
BATCH = 16384  # items whose features are computed at once


@dataclass(frozen=True)
class Rows:
    """Items with labels, as the values that scores should have up to a constant for each group.

    A comparison is a group of two whose values are twice the target's distance from a half, so that small differences
    of scores are log odds.
    """

    item: Ints  # (r,)
    value: Floats  # (r,)
    group: Ints  # (r,)
    weight: Floats  # (r,) of sum 1

    def centered(self, x: Floats) -> Floats:
        """`x` (r,) or (r, k) minus the mean of its group."""
        number = np.unique(self.group, return_inverse=True)[1]
        total = np.bincount(number, self.weight)
        columns = x.reshape(len(x), -1)
        sums = np.stack([np.bincount(number, self.weight * column) for column in columns.T], axis=1)
        return (columns - (sums / total[:, None])[number]).reshape(x.shape)


def rows_of(labels: Labels, rows: Ints, within: bool = False) -> Rows:
    """The items and values of some rows of a table. Ratings of all rows share one scale; `within` compares them only
    within a prompt, as for measuring."""
    item, weight = labels.items[rows].ravel(), np.ones(labels.items[rows].size)
    group = np.zeros(len(rows), np.int64)
    if labels.kind == "comparisons":
        half = 2 * labels.values["target"][rows] - 1
        value, group = np.stack([half, -half], axis=1).ravel(), np.repeat(np.arange(len(rows)), 2)
        weight = np.repeat(labels.values["weight"][rows], 2)
    elif labels.kind == "groups":
        value, group = -labels.values["rank"][rows], groups_of(labels, rows)
    elif labels.kind == "ratings":
        value = labels.values["rating"][rows]
        group = groups_of(labels, rows) if within else group
    else:
        exposures = exposures_of(labels)
        value = expected_log_rate(labels.values["count"][rows], None if exposures is None else exposures[rows])
        group = groups_of(labels, rows)
    return Rows(item, value.astype(np.float64), group, weight / weight.sum())


def joined(parts: Sequence[tuple[Rows, float]]) -> Rows:
    """The rows of several tables, weighted by table."""
    shift = np.cumsum([0] + [part.group.max(initial=0) + 1 for part, _ in parts])
    total = sum(weight for _, weight in parts)
    return Rows(
        np.concatenate([part.item for part, _ in parts]),
        np.concatenate([part.value for part, _ in parts]),
        np.concatenate([part.group + start for (part, _), start in zip(parts, shift, strict=False)]),
        np.concatenate([part.weight * weight / total for part, weight in parts]),
    )


@dataclass(frozen=True)
class Member:
    """A regression: the kinds of features it reads, and the width of its kernel, None for ridge regression."""

    kinds: tuple[str, ...]
    width: float | None


@dataclass(frozen=True)
class Choice:
    """A member with the penalty that is best on validation rows, and the scores of these rows for each round."""

    member: Member
    penalty: float
    error: float
    scores: list[Floats]


def fit_blend(
    head: Blend, features: Features, rows: Rows, rounds: Sequence[tuple[Rows, Rows]]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Train `head` in place on `rows`. In each round the first rows train and the second validate.

    Returns the choice, and a record for each member that was tried: width (0 for ridge regression), penalty and
    validation_error, the mean squared error within groups as a share of the labels' own variance.
    """
    table = Table(head, features, rows, [aside for _, aside in rounds])
    tried: dict[Member, Choice] = {}

    def best(member: Member) -> Choice:
        if member not in tried:
            tried[member] = choose(table, member, rounds)
        return tried[member]

    first, *_ = sets = head.kernels()
    extras: list[tuple[str, ...]] = [()] if first else []
    if "text_embedding" in head.kinds:
        extras.append(("text_embedding",))
    if "product" in head.kinds:
        extras.append(("text_embedding", "product"))
    # The other features are chosen with only the first kind of picture features.
    pairs = {extra: [best(Member(first + extra, None)), best(member_of(first + extra, WIDTHS[1]))] for extra in extras}
    extra = min(pairs, key=lambda extra: blended_error(pairs[extra], rounds))
    chosen = []
    for of_image in sets:
        chosen.append(best(Member(of_image + extra, None)))
        wide = [best(member_of(of_image + extra, width)) for width in WIDTHS]
        chosen.append(min(wide, key=lambda one: one.error))
    table.install(head, rows, chosen)
    found = {
        "reads_text": float("text_embedding" in extra),
        "reads_product": float("product" in extra),
        "members": float(len(chosen)),
        "validation_error": blended_error(chosen, rounds),
    }
    records = [
        {"width": one.member.width or 0.0, "penalty": one.penalty, "validation_error": one.error}
        for one in tried.values()
    ]
    return found, records


def member_of(kinds: tuple[str, ...], width: float) -> Member:
    """A member with a kernel. It leaves the product out, since a kernel models products itself."""
    return Member(tuple(kind for kind in kinds if kind != "product"), width)


def choose(table: "Table", member: Member, rounds: Sequence[tuple[Rows, Rows]]) -> Choice:
    """The choice of the best penalty for a member."""
    found, kernel = [], table.kernel(member)
    for train, aside in rounds:
        solved = table.solve(kernel, train)
        found.append(solved.basis[table.position(aside.item)] @ solved.weights)
    errors = np.mean([error_of(aside, scores) for (_, aside), scores in zip(rounds, found, strict=True)], axis=0)
    at = int(errors.argmin())
    return Choice(member, PENALTIES[at], float(errors[at]), [scores[:, at] for scores in found])


def error_of(aside: Rows, scores: Floats) -> Floats:
    """(k,) the squared error of scores (r, k) within groups, as a share of the labels' variance there."""
    value = aside.centered(aside.value)
    residual = aside.centered(scores) - value[:, None]
    return aside.weight @ residual**2 / max(float(aside.weight @ value**2), np.finfo(float).tiny)


def blended_error(choices: Sequence[Choice], rounds: Sequence[tuple[Rows, Rows]]) -> float:
    """The error of the mean of some members' scores, averaged over rounds."""
    means = [np.mean(scores, axis=0)[:, None] for scores in zip(*(one.scores for one in choices), strict=True)]
    return float(np.mean([error_of(aside, mean) for (_, aside), mean in zip(rounds, means, strict=True)]))


@dataclass(frozen=True)
class Solved:
    """A solution: the scores of all items are basis @ weights, with a column for each penalty. `to_landmarks` maps the
    weights to those of the landmarks numbered `landmarks`."""

    basis: Floats  # (n, k)
    weights: Floats  # (k, penalties)
    to_landmarks: Callable[[Floats], Floats]
    landmarks: Ints


class Table:
    """All items of a training with their features, and the products of these with the landmarks' features.

    It sets center, scale and landmarks of the head from the items to train on.
    """

    @torch.no_grad()
    def __init__(self, head: Blend, features: Features, rows: Rows, asides: Sequence[Rows]) -> None:
        own = np.unique(rows.item)
        self.items = np.unique(np.concatenate([own, *(aside.item for aside in asides)]))
        parts = torch.split(torch.from_numpy(self.items), BATCH)
        x = torch.cat([head.features(**features.take(part, head.inputs)).cpu() for part in parts])
        of_own = x[torch.from_numpy(self.position(own))]
        head.center.copy_(of_own.mean(dim=0))
        square = (of_own - head.center).square().mean(dim=0)
        widths = list(head.kinds.values())
        if not float(square.sum()) > SMALLEST_VARIANCE:
            raise InputError(f"all {len(own)} items to train on have the same vectors; nothing can be learned")
        for scale, part in zip(torch.split(head.scale, widths), torch.split(square, widths), strict=True):
            scale.fill_(float(part.sum()) ** -0.5 if float(part.sum()) > SMALLEST_VARIANCE else 0.0)
        x = (x - head.center) * head.scale
        count = min(len(own), head.landmarks.shape[0])
        self.chosen = self.position(own[np.linspace(0, len(own) - 1, count).round().astype(np.int64)])
        head.landmarks.zero_()
        head.landmarks[:count] = x[torch.from_numpy(self.chosen), : head.landmarks.shape[1]]
        self.parts = dict(zip(head.kinds, (part.numpy() for part in torch.split(x, widths, dim=1)), strict=True))
        self.products = {kind: part @ part[self.chosen].T for kind, part in self.parts.items()}
        self.squares = {kind: (part**2).sum(axis=1) for kind, part in self.parts.items()}

    def position(self, item: Ints) -> Ints:
        """(r,) the positions of items in this table."""
        return np.searchsorted(self.items, item)

    def kernel(self, member: Member) -> Floats:
        """(n, landmarks) the kernel of all items with the landmarks."""
        products = sum(self.products[kind] for kind in member.kinds) / len(member.kinds)
        if member.width is None:
            return np.asarray(products)
        squares = sum(self.squares[kind] for kind in member.kinds) / len(member.kinds)
        distances = (squares[:, None] + squares[self.chosen] - 2 * products).clip(0)
        return np.asarray(np.exp(-distances / member.width))

    def solve(self, kernel: Floats, rows: Rows, penalties: Sequence[float] = PENALTIES) -> Solved:
        """Least squares on some rows. Only their items are used as landmarks."""
        from scipy.linalg import cholesky, solve_triangular
        from scipy.sparse import coo_array

        at = self.position(rows.item)
        landmarks = np.flatnonzero(np.isin(self.chosen, at))
        own = kernel[np.ix_(self.chosen[landmarks], landmarks)].astype(np.float64)
        own[np.diag_indices(len(own))] += NUGGET * max(own.trace() / len(own), np.finfo(float).tiny)
        root = cholesky(own, lower=True)
        basis = solve_triangular(root, kernel[:, landmarks].T.astype(np.float64), lower=True).T
        # The squared error within groups is w' (basis' (diag - N' N) basis) w - 2 w' basis' b + a constant.
        group = np.unique(rows.group, return_inverse=True)[1]
        share = rows.weight / np.sqrt(np.bincount(group, rows.weight))[group]
        means = coo_array((share, (group, at)), (group.max() + 1, len(self.items))).tocsr() @ basis
        count = np.bincount(at, rows.weight, len(self.items))
        moments = basis.T @ (count[:, None] * basis) - means.T @ means
        wanted = basis.T @ np.bincount(at, rows.weight * rows.centered(rows.value), len(self.items))
        variance, axes = np.linalg.eigh(moments)
        variance = variance.clip(0)
        penalty = np.array(penalties) * max(float(variance.sum()), np.finfo(float).tiny)
        weights = axes @ ((axes.T @ wanted)[:, None] / (variance[:, None] + penalty))
        return Solved(basis, weights, lambda w: solve_triangular(root.T, w, lower=False), landmarks)

    @torch.no_grad()
    def install(self, head: Blend, rows: Rows, chosen: Sequence[Choice]) -> None:
        """Set the head to the mean of the chosen members, trained on all rows."""
        weight = {kind: np.zeros(part.shape[1]) for kind, part in self.parts.items()}
        scores, kernels = np.zeros(len(self.items)), 0
        for parameter in (head.of_landmarks, head.factors):
            parameter.zero_()
        for one in chosen:
            member, solved = one.member, self.solve(self.kernel(one.member), rows, (one.penalty,))
            scores += solved.basis @ solved.weights[:, 0] / len(chosen)
            of_landmarks = solved.to_landmarks(solved.weights[:, 0]) / len(chosen)
            at = self.chosen[solved.landmarks]
            if member.width is None:
                for kind in member.kinds:
                    weight[kind] += self.parts[kind][at].T @ of_landmarks / len(member.kinds)
            else:
                compared = [(kind, width) for kind, width in head.kinds.items() if kind != "product"]
                factor = (len(member.kinds) * member.width) ** -0.5
                factors = [np.full(width, factor if kind in member.kinds else 0.0) for kind, width in compared]
                head.factors[kernels] = torch.from_numpy(np.concatenate(factors))
                head.of_landmarks[kernels, torch.from_numpy(solved.landmarks)] = torch.from_numpy(of_landmarks).float()
                kernels += 1
        head.weight.copy_(torch.from_numpy(np.concatenate(list(weight.values()))))
        head.bias.copy_(torch.tensor(rows.weight @ (rows.value - scores[self.position(rows.item)])))
