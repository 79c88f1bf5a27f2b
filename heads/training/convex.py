"""Train heads that are linear in their weights. L-BFGS finds the single best solution, without a learning rate.

The objective is sum over tables (weight x loss of its scores) + penalty / 2 |w|^2, where the basis is centered and has
mean square norm 1, and the bias is not penalised. So a penalty means the same for every backbone and number of rows.
Knows no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embed.arrays import Floats, Ints
from embed.spec import InputError
from heads.data.comparisons import Pairs, expected_accuracy
from heads.data.features import Features
from heads.models import Convex
from heads.training.loop import Diverged
from heads.training.objectives import OBJECTIVES, Part, items_of
from heads.training.train import items_of_parts, require_examples

PENALTIES = tuple(10 ** (-step / 2) for step in range(13))  # 1 to 1e-6, the strongest first
# L-BFGS stops when no coordinate of the gradient, in the coordinates of `Problem`, exceeds this.
GRADIENT_TOLERANCE = 1e-5
MAX_ITERATIONS = 1000
BATCH = 16384  # items whose basis is computed at once
# Upper bound of the second derivative by one item's score: 2 for a square, 2 x 1/4 for a logistic loss of two scores.
CURVATURE = {"rating": 2.0}
LOGISTIC_CURVATURE = 0.5
PATIENCE = 2  # the search ends after this many weaker penalties in a row that are no better on validation rows


@dataclass(frozen=True)
class Round:
    """A round of validation: the parts to train on, and the pairs and examples of the rows kept aside."""

    parts: Sequence[Part]
    pairs: Pairs
    aside: Part


@dataclass(frozen=True)
class Solution:
    """The result of `Problem.solve` for a penalty."""

    objective: float
    iterations: int
    converged: bool
    weight: Tensor  # (k,) for the head's own basis
    bias: Tensor  # ()


class Problem:
    """A convex head's training examples over its basis, ready for any penalty.

    The variables are the weights along the principal axes of the basis, each times the square root of the curvature
    along this axis. The objective of squared errors is then a sphere, and those of the other losses are nearly one, so
    that a few iterations suffice in place of thousands.
    """

    def __init__(self, head: Convex, features: Features, parts: Sequence[Part]) -> None:
        if any(part.options.of(part.loss) for part in parts):
            raise InputError("heads fitted by a solver take no margin and no reduction; leave these out")
        items = items_of_parts(parts)
        basis = basis_of(head, features, items)
        self._mean = basis.mean(dim=0)
        basis -= self._mean
        variance, self._axes = principal_axes(basis)
        total = float(variance.clamp(min=0).sum())
        if total == 0:
            raise InputError(f"all {len(items)} items to train on have the same vectors; nothing can be learned")
        self._scale = total**-0.5
        self._basis = basis @ (self._axes * self._scale).float()
        self._variance = (variance.clamp(min=0) / total).numpy()
        self._curvature = curvature(parts)
        self._terms = [term(part, items) for part in parts]
        self._start = np.zeros(len(self._variance) + 1)  # weights along the axes, and the bias

    def solve(self, penalty: float) -> Solution:
        """The best weights. The search starts from those of the last penalty. Raise Diverged if the objective is not
        finite."""
        from scipy.optimize import minimize

        stretch = np.append(1 / np.sqrt(self._curvature * self._variance + penalty), 1.0)

        def objective(x: Floats) -> tuple[float, Floats]:
            w = x * stretch
            scores = (self._basis @ torch.from_numpy(w[:-1]).to(self._basis) + w[-1]).requires_grad_()
            loss = torch.stack([term(scores) for term in self._terms]).sum()
            (by_score,) = torch.autograd.grad(loss, scores)
            gradient = np.append((self._basis.T @ by_score).cpu().double().numpy(), float(by_score.double().sum()))
            gradient[:-1] += penalty * w[:-1]
            return loss.item() + penalty / 2 * float(w[:-1] @ w[:-1]), gradient * stretch

        options = {"maxiter": MAX_ITERATIONS, "gtol": GRADIENT_TOLERANCE, "ftol": 0.0, "maxcor": 20}
        found = minimize(objective, self._start / stretch, jac=True, method="L-BFGS-B", options=options)
        if not np.isfinite(found.fun):
            raise Diverged(f"the objective is {found.fun} at penalty {penalty:g}; look for labels that are not finite")
        self._start = found.x * stretch
        weight = self._axes @ torch.from_numpy(self._start[:-1]).to(self._axes) * self._scale
        bias = self._start[-1] - weight @ self._mean.double()
        # The line search gives up when float32 cannot resolve a lower value: that is convergence too.
        converged = found.nit < MAX_ITERATIONS
        return Solution(float(found.fun), int(found.nit), converged, weight.float(), bias.float())


def principal_axes(basis: Tensor) -> tuple[Tensor, Tensor]:
    """The variances (k,) of a centered basis (n, d), and the axes (d, k) that they lie along, in float64. With fewer
    rows than columns there are only n axes; the rows do not determine more."""
    if len(basis) < basis.shape[1]:
        _, spread, axes = torch.linalg.svd(basis.double(), full_matrices=False)
        return spread.square() / len(basis), axes.T
    variance, axes = torch.linalg.eigh((basis.T @ basis / len(basis)).double())
    return variance, axes


def term(part: Part, items: Ints) -> Callable[[Tensor], Tensor]:
    """The part's loss, times its weight, as a function of the scores (n,) of `items`."""
    wanted, loss = OBJECTIVES[part.loss].bind(part.examples, np.arange(len(part.examples)), part.options)
    position = torch.from_numpy(np.searchsorted(items, wanted))
    return lambda scores: part.weight * loss(scores.index_select(0, position.to(scores.device)))


@torch.no_grad()
def basis_of(head: Convex, features: Features, items: Ints) -> Tensor:
    """(n, k) float32: the basis of some items."""
    parts = torch.split(torch.from_numpy(items), BATCH)
    return torch.cat([head.basis(**features.take(part, head.inputs)).float() for part in parts])


def curvature(parts: Sequence[Part]) -> float:
    """An upper bound of the second derivative of the parts' losses by an item's score, as if every item were in all
    parts."""
    return sum(part.weight * CURVATURE.get(part.loss, LOGISTIC_CURVATURE) for part in parts)


def prepared(head: Convex, features: Features, parts: Sequence[Part]) -> Convex:
    """The head, prepared with statistics of the items to train on."""
    head.prepare(**features.take(torch.from_numpy(items_of_parts(parts)), head.inputs))
    return head


def solve(head: Convex, features: Features, parts: Sequence[Part], penalty: float) -> Solution:
    """Train `head` in place on `parts`."""
    require_examples(parts, None)
    solution = Problem(prepared(head, features, parts), features, parts).solve(penalty)
    head.set_weights(solution.weight, solution.bias)
    head.eval()
    return solution


def choose_penalty(
    new_head: Callable[[], Convex], features: Features, rounds: Sequence[Round], penalties: Sequence[float] = PENALTIES
) -> tuple[float, list[dict[str, float]]]:
    """Choose the penalty with the lowest mean loss on the rounds' validation rows.

    The loss decides and not the accuracy: it is less noisy if there are few rows, and it also depends on the scale of
    the scores. Penalties are tried from the strongest on, until PATIENCE weaker ones in a row are no better. Returns
    the penalty and one record for each that was tried: penalty, validation_loss, validation_accuracy, iterations
    (mean), converged (share).
    """
    trials = [trial(new_head(), features, one) for one in rounds]
    best, history = 0, list[dict[str, float]]()
    for penalty in penalties:
        found = [measure(penalty) for measure in trials]
        means = {name: float(np.mean([record[name] for record in found])) for name in found[0]}
        history.append({"penalty": penalty, **means})
        if history[-1]["validation_loss"] < history[best]["validation_loss"]:
            best = len(history) - 1
        elif len(history) - 1 - best >= PATIENCE:
            break
    return history[best]["penalty"], history


def trial(head: Convex, features: Features, one: Round) -> Callable[[float], dict[str, float]]:
    """A function that trains on the round's parts with a penalty, and measures the head on the validation rows."""
    problem = Problem(prepared(head, features, one.parts), features, one.parts)
    items = np.union1d(items_of(one.pairs), items_of(one.aside.examples))
    basis, loss = basis_of(head, features, items), term(one.aside, items)
    a, b = np.searchsorted(items, one.pairs.a), np.searchsorted(items, one.pairs.b)

    def measure(penalty: float) -> dict[str, float]:
        solution = problem.solve(penalty)
        scores = basis @ solution.weight + solution.bias
        of_items = scores.cpu().numpy()
        return {
            "validation_loss": float(loss(scores)),
            "validation_accuracy": expected_accuracy(of_items[a], of_items[b], one.pairs),
            "iterations": solution.iterations,
            "converged": solution.converged,
        }

    return measure
