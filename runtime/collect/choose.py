"""Which pair a person sees next. Pure: pictures are numbers, and every draw is the generator's that is given.

A share of the pictures, or of the prompts where each has few pictures, is kept apart: pairs of these are drawn at
random and measure heads, which never learn from them. Of the others those pairs come first of which the head would
learn most.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from embed.arrays import Bools, Floats, Ints

MANY = 20  # pictures of one prompt, from which on pictures are kept apart instead of prompts
CELLS = 5  # parts of these that teach; pairs do not cross them, so that a head can be tried on a part it has not seen
LIST_ALL = 50_000  # pairs of a pool, up to which it is known for certain that all were seen


class Pool:
    """The pairs that may be drawn: two different pictures of one group."""

    def __init__(self, groups: Sequence[Ints]) -> None:
        self.groups = [group for group in groups if len(group) > 1]
        self._sizes = np.array([len(group) for group in self.groups], np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._items = np.concatenate(self.groups) if self.groups else np.empty(0, np.int64)

    @property
    def pairs(self) -> int:
        """How many there are, either order being the same."""
        return int((self._sizes * (self._sizes - 1) // 2).sum())

    def draw(self, count: int, rng: np.random.Generator) -> Ints:
        """(count, 2) pairs, each of a group drawn at random whatever its size; none where there are none."""
        if not self.groups:
            return np.empty((0, 2), np.int64)
        group = rng.integers(len(self.groups), size=count)
        size, start = self._sizes[group], self._starts[group]
        first = rng.integers(size)
        second = (first + 1 + rng.integers(size - 1)) % size
        return np.stack([self._items[start + first], self._items[start + second]], axis=1)

    def all(self) -> Ints:
        """(pairs, 2) every pair once."""
        found = [group[np.stack(np.triu_indices(len(group), 1), axis=1)] for group in self.groups]
        return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def split_pools(
    groups: Sequence[Ints], names: Sequence[str], prompts: Sequence[str], share: float
) -> tuple[Pool, Pool]:
    """The pool that measures and the one that teaches; no picture, or no prompt of few pictures, is in both.

    Which of the two a picture or a prompt is in depends on its name alone, so that it stays there when others come.
    """
    measuring, teaching = list[Ints](), list[Ints]()
    few = [i for i, group in enumerate(groups) if len(group) < MANY]
    apart = kept_apart([prompts[i] for i in few], share)
    for i, is_apart in zip(few, apart, strict=True):
        (measuring if is_apart else teaching).append(groups[i])
    for i in sorted(set(range(len(groups))) - set(few)):
        is_apart = kept_apart([names[item] for item in groups[i]], share)
        measuring.append(groups[i][is_apart])
        cell = np.array([cell_of(names[item]) for item in groups[i]], np.int64)
        teaching += [groups[i][~is_apart & (cell == number)] for number in range(CELLS)]
    return Pool(measuring), Pool(teaching)


def cell_of(name: str) -> int:
    """Which of the parts of many pictures one is in."""
    return int(_place(b"cell", name) * CELLS)


def _place(salt: bytes, name: str) -> float:
    """A number from 0 to 1 that a name always has."""
    digest = hashlib.sha256(salt + b"\0" + name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4]) / 2**32


def kept_apart(names: Sequence[str], share: float) -> Bools:
    """(n,) whether each name is of the share that measures; at least one is where there is a share and two names."""
    place = np.array([_place(b"measures", name) for name in names])
    apart = place < share
    if share and len(names) > 1 and not apart.any():
        apart[place.argmin()] = True
    return np.asarray(apart, np.bool_)


def telling(difference: Floats, uncertainty: Floats | None = None) -> Floats:
    """(n,) how unsure the head is of each pair, in bits: the entropy of the vote that it expects.

    `difference` is that of the scores, which is a logit. Where it is known how unsure the scores are, they count the
    less (MacKay 1992, The Evidence Framework Applied to Classification Networks, equation 10).
    """
    if uncertainty is not None:
        difference = difference / np.sqrt(1 + math.pi / 8 * np.square(uncertainty))
    p = np.clip(0.5 + 0.5 * np.tanh(difference / 2), 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def contrast(vectors: Floats, pairs: Ints) -> Floats:
    """(n,) how far apart the two pictures of each pair are, of mean 1: what tells two of a kind apart says little of
    others. NaN where a vector (n, d) is not known."""
    found = np.linalg.norm(vectors[pairs[:, 0]] - vectors[pairs[:, 1]], axis=1)
    known = np.isfinite(found)
    mean = found[known].mean() if known.any() else 0.0
    return np.asarray(found / mean if mean > 0 else np.where(known, 1.0, np.nan))


def freshness(pairs: Ints, shown: Ints, group: Ints, shown_groups: Ints) -> Floats:
    """(n,) 1 for pairs of new pictures of a new prompt, and the less the more often these were shown."""
    each = 1 / np.sqrt((1 + shown[pairs[:, 0]]) * (1 + shown[pairs[:, 1]]))
    return np.asarray(each / np.sqrt(1 + np.log1p(shown_groups[group[pairs[:, 0]]])))
