"""Choose the pair that a person sees next. Pure functions: pictures are numbers, and a random generator is passed in.

A share of the pictures, or of the prompts if each has few pictures, is kept apart. Pairs of these are drawn at random
to measure heads, which never learn from them. Of all other pairs, those come first from which the head would learn
most.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from embed.arrays import Bools, Floats, Ints

MANY = 20  # from so many pictures of one prompt on, pictures are kept apart instead of prompts
CELLS = 5  # training pictures are divided into so many cells, within which pairs stay, so that a cell can be held out
LIST_ALL = 50_000  # for pools of up to so many pairs it is checked whether a person has seen them all


class Pool:
    """A pool of pairs to draw: two different pictures of one group."""

    def __init__(self, groups: Sequence[Ints]) -> None:
        self.groups = [group for group in groups if len(group) > 1]
        self._sizes = np.array([len(group) for group in self.groups], np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._items = np.concatenate(self.groups) if self.groups else np.empty(0, np.int64)

    @property
    def pairs(self) -> int:
        """The number of pairs, without regard to order."""
        return int((self._sizes * (self._sizes - 1) // 2).sum())

    def draw(self, count: int, rng: np.random.Generator) -> Ints:
        """(count, 2) pairs, each from a random group. All groups are equally likely, whatever their size. Empty if the
        pool is."""
        if not self.groups:
            return np.empty((0, 2), np.int64)
        group = rng.integers(len(self.groups), size=count)
        size, start = self._sizes[group], self._starts[group]
        first = rng.integers(size)
        second = (first + 1 + rng.integers(size - 1)) % size
        return np.stack([self._items[start + first], self._items[start + second]], axis=1)

    def all(self) -> Ints:
        """(pairs, 2) all pairs, each once."""
        found = [group[np.stack(np.triu_indices(len(group), 1), axis=1)] for group in self.groups]
        return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def split_pools(
    groups: Sequence[Ints], names: Sequence[str], prompts: Sequence[str], share: float
) -> tuple[Pool, Pool]:
    """The pool for measuring and the pool for training. No picture, or no prompt with few pictures, is in both.

    The pool of a picture or a prompt depends only on its name, so that it does not change when others are added.
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
    """The number of the cell that a picture belongs to."""
    return int(_place(b"cell", name) * CELLS)


def _place(salt: bytes, name: str) -> float:
    """A number from 0 to 1 that is a hash of the name."""
    digest = hashlib.sha256(salt + b"\0" + name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4]) / 2**32


def kept_apart(names: Sequence[str], share: float) -> Bools:
    """(n,) whether each name belongs to the share for measuring. At least one does, if there is a share and there are
    two names."""
    place = np.array([_place(b"measures", name) for name in names])
    apart = place < share
    if share and len(names) > 1 and not apart.any():
        apart[place.argmin()] = True
    return np.asarray(apart, np.bool_)


def telling(difference: Floats, uncertainty: Floats | None = None) -> Floats:
    """(n,) the head's uncertainty about each pair in bits: the entropy of the vote that it predicts.

    `difference` is the difference of the scores, a logit. A known uncertainty of the scores makes it smaller (MacKay
    1992, The Evidence Framework Applied to Classification Networks, equation 10).
    """
    if uncertainty is not None:
        difference = difference / np.sqrt(1 + math.pi / 8 * np.square(uncertainty))
    p = np.clip(0.5 + 0.5 * np.tanh(difference / 2), 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def contrast(vectors: Floats, pairs: Ints) -> Floats:
    """(n,) the distance between the two pictures of each pair, scaled to mean 1. A vote on two similar pictures tells
    little about others. NaN if one of `vectors` (n, d) is unknown."""
    found = np.linalg.norm(vectors[pairs[:, 0]] - vectors[pairs[:, 1]], axis=1)
    known = np.isfinite(found)
    mean = found[known].mean() if known.any() else 0.0
    return np.asarray(found / mean if mean > 0 else np.where(known, 1.0, np.nan))


def freshness(pairs: Ints, shown: Ints, group: Ints, shown_groups: Ints) -> Floats:
    """(n,) 1 for pairs of new pictures of a new prompt, and lower the more often these were shown."""
    each = 1 / np.sqrt((1 + shown[pairs[:, 0]]) * (1 + shown[pairs[:, 1]]))
    return np.asarray(each / np.sqrt(1 + np.log1p(shown_groups[group[pairs[:, 0]]])))
