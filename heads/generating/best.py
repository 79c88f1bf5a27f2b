"""Best of n: choose the highest scoring picture of each prompt, and rate the templates that pictures came from.

After Pick-a-Pic (Kirstain et al. 2023, section 6). Pictures are always scored under the prompt itself, without its
template.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from embed.arrays import Floats
from embed.progress import Progress, silent
from embed.spec import InputError
from heads.evaluation.generators import choices, win_rates
from heads.evaluation.intervals import Bootstrap, Interval, mean_interval
from heads.generating.pictures import Candidate

Score = Callable[[str, Sequence[Path]], ArrayLike]  # scores (n,) of pictures under a prompt


@dataclass(frozen=True)
class Best:
    """The chosen picture of a prompt; `mean` is the mean score of its candidates."""

    prompt: str
    image: str
    template: str
    seed: int
    score: float
    mean: float
    candidates: int


@dataclass(frozen=True)
class TemplateRates:
    """How often a template gives the best picture of a prompt, and how often its pictures beat those of other templates
    (`wins`) or of the first template (`over_first`) under the same prompt. Ties count one half."""

    template: str
    best: float
    wins: float | None
    over_first: Interval | None


def score_all(
    score: Score, prompts: Sequence[str], candidates: Sequence[Candidate], folder: Path, progress: Progress = silent
) -> Floats:
    """(n,) the score of each candidate under its prompt. Raise InputError if a score is not finite."""
    found = np.full(len(candidates), np.nan)
    number = np.array([one.prompt for one in candidates])
    with progress(len(candidates), "pictures", "scoring") as step:
        for i, prompt in enumerate(prompts):
            rows = np.flatnonzero(number == i)
            found[rows] = score(prompt, [folder / candidates[int(row)].file for row in rows])
            step(len(rows))
    if np.isnan(found).any():
        bad = candidates[int(np.flatnonzero(np.isnan(found))[0])].file
        raise InputError(f"{folder / bad} has no score; remove it, and run the command again")
    return found


def choose(
    prompts: Sequence[str], templates: Sequence[str], candidates: Sequence[Candidate], scores: Floats
) -> list[Best]:
    """The best candidate of each prompt; of equal ones the first."""
    number, found = np.array([one.prompt for one in candidates]), []
    for i, prompt in enumerate(prompts):
        rows = np.flatnonzero(number == i)
        first = int(rows[np.argmax(scores[rows])])
        one = candidates[first]
        mean = float(scores[rows].mean())
        found.append(Best(prompt, one.file, templates[one.template], one.seed, float(scores[first]), mean, len(rows)))
    return found


def rates(
    templates: Sequence[str], candidates: Sequence[Candidate], scores: Floats, seed: int = 0
) -> list[TemplateRates]:
    """The rates of each template. Intervals resample prompts."""
    prompt = np.array([one.prompt for one in candidates])
    template = np.array([one.template for one in candidates])
    best = {int(rows[np.argmax(scores[rows])]) for rows in (np.flatnonzero(prompt == i) for i in np.unique(prompt))}
    share = np.bincount(template[sorted(best)], minlength=len(templates)) / len(best)
    if len(templates) == 1:
        return [TemplateRates(templates[0], float(share[0]), None, None)]
    width = len(str(len(templates)))  # names are sorted as text
    names = [f"{i:0{width}d}" for i in range(len(templates))]
    made = choices(scores, prompt, np.array(names)[template])
    wins, found = win_rates(made), []
    for i, name in enumerate(names):
        over: Interval | None = None
        if i:
            met = ((made.a == 0) & (made.b == i)) | ((made.b == 0) & (made.a == i))
            won = np.where(made.a[met] == i, made.target[met], 1 - made.target[met])
            clusters = made.prompt[met]
            bootstrap = Bootstrap(clusters, clusters, np.random.default_rng(seed), name="prompts")
            over = mean_interval(won, bootstrap, None, 0, 1)
        found.append(TemplateRates(templates[i], float(share[i]), wins[name], over))
    return found
