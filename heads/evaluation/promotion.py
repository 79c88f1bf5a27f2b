"""Decide by a paired test, on pairs that neither head has learned from, whether a new head replaces the served one.

Knows scores, no head.
"""

from dataclasses import dataclass

import numpy as np

from embed.arrays import Floats
from heads.config import PromotionConfig
from heads.data.comparisons import Labels
from heads.evaluation.intervals import Bootstrap, Interval, PairedInterval, mean_interval, paired_interval
from heads.metrics import pair_credit

FEW_PROMPTS = 10  # with fewer prompts, pictures are resampled and not prompts


@dataclass(frozen=True)
class Verdict:
    """The pair accuracy of both heads, their difference, and the decision."""

    promoted: bool
    why: str
    pairs: int  # pairs with a winner
    clusters: str  # the name of what is resampled
    old: Interval | None = None
    new: Interval | None = None
    test: PairedInterval | None = None

    def to_json(self) -> dict[str, object]:
        found = {name: getattr(self, name) for name in ("promoted", "why", "pairs", "clusters")}
        if self.old is None or self.new is None or self.test is None:
            return found
        return {**found, "old": self.old.to_json(), "new": self.new.to_json(), **self.test.to_json()}


def judged(labels: Labels, old: Floats, new: Floats, config: PromotionConfig, seed: int = 0) -> Verdict:
    """The verdict from the scores (m, 2) of both heads on the rows of a table of comparisons."""
    target = labels.values["target"]
    decided = target != 0.5
    prompts, pictures = labels.prompt[labels.items], labels.image[labels.items]
    by_prompt = bool((prompts >= 0).all()) and len(np.unique(prompts[decided])) >= FEW_PROMPTS
    clusters, name = (prompts, "prompts") if by_prompt else (pictures, "pictures")
    pairs = int(decided.sum())
    if pairs < config.least_pairs:
        why = f"{pairs} votes with a winner on pairs drawn at random; wanted at least {config.least_pairs} to judge by"
        return Verdict(False, why, pairs, name)
    credit_old, credit_new = (pair_credit(scores[:, 0], scores[:, 1], target) for scores in (old, new))
    bootstrap = Bootstrap(clusters[:, 0], clusters[:, 1], np.random.default_rng(seed), name=name)
    test = paired_interval(credit_new, credit_old, bootstrap)
    promoted, why = _decided(test, config)
    first, second = (mean_interval(credit, bootstrap, None, 0, 1) for credit in (credit_old, credit_new))
    return Verdict(promoted, why, pairs, name, first, second, test)


def _decided(test: PairedInterval, config: PromotionConfig) -> tuple[bool, str]:
    found, p = test.difference, test.p_value
    said = f"pair accuracy differs by {found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f}, p = {p:.2g})"
    if not np.isfinite([found.low, found.high]).all():
        return False, f"the new and the old head cannot be told apart: {found.reason or said}"
    if found.value > 0 and p <= config.max_p:
        return True, f"the new head is better: {said}"
    if config.allow_equal and found.low >= -config.equal_within:
        return True, f"the new head is not worse by more than {config.equal_within:g}: {said}"
    return False, f"the new head is not proven better: {said}"
