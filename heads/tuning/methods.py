"""The losses of tuning: ReFL, DRaFT-K and Diffusion-DPO, with a pre-training loss or a distance from the untuned model.

    refl    mean relu(2 - r), r the standardised reward of the predicted clean picture at one late step (Xu et al. 2023)
    draft   mean -r of the finished picture, with a gradient through its last K steps (Clark et al. 2023)
    dpo     mean -log sigmoid(-beta / 2 [(e_w - e_l) - (e_w' - e_l')]), e the squared errors of winner and loser under
            the same noise and time, e' those of the untuned model (Wallace et al. 2023)

Nothing here is random: noise, times and places are arguments, so that a step can be repeated.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from heads.tuning.families import Conditions, Family
from heads.tuning.weights import Trained

MARGIN = 2.0  # of ReFL: a picture so many standard deviations above the untuned mean is good enough

Score = Callable[[Tensor], Tensor]  # scores (n,) of pixels (n, 3, h, w), with a gradient


@dataclass(frozen=True)
class Made:
    """Pictures after some denoising steps."""

    latents: Tensor  # (n, ...) after the last step taken
    clean: Tensor  # (n, ...) the predicted clean latents
    distance: (
        Tensor  # mean squared distance from the untuned model, over the steps with a gradient; 0 without reference
    )


def guided(family: Family, latents: Tensor, time: Tensor, told: Conditions, guidance: float) -> Tensor:
    """The model's prediction for prompts, moved away from its prediction for the empty prompt."""
    if told.without is None:
        return family.predict(latents, time, told.given)
    both = {name: torch.cat([told.without[name], value]) for name, value in told.given.items()}
    without, given = family.predict(torch.cat([latents, latents]), time, both).chunk(2)
    return without + guidance * (given - without)


def make(
    family: Family,
    noise: Tensor,
    told: Conditions,
    steps: int,
    guidance: float,
    learns: int | None = None,
    until: int | None = None,
    reference: Trained | None = None,
) -> Made:
    """Make pictures from noise, up to and including step `until`. Steps from `learns` on have a gradient.

    With a `reference`, the distance from the untuned model is measured over these steps.
    """
    last = steps - 1 if until is None else until
    first = steps if learns is None else learns
    times = family.process.times(steps, family.tokens)
    latents = clean = noise
    distances = []
    for number in range(last + 1):
        with torch.enable_grad() if number >= first else torch.no_grad():
            output = guided(family, latents, times[number], told, guidance)
            if number >= first and reference is not None:
                with torch.no_grad(), reference.untuned():
                    before = guided(family, latents, times[number], told, guidance)
                distances.append(squared_error(output, before).mean())
            latents, clean = family.process.step(number, latents, output)
    return Made(latents, clean, torch.stack(distances).mean() if distances else noise.new_zeros(()))


@torch.no_grad()
def pictures(family: Family, noise: Tensor, told: Conditions, steps: int, guidance: float) -> Tensor:
    """Finished pictures (n, 3, h, w) in [0, 1]."""
    return family.decode(make(family, noise, told, steps, guidance).latents)


@dataclass(frozen=True)
class Lost:
    """The parts of a loss, each a mean over pictures or pairs. Parts that a method does not have are zero."""

    reward: Tensor
    distance: Tensor
    score: Tensor  # (n,) the standardised rewards


def refl(
    family: Family,
    noise: Tensor,
    told: Conditions,
    score: Score,
    steps: int,
    guidance: float,
    place: int,
    reference: Trained | None = None,
) -> Lost:
    """ReFL's loss, with the gradient only through step `place`."""
    made = make(family, noise, told, steps, guidance, place, place, reference)
    found = score(family.decode(made.clean))
    return Lost(relu(MARGIN - found).mean(), made.distance, found.detach())


def draft(
    family: Family,
    noise: Tensor,
    told: Conditions,
    score: Score,
    steps: int,
    guidance: float,
    last: int = 1,
    reference: Trained | None = None,
) -> Lost:
    """DRaFT's loss, with the gradient through the last steps."""
    made = make(family, noise, told, steps, guidance, steps - last, None, reference)
    found = score(family.decode(made.latents))
    return Lost(-found.mean(), made.distance, found.detach())


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """(n,) the mean squared difference of each item."""
    return (output - target).square().flatten(1).mean(dim=1)


def denoising(family: Family, clean: Tensor, noise: Tensor, times: Tensor, told: Conditions) -> Tensor:
    """(n,) the denoising loss, with which generators are trained from scratch."""
    output = family.predict(family.process.noised(clean, noise, times), times, told.given)
    return squared_error(output, family.process.target(clean, noise, times))


def dpo(
    family: Family,
    trained: Trained,
    better: Tensor,
    worse: Tensor,
    noise: Tensor,
    times: Tensor,
    told: Conditions,
    beta: float,
) -> Tensor:
    """(n,) Diffusion-DPO's loss of pairs of clean latents."""
    lead = []
    for context, gradient in ((nullcontext(), nullcontext()), (trained.untuned(), torch.no_grad())):
        with context, gradient:
            won, lost = (denoising(family, clean, noise, times, told) for clean in (better, worse))
            lead.append(won - lost)
    return -logsigmoid(-beta / 2 * (lead[0] - lead[1]))
