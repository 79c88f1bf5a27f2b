"""Guards that detect when a generator learns to deceive its reward instead of making better pictures.

A look makes pictures from the same prompts and noise each time and measures the reward, a judge that was not trained
on, the diversity of pictures within and between prompts, the fine grain, which a reward that sees 224 pixels does not
see, and how far the model has moved.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embed.arrays import Floats, Ints
from heads.evaluation.intervals import FEW, Bootstrap, Interval, mean_interval
from heads.reward.encoder import Encoder
from heads.reward.module import Prompts, Reward
from heads.reward.several import Rewards
from heads.tuning.config import TuneConfig
from heads.tuning.families import Family
from heads.tuning.methods import pictures, squared_error

FINE = 0.25  # cycles per pixel: half of the finest frequency that is possible
# Measures that are compared with those of the untuned generator, with their names in messages.
SHARES = {"diversity": "diversity", "variety": "diversity between prompts", "sharpness": "fine grain"}
PART = "part "  # prefix of each reward's name if there are several
MOVED_PICTURES = 8  # the number of pictures that measure how far the model has moved


@dataclass(frozen=True)
class Look:
    """The measurements of n pictures, `judge_pictures` of each prompt one after another."""

    pixels: Tensor  # (n, 3, h, w) uint8, on the CPU
    reward: Floats | None  # (n,) scores of the head
    judge: Floats | None
    diversity: Floats  # (prompts,) mean cosine distance of the pictures of a prompt
    variety: Floats  # (prompts,) mean cosine distance of the pictures of a prompt from those of the others
    sharpness: Floats  # (n,) share of the energy in high frequencies
    distance: float  # squared, of the model's predictions from the first look's, relative to their square
    parts: dict[str, Floats]  # (n,) if there are several rewards, the scores of each by name

    @property
    def measures(self) -> dict[str, Floats | None]:
        """All measures that are compared before and after, by name."""
        parts = {f"reward {name}": scores for name, scores in self.parts.items()}
        own = {name: getattr(self, name) for name in ("diversity", "variety", "sharpness")}
        return {"reward": self.reward, **parts, "judge": self.judge, **own}

    def means(self) -> dict[str, float]:
        """The means of the measures that exist."""
        found = self.measures
        return {name: float(values.mean()) for name, values in found.items() if values is not None and len(values)} | {
            "distance": self.distance
        }


class Guards:
    """Look at a generator, always with the same prompts and the same noise."""

    def __init__(
        self,
        family: Family,
        prompts: Sequence[str],
        config: TuneConfig,
        reward: Reward | Rewards | None,
        judge: Reward | None,
        encoder: Encoder | None,
        stream: int = 0,
    ) -> None:
        """Diversity is measured on vectors of `encoder`. Guards with another `stream` draw other noise."""
        self.family, self.config, self.reward, self.judge, self.encoder = family, config, reward, judge, encoder
        self.prompts = [prompt for prompt in prompts for _ in range(config.judge_pictures)]
        self.seeds = [(config.seed, 1, stream, i) for i in range(len(self.prompts))]
        self._before: Tensor | None = None

    def look(self, at_once: int) -> Look:
        """Make the pictures, `at_once` together, and measure them."""
        found: list[dict[str, Tensor]] = []
        for start in range(0, len(self.prompts), at_once):
            some = slice(start, start + at_once)
            texts = self.prompts[some]
            noise = torch.cat([self.family.noise(1, generator_of(*seed)) for seed in self.seeds[some]])
            told = self.family.conditions(texts, self.config.strength > 1)
            made = pictures(self.family, noise, told, self.config.sampling_steps, self.config.strength)
            found.append(self._measured(made, texts))
        columns = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        pixels = columns.pop("pixels")
        vectors = columns.pop("vectors", None)
        scores = {name: values.double().numpy() for name, values in columns.items()}
        return Look(
            pixels,
            scores.get("reward"),
            scores.get("judge"),
            diversity=np.zeros(0) if vectors is None else diversity(vectors, self.config.judge_pictures),
            variety=np.zeros(0) if vectors is None else variety(vectors, self.config.judge_pictures),
            sharpness=scores["sharpness"],
            distance=self._distance(pixels),
            parts={name.removeprefix(PART): own for name, own in scores.items() if name.startswith(PART)},
        )

    @torch.no_grad()
    def _measured(self, pixels: Tensor, prompts: Prompts) -> dict[str, Tensor]:
        found = {"pixels": (pixels * 255).round().to(torch.uint8), "sharpness": sharpness(pixels)}
        for name, reward in (("reward", self.reward), ("judge", self.judge)):
            if reward is not None:
                scores = reward.scores(pixels.to(reward.device, torch.float32), prompts, uncertain=False)
                found[name] = scores.total
                if isinstance(reward, Rewards):
                    found |= {PART + own: values for own, values in scores.parts.items()}
        if self.encoder is not None:
            seen = pixels.to(self.encoder.device, torch.float32)
            found["vectors"] = self.encoder.images(seen)["image_embedding"]
        return {name: tensor.cpu() for name, tensor in found.items()}

    @torch.no_grad()
    def _distance(self, pixels: Tensor) -> float:
        """The distance between the model's predictions and those of the first look, on the pictures of the first
        look."""
        if self._before is None:
            some = pixels[:MOVED_PICTURES].to(self.family.device, self.family.dtype) / 255
            self._clean = self.family.encode(some, generator_of(self.config.seed, 3))
            self._noise = self.family.noise(len(some), generator_of(self.config.seed, 4))
            self._times = self.family.process.draw_times(len(some), generator_of(self.config.seed, 5))
        told = self.family.conditions(self.prompts[: len(self._clean)], guided=False)
        noised = self.family.process.noised(self._clean, self._noise, self._times)
        now = self.family.predict(noised, self._times, told.given)
        if self._before is None:
            self._before = now
        return float((squared_error(now, self._before).mean() / self._before.square().mean()).cpu())

    def shares(self, look: Look, first: Look) -> dict[str, float]:
        """Diversity and fine grain as multiples of those of the first look, each with the ends of its interval, under
        the names that `why_refused` reads."""
        each, found = self.config.judge_pictures, dict[str, float]()
        measured = {
            "diversity": (look.diversity, first.diversity, 1),
            "variety": (look.variety, first.variety, 1),
            "sharpness": (look.sharpness, first.sharpness, each),
        }
        for name, (now, before, per) in measured.items():
            if len(now):
                share = share_of(now, before, np.arange(len(now)) // per, self.config.seed)
                found |= {f"{name}_share": share.value, f"{name}_low": share.low, f"{name}_high": share.high}
        return found


def why_refused(shares: Mapping[str, float], config: TuneConfig) -> list[str]:
    """The reasons to refuse the weights of a look, or an empty list. A look is refused if its pictures are more alike
    or have more fine grain than allowed, even by the better end of the interval."""
    found = []
    for name, said in SHARES.items():
        if name + "_share" not in shares:
            continue
        share, low, high = (shares[name + end] for end in ("_share", "_low", "_high"))
        if low > config.max_sharpness if name == "sharpness" else high < config.min_diversity:
            found.append(f"{said} {share:.0%} of before" + (f", {low:.0%} to {high:.0%}" if low < high else ""))
    return found


def share_of(now: Floats, before: Floats, prompt: Ints, seed: int) -> Interval:
    """The mean of values (n,) divided by their mean before, for the same prompts and noise, with its interval over
    prompts. Differences between prompts cancel, since only each prompt's change counts.

    With fewer than FEW prompts the interval would be so wide that nothing is refused, so both its ends are the value
    itself.
    """
    whole = float(before.sum())
    value = float(now.sum()) / whole if whole else 1.0
    if not whole or len(np.unique(prompt)) < FEW:
        return Interval(value, value, value)
    bootstrap = Bootstrap(prompt, prompt, np.random.default_rng(seed), name="prompts")
    # To first order the ratio varies as this mean does (Cochran 1977, section 6.3).
    around = mean_interval((now - value * before) / before.mean(), bootstrap)
    return Interval(value, value + around.low, value + around.high)


def generator_of(*numbers: int) -> torch.Generator:
    """A generator of random numbers that depends only on these numbers."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) % (1 << 63))


def diversity(vectors: Tensor, each: int) -> Floats:
    """(n / each,) for unit vectors (n, d): the mean of 1 - cosine over the pairs within each block of `each` rows."""
    groups = vectors.double().reshape(-1, each, vectors.shape[1])
    sums = groups.sum(dim=1).square().sum(dim=1) - groups.square().sum(dim=(1, 2))
    found: Floats = (1 - sums / (each * (each - 1))).numpy()
    return found


def variety(vectors: Tensor, each: int) -> Floats:
    """(n / each,) for unit vectors (n, d): the mean of 1 - cosine between each block of `each` rows and all other rows.
    Empty for a single block."""
    sums = vectors.double().reshape(-1, each, vectors.shape[1]).sum(dim=1)
    if len(sums) < 2:
        return np.zeros(0)
    others = sums.sum(dim=0) - sums
    found: Floats = (1 - (sums * others).sum(dim=1) / (each * each * (len(sums) - 1))).numpy()
    return found


def sharpness(pixels: Tensor) -> Tensor:
    """(n,) the share of the energy of pictures (n, 3, h, w) in frequencies above FINE. The mean brightness does not
    count."""
    grey = pixels.double().mean(dim=1)
    energy = torch.fft.fft2(grey - grey.mean(dim=(1, 2), keepdim=True)).abs().square()
    down, across = (torch.fft.fftfreq(side, device=pixels.device) for side in grey.shape[1:])
    fine = (down[:, None].square() + across.square()).sqrt() >= FINE
    total = energy.sum(dim=(1, 2)).clamp_min(math.ulp(1.0))
    share: Tensor = (energy * fine).sum(dim=(1, 2)) / total
    return share
