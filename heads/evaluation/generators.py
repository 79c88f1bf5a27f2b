"""Rank image generators by the pairwise choices of people or of a head.

A choice is (a, b, target): two generators and the probability that a's picture is preferred; a tie is half a win
for each. Knows no picture and no head: `choices` turns ratings or scores into choices, so that the same code ranks by
people and by a head.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embed.arrays import Floats, Ints
from embed.progress import stage
from embed.spec import InputError
from heads.data.comparisons import Labels, appeal, groups_of, values_of
from heads.evaluation.intervals import ENDS, Bootstrap, Interval, mean_interval
from heads.metrics import filter_at_k, recall_at_k, spearman
from heads.pairs import pairs_within

# As in chess: the first rating, the largest change by one choice, and the lead that makes odds of ten to one.
ELO_BASE = 1000.0
ELO_K = 32.0
ELO_SCALE = 400.0
ONE_PROMPT = "fewer than two prompts"


@dataclass(frozen=True, eq=False)
class Choices:
    """m choices between generators. `a` and `b` (m,) are indices into `generators`; `target` and `prompt` are (m,)."""

    generators: tuple[str, ...]
    a: Ints
    b: Ints
    target: Floats
    prompt: NDArray[np.generic]


def choices(values: ArrayLike, prompt: ArrayLike, generator: ArrayLike) -> Choices:
    """Every pair of pictures of one prompt by different generators. The higher value is preferred; equal values are a
    tie.

    `values` (n,) are ratings or scores of pictures, `prompt` and `generator` (n,) belong to them. The same prompts and
    generators give the same pairs in the same order, whatever the values.
    """
    values = np.asarray(values, np.float64)
    if np.isnan(values).any():
        raise InputError(f"{int(np.isnan(values).sum())} of {len(values)} values are NaN; leave these pictures out")
    names, number = np.unique(np.asarray(generator), return_inverse=True)
    prompt = np.asarray(prompt)
    first, second = pairs_within(prompt)
    # Sorted by prompt and then as in the table, so that a seed always gives the same random orders.
    order = np.lexsort((second, first, prompt[first]))
    first, second = first[order], second[order]
    differ = number[first] != number[second]
    first, second = first[differ], second[differ]
    if not len(first):
        raise InputError(f"no prompt has pictures by two of the {len(names)} generators; add such pictures")
    target = 0.5 + 0.5 * np.sign(values[first] - values[second])
    generators = tuple(str(name) for name in names)
    return Choices(generators, number[first], number[second], target, prompt[first])


def choices_in(
    labels: Labels, generator: NDArray[np.generic], fold: ArrayLike, scores: Floats | None = None
) -> Choices:
    """The choices that people made in a table, or the ones that `scores` (m, sides) make of the same pairs.

    `generator` (m, sides) names the generator of each picture. Rows of the same group (or prompt) and `fold` (m,) are
    compared; those of fold -1 are left out.
    """
    fold = np.asarray(fold)
    rows = np.flatnonzero(fold >= 0)
    if labels.kind != "comparisons":
        values = appeal(labels) if scores is None else scores[:, 0]
        meeting = groups_of(labels, rows) * (fold.max(initial=0) + 1) + fold[rows]
        return choices(values[rows], meeting, generator[rows, 0])
    names, number = np.unique(generator, return_inverse=True)
    a, b = number.reshape(-1, 2)[rows].T
    target = labels.values["target"][rows] if scores is None else 0.5 + 0.5 * np.sign(scores[rows, 0] - scores[rows, 1])
    if not (a != b).any():
        raise InputError(f"no pair compares two of the {len(names)} generators; give other columns or add such pairs")
    prompt = labels.prompt[labels.items[rows, 0]]
    return Choices(tuple(map(str, names)), *(column[a != b] for column in (a, b, target, prompt)))


def found_at_k(
    labels: Labels, fold: ArrayLike, scores: Floats, seed: int = 0, ks: Sequence[int] = (1, 2, 4)
) -> dict[str, Interval]:
    """ImageReward's recall@k and filter@k. Recall@k is the share of prompts whose k highest `scores` (m, 1) include the
    picture that people like best, and filter@k that whose k lowest include the one that they like least. Equal scores
    count against the scorer. Rows are compared as in `choices_in`. Raise InputError for comparisons, which rank only
    two pictures.

    Rows meet as in `choices_in`. Raise InputError for comparisons, which say nothing of a prompt's other pictures.
    """
    if labels.kind == "comparisons":
        raise InputError("recall@k and filter@k need several pictures of each prompt that people ranked or rated")
    fold = np.asarray(fold)
    rows = np.flatnonzero(fold >= 0)
    group = groups_of(labels, rows) * (fold.max(initial=0) + 1) + fold[rows]
    rank, names, found = -appeal(labels)[rows], np.unique(group), {}
    for name, credit in (("recall", recall_at_k), ("filter", filter_at_k)):
        for k in ks:
            bootstrap = Bootstrap(names, names, np.random.default_rng(seed), name="prompts")
            found[f"{name}_at_{k}"] = mean_interval(credit(scores[rows, 0], group, rank, k), bootstrap, None, 0, 1)
    return found


def generators_of(labels: Labels, columns: str, pattern: str | None = None) -> NDArray[np.generic]:
    """(m, sides) str: the value of a column of the table (`A,B` for comparisons), which names the generator of each
    picture. With a regular expression `pattern` it is the part that the pattern finds first, or its first group if it
    has one."""
    number, names = values_of(labels, columns)
    if pattern is not None:
        try:
            found = [re.search(pattern, name) for name in names]
        except re.error as error:
            raise InputError(f"--pattern {pattern!r} is not a regular expression: {error}") from None
        parts = [match and match.group(min(1, match.re.groups)) for match in found]
        if lost := [name for name, part in zip(names, parts, strict=True) if part is None]:
            raise InputError(f"--pattern {pattern!r} finds nothing in {lost[0]!r}, a value of {columns}")
        names = [part for part in parts if part is not None]
    return np.asarray(names)[number]


def win_rates(choices: Choices) -> dict[str, float | None]:
    """The share of its choices that each generator won. A tie counts one half. None for a generator without choices."""
    count = len(choices.generators)
    won = np.bincount(choices.a, choices.target, count) + np.bincount(choices.b, 1 - choices.target, count)
    met = np.bincount(choices.a, minlength=count) + np.bincount(choices.b, minlength=count)
    return {name: float(w / m) if m else None for name, w, m in zip(choices.generators, won, met, strict=True)}


@stage("playing Elo")
def elo(choices: Choices, rng: np.random.Generator, orders: int = 50) -> dict[str, dict[str, float]]:
    """The `mean` and `sd` of each generator's Elo after all choices, over `orders` random orders (PickScore: 50).

    Every rating starts at 1000. A choice adds 32 (target - 1 / (1 + 10^((r_b - r_a) / 400))) to that of a, and
    subtracts as much from that of b. Time grows with the number of choices, and hardly with that of orders.
    """
    ratings = _play(choices, choices.target, _orders(choices, rng, orders))
    found = zip(choices.generators, ratings.mean(0), ratings.std(0), strict=True)
    return {name: {"mean": float(mean), "sd": float(sd)} for name, mean, sd in found}


def elo_agreement(people: Choices, head: Choices, rng: np.random.Generator, orders: int = 50) -> tuple[float, float]:
    """Mean and standard deviation, over random orders, of Spearman's correlation between people's Elo and a head's.

    PickScore's measure of how well a scorer ranks generators. Both must hold the same pairs in the same order.
    """
    if not (np.array_equal(people.a, head.a) and np.array_equal(people.b, head.b)):
        raise ValueError(f"{len(people.a)} and {len(head.a)} choices; wanted the same pairs in the same order")
    order = _orders(people, rng, orders)
    both = (_play(people, side.target, order) for side in (people, head))
    agreement = [spearman(x, y) for x, y in zip(*both, strict=True)]
    return float(np.mean(agreement)), float(np.std(agreement))


@stage("fitting Bradley-Terry")
def bradley_terry(choices: Choices) -> dict[str, Interval]:
    """Each generator's strength in natural log odds, of mean 0: P(i preferred to j) = sigmoid(strength_i - strength_j).

    The strengths have the highest likelihood (Bradley & Terry 1952). Their 95 % intervals use Student's t with the
    number of prompts, and the sandwich covariance with prompts as clusters, since choices of one prompt share pictures
    and are not independent. Raise InputError if some generators never win against the others or never meet them,
    because then no finite strengths are best (Ford 1957).
    """
    from scipy.special import expit
    from scipy.stats import t

    names = choices.generators
    wins = np.zeros((len(names), len(names)))
    np.add.at(wins, (choices.a, choices.b), choices.target)
    np.add.at(wins, (choices.b, choices.a), 1 - choices.target)
    _require_connected(names, wins)
    strength = _most_likely_strengths(wins)

    _, information = _gradient_and_information(wins, strength)
    inverse = _inverse(information)
    residual = choices.target - expit(strength[choices.a] - strength[choices.b])
    prompts, number = np.unique(choices.prompt, return_inverse=True)
    gradients = np.zeros((len(prompts), len(names)))
    np.add.at(gradients, (number, choices.a), residual)
    np.add.at(gradients, (number, choices.b), -residual)
    others = len(prompts) - 1
    if not others:
        return {name: Interval(value, np.nan, np.nan, ONE_PROMPT) for name, value in zip(names, strength, strict=True)}
    covariance = len(prompts) / others * inverse @ gradients.T @ gradients @ inverse
    reach = t.ppf(ENDS[1], others) * np.sqrt(np.diag(covariance))
    found = zip(names, strength.tolist(), reach.tolist(), strict=True)
    return {name: Interval(value, value - half, value + half) for name, value, half in found}


def _orders(choices: Choices, rng: np.random.Generator, orders: int) -> Ints:
    """(orders, m) random orders of all choices."""
    return rng.permuted(np.tile(np.arange(len(choices.a)), (orders, 1)), axis=1)


def _play(choices: Choices, target: Floats, orders: Ints) -> Floats:
    """(orders, g) the ratings after the last choice. All orders are computed side by side."""
    ratings = np.full((len(orders), len(choices.generators)), ELO_BASE)
    row = np.arange(len(orders))
    for turn in orders.T:
        a, b = choices.a[turn], choices.b[turn]
        expected = 1 / (1 + 10 ** ((ratings[row, b] - ratings[row, a]) / ELO_SCALE))
        move = ELO_K * (target[turn] - expected)
        ratings[row, a] += move
        ratings[row, b] -= move
    return ratings


def _require_connected(names: tuple[str, ...], wins: Floats) -> None:
    from scipy.sparse.csgraph import connected_components

    parts, part = connected_components(wins > 0, directed=True, connection="strong")
    if parts != 1:
        some = ", ".join(name for name, number in zip(names, part, strict=True) if number == part[0])
        rest = ", ".join(name for name, number in zip(names, part, strict=True) if number != part[0])
        raise InputError(
            f"Bradley-Terry has no finite strengths: between ({some}) and ({rest}) one side never wins, or they never"
            " meet; add choices between them, leave one side out, or use Elo"
        )


def _most_likely_strengths(wins: Floats) -> Floats:
    """(g,) the strengths, of sum 0, by Newton's method. A step is halved while it lowers the likelihood.

    If the wins connect all generators, the concave likelihood has one maximum.
    """
    wins = wins / wins.sum()  # keeps the likelihood of the order of one, so that 1e-12 suits any number of wins
    strength = np.zeros(len(wins))
    while True:
        gradient, information = _gradient_and_information(wins, strength)
        step = _inverse(information) @ gradient
        if gradient @ step < 1e-12:
            return strength + step
        while _log_likelihood(wins, strength + step) < _log_likelihood(wins, strength):
            step = step / 2
        strength = strength + step


def _gradient_and_information(wins: Floats, strength: Floats) -> tuple[Floats, Floats]:
    """First derivative (g,) of the log likelihood and its negative second (g, g), which is a graph's Laplacian."""
    from scipy.special import expit

    met = wins + wins.T
    probability = expit(strength[:, None] - strength)
    weight = met * probability * (1 - probability)
    return (wins - met * probability).sum(1), np.diag(weight.sum(1)) - weight


def _inverse(information: Floats) -> Floats:
    """The inverse for vectors of sum 0. Choices do not determine a common level, so that direction is filled in."""
    return np.linalg.inv(information + np.trace(information) / information.size)


def _log_likelihood(wins: Floats, strength: Floats) -> float:
    return float(-(wins * np.logaddexp(0, strength - strength[:, None])).sum())
