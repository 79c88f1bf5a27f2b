"""How far a bundle is from the torch model that it was made from, and whether that is too far.

Pictures and prompts go through both. What is compared is what a user would notice: vectors, scores, and the order of
pictures for a prompt. This module takes arrays and returns figures; callers run models and read files.
"""

from dataclasses import dataclass

import numpy as np

from embed.arrays import Array, Bools, Floats, UInt8s
from embed.spec import InputError
from heads.metrics import flipped_pairs, spearman
from runtime.config import Precision
from runtime.scoring.manifest import UncertaintyParity

# Limits at fp32. A score may be a logit of any size: the limit holds for scores up to 1 and grows with the largest
# score.
MAX_SCORE_DIFFERENCE = 1e-4
MIN_COSINE = 0.999999


class ParityError(InputError):
    """Raised when the exported graphs differ from torch by more than is allowed. Nothing is written then."""


@dataclass(frozen=True)
class Margin:
    """A tenth of the decided pairs, those with margins from `low` to `high`: their number, and the share that
    flipped."""

    low: float
    high: float
    pairs: int
    flips: float


@dataclass(frozen=True)
class ScoreParity:
    """Scores at one precision compared with torch's, over all pairs of pictures for each prompt."""

    precision: Precision
    pictures: int
    prompts: int
    max_score_difference: float
    score_spread: float  # standard deviation of torch's scores, to compare the difference with
    spearman: float  # the lowest over the prompts
    noise: float  # pairs that torch separates by no more than this are not counted as decided
    decided_pairs: int
    flips: float  # the share of decided pairs whose order changed
    margins: tuple[Margin, ...]  # the decided pairs in ten parts, from narrow to wide


def score_parity(precision: Precision, reference: Array, scores: Array, noise: float) -> ScoreParity:
    """Compare `scores` with `reference`, both (pictures, prompts).

    `noise` is how much rounding alone changes the difference of two scores.
    """
    theirs, ours = np.asarray(reference, np.float64), np.asarray(scores, np.float64)
    if theirs.shape != ours.shape or theirs.ndim != 2 or len(theirs) < 2:
        raise ValueError(f"wanted two equal shapes (pictures >= 2, prompts); got {theirs.shape} and {ours.shape}")
    difference = float(np.abs(ours - theirs).max())
    margin, flipped = flipped_pairs(theirs, ours, noise)
    return ScoreParity(
        precision=precision,
        pictures=theirs.shape[0],
        prompts=theirs.shape[1],
        max_score_difference=difference,
        score_spread=float(theirs.std()),
        spearman=min(_spearman(theirs[:, i], ours[:, i]) for i in range(theirs.shape[1])),
        noise=noise,
        decided_pairs=len(margin),
        flips=float(flipped.mean()) if len(flipped) else 0.0,
        margins=_margins(margin, flipped),
    )


def _margins(margin: Floats, flipped: Bools) -> tuple[Margin, ...]:
    order = np.argsort(margin, kind="stable")
    return tuple(
        Margin(float(margin[part[0]]), float(margin[part[-1]]), len(part), float(flipped[part].mean()))
        for part in np.array_split(order, 10)
        if len(part)
    )


def _spearman(theirs: Floats, ours: Floats) -> float:
    """Return Spearman's correlation. If a side is constant, return 1 if both are, else 0."""
    constant = [np.ptp(side) == 0 for side in (theirs, ours)]
    return float(all(constant)) if any(constant) else spearman(theirs, ours)


def require_parity(
    parity: ScoreParity, cosine_min: float, score_limit: float, max_flips: float, output: str = ""
) -> None:
    """Raise ParityError that says what is too far off. `score_limit` and MIN_COSINE apply only to fp32."""
    faults = []
    if parity.precision == "fp32" and not parity.max_score_difference <= score_limit:
        faults.append(f"a score differs by {parity.max_score_difference:.2e}, more than {score_limit:.2e}")
    if parity.precision == "fp32" and not cosine_min >= MIN_COSINE:
        faults.append(f"a vector's cosine is {cosine_min:.7f}, less than {MIN_COSINE}")
    if not parity.flips <= max_flips:
        faults.append(
            f"{parity.flips:.2%} of {parity.decided_pairs} pairs change their order, more than {max_flips:.2%}"
            " (--max-flips)"
        )
    if faults:
        figures = f"rank correlation {parity.spearman:.4f}, lowest cosine {cosine_min:.6f}"
        of = f" about {output}" if output else ""
        raise ParityError(f"{parity.precision} and torch disagree{of}: {'; '.join(faults)}; {figures}")


def uncertainty_parity(precision: Precision, reference: Array, ours: Array, limit: float) -> UncertaintyParity:
    """Compare uncertainties with `reference`, of the same shape. Raise ParityError beyond `limit` at fp32."""
    theirs = np.asarray(reference, np.float64)
    difference = float(np.abs(np.asarray(ours, np.float64) - theirs).max())
    if precision == "fp32" and not difference <= limit:
        raise ParityError(f"fp32 and torch disagree: an uncertainty differs by {difference:.2e}, more than {limit:.2e}")
    return {"max_difference": difference, "mean": float(theirs.mean())}


def generated_pictures(count: int, seed: int = 0) -> list[UInt8s]:
    """Return pictures (h, w, 3) of coloured clouds with an edge, for use without real pictures: 1/f noise and a disc.

    Their spectrum is like that of photographs (Field 1987); they show nothing.
    """
    generator = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        height, width = (int(n) for n in generator.integers(200, 480, 2))
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
        frequency[0, 0] = 1
        noise = generator.standard_normal((3, height, width))
        clouds = np.fft.irfft2(np.fft.rfft2(noise) / frequency ** generator.uniform(0.8, 1.4), (height, width))
        clouds /= clouds.std(axis=(1, 2), keepdims=True)
        y, x, radius = generator.uniform(0.2, 0.8, 3) * (height, width, min(height, width) / 2)
        disc = np.hypot(np.arange(height)[:, None] - y, np.arange(width)[None] - x) < radius
        clouds[:, disc] += generator.uniform(-2, 2, (3, 1))
        level = generator.uniform(60, 190, (3, 1, 1)) + generator.uniform(20, 60) * clouds
        pictures.append(np.clip(np.rint(level), 0, 255).astype(np.uint8).transpose(1, 2, 0))
    return pictures
