"""Combine several rewards into one: each is standardised on a reference set, then weighted and added.

    rewards = Rewards.load({"liked": ("head", 1.0), "sharp": ("other", 0.5)}, device="cuda")
    rewards.standardise((pixels, prompts) for pixels, prompts in of_the_untuned_generator)
    total = rewards(pixels, prompts)

If rewards are added without a common scale, their units decide which one counts, and the easier one wins. Rewards on
the same backbone share one pass of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from embed.backbones.backbone import Backbone
from embed.backbones.load import load_backbone
from embed.spec import InputError, Source
from heads.config import picture_inputs
from heads.reward.encoder import Encoder
from heads.reward.module import Frozen, Prompts, Reward, Scores, source_of, vectors_of


class Rewards(Frozen):
    """sum_i weight_i (score_i - mean_i) / deviation_i, with means and deviations of a reference set.

    From then on the given rewards share a backbone if theirs is the same.
    """

    def __init__(self, rewards: Mapping[str, tuple[Reward, float]]) -> None:
        super().__init__()
        if not rewards:
            raise InputError("got no rewards; wanted at least one")
        self.names = list(rewards)
        self.members = [reward for reward, _ in rewards.values()]
        self.groups = _share(self.members)
        self.modules_of_members = nn.ModuleList(self.members)  # registered, so that .to() moves them too
        self.weight = nn.Buffer(torch.tensor([weight for _, weight in rewards.values()], device=self.device))
        self.mean, self.deviation = (nn.Buffer(torch.full_like(self.weight, torch.nan)) for _ in range(2))
        self._has_scale = False
        self.eval()

    @classmethod
    def load(
        cls,
        rewards: Mapping[str, tuple[str | Path, float]],
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
    ) -> "Rewards":
        """Load rewards from folders, given by name with their weights."""
        loaded: dict[Source, Backbone] = {}
        found = {}
        for name, (path, weight) in rewards.items():
            source = source_of(path)
            if source not in loaded:
                loaded[source] = load_backbone(source, device)
            found[name] = Reward.on(loaded[source], path, dtype, checkpointing), weight
        return cls(found)

    def forward(self, pixels: Tensor, prompts: Prompts = None) -> Tensor:
        """(n,) totals, with a gradient, of pictures (n, 3, h, w) in [0, 1] of any size."""
        return self.scores(pixels, prompts, uncertain=False).total

    def scores(self, pixels: Tensor, prompts: Prompts = None, uncertain: bool = True) -> Scores:
        """The totals, each reward's own score by its name, and unless `uncertain` is False the uncertainties of
        these."""
        if not self._has_scale:  # not checked again once true, because each check waits for the device
            if self.mean.isnan().any():
                raise InputError("these rewards have no common scale yet; call standardise with a reference set first")
            self._has_scale = True
        own = self._own(pixels, prompts, uncertain)
        return own._replace(total=self.total(own.parts))

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """(n,) the totals, from each reward's own scores (n,)."""
        scores = torch.stack([parts[name] for name in self.names], dim=-1)
        total: Tensor = ((scores - self.mean) / self.deviation * self.weight).sum(dim=-1)
        return total

    @torch.no_grad()
    def standardise(self, reference: Iterable[tuple[Tensor, Prompts]]) -> "Rewards":
        """Compute means and deviations from batches of pixels and prompts, such as those of the generator before
        tuning. Raise InputError if a reward gives all of them the same score."""
        batches = [self._own(pixels, prompts, False).parts for pixels, prompts in reference]
        nothing = torch.zeros(0)
        return self.rescale({n: torch.cat([parts[n] for parts in batches]) if batches else nothing for n in self.names})

    @torch.no_grad()
    def rescale(self, reference: Mapping[str, Tensor]) -> "Rewards":
        """Compute means and deviations from each reward's own scores of a reference set. Raise InputError if a reward's
        scores are all the same."""
        for i, name in enumerate(self.names):
            scores = reference[name]
            if len(scores) < 2 or not scores.std() > 0:
                raise InputError(
                    f"the reference set gives {name} no scale: its {len(scores)} scores do not differ; wanted at"
                    " least two different ones"
                )
            self.mean[i], self.deviation[i] = scores.mean(), scores.std()
        return self

    @property
    def encoder(self) -> Encoder:
        """The first reward's encoder, to compute vectors of pictures."""
        return self.members[0].encoder

    def _own(self, pixels: Tensor, prompts: Prompts, uncertain: bool) -> Scores:
        """Every reward's score and uncertainty by its name, from one pass of each backbone. The total is not set."""
        parts, sure = dict[str, Tensor](), dict[str, Tensor]()
        with torch.autocast(pixels.device.type, enabled=False):
            for encoder, members in self.groups:
                chosen = [self.members[i] for i in members]
                vectors = vectors_of(encoder, pixels, prompts, chosen)
                for i, reward in zip(members, chosen, strict=True):
                    found = reward.read(vectors, uncertain)
                    parts[self.names[i]] = found.total
                    sure.update((self.names[i], own) for own in found.uncertainty.values())
        return Scores(pixels.new_zeros(0), parts, sure)


def _share(rewards: Sequence[Reward]) -> list[tuple[Encoder, list[int]]]:
    """Make rewards on the same backbone share an encoder. Gives the remaining encoders, each with all features that its
    rewards read, and the numbers of these rewards."""
    groups: dict[object, list[int]] = {}
    for i, reward in enumerate(rewards):
        encoder = reward.encoder
        key = encoder.identity, encoder.dtype, encoder.rounding, encoder.device
        groups.setdefault(key, []).append(i)
    found = []
    for members in groups.values():
        first = rewards[members[0]].encoder
        for i in members:
            rewards[i].encoder = first.reading(rewards[i].encoder.features)
        read = [name for i in members for name in rewards[i].head.inputs]
        found.append((first.reading(picture_inputs(read)), members))
    return found
