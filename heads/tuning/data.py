"""Data for tuning: prompts, people's choices between pictures, and pictures with prompts for pre-training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageOps
from torch import Tensor

from embed.files import read_lines
from embed.inputs.fetch import read_bytes
from embed.inputs.images import load_image
from embed.records.formats import Records
from embed.spec import InputError
from heads.data.comparisons import labels_alone, pairs_among
from heads.reward.module import Reward
from heads.reward.several import Rewards
from heads.tuning.config import TuneConfig


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file with one on each line, without repetitions. Raise InputError if there are none."""
    return list(dict.fromkeys(read_lines(path, "prompt")))


def kept_aside(prompts: Sequence[str], count: int, seed: int) -> tuple[list[str], list[str]]:
    """Divide prompts at random into those to train on and those to judge on, at most half of all. A single prompt is
    used for both."""
    if len(prompts) == 1:
        return list(prompts), list(prompts)
    order = np.random.default_rng(seed).permutation(len(prompts))
    aside = min(count, len(prompts) // 2)
    return [prompts[i] for i in sorted(order[aside:])], [prompts[i] for i in sorted(order[:aside])]


class Pictures:
    """The pictures of a table by name. They are read only when needed."""

    def __init__(self, records: Records) -> None:
        self.path = records.path
        self._places: dict[str, bytes | str | None] = {}
        for batch in records.images():
            for key, uri, data in zip(*(batch[name].to_pylist() for name in ("key", "uri", "bytes")), strict=True):
                self._places[key] = data or uri

    def read(self, keys: Sequence[str], size: int) -> Tensor:
        """(n, 3, size, size) in [0, 1]: the central square of each picture. Raise InputError or OSError if one cannot
        be read."""
        found = [np.asarray(self._square(key, size)) for key in keys]
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255

    def _square(self, key: str, size: int) -> Image.Image:
        place = self._places.get(key)
        if place is None:
            raise InputError(f"{self.path} names the picture {key!r}, which is not there; give --images-root")
        image = load_image(place if isinstance(place, bytes) else read_bytes(place))
        return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Preferences:
    """n pairs of pictures of one prompt, of which people chose one."""

    pictures: Pictures
    better: list[str]
    worse: list[str]
    prompt: list[str]

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True)
class Examples:
    """n pictures with their prompts."""

    pictures: Pictures
    image: list[str]
    prompt: list[str]

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True)
class Material:
    """All data that a generator is tuned with."""

    prompts: Sequence[str]  # to train on
    aside: Sequence[str]  # to judge on
    reward: Reward | Rewards | None = None
    judge: Reward | None = None
    preferences: Preferences | None = None  # for dpo
    pretrain: Examples | None = None

    @property
    def texts(self) -> list[str]:
        """Every prompt that the generator will read."""
        others = [data.prompt for data in (self.preferences, self.pretrain) if data is not None]
        return list(dict.fromkeys([*self.prompts, *self.aside, *(text for texts in others for text in texts)]))


def require_material(material: Material, config: TuneConfig) -> None:
    """Raise InputError if the method's data is missing."""
    if config.method == "dpo" and material.preferences is None:
        raise InputError("dpo learns from people's choices between pictures; give them by --data TABLE")
    if config.method != "dpo" and material.reward is None:
        raise InputError(f"{config.method} learns from a reward; give it by --reward HEAD")


def read_preferences(records: Records, seed: int = 0) -> Preferences:
    """The pairs of a table, without ties. Raise InputError if there are none of one prompt."""
    labels, table = labels_alone(records), records.labels()
    pairs = pairs_among(labels, np.arange(len(labels)), np.random.default_rng(seed))
    pairs = pairs.take(np.flatnonzero(pairs.target != 0.5))
    names = {name: _names(table, name) for name in ("image", "prompt")}
    first = pairs.target > 0.5
    better, worse = np.where(first, pairs.a, pairs.b), np.where(first, pairs.b, pairs.a)
    of = [(names["image"][labels.image[i]], names["prompt"][labels.prompt[i]]) for i in better]
    against = [(names["image"][labels.image[i]], names["prompt"][labels.prompt[i]]) for i in worse]
    chosen = [
        (won, lost, prompt)
        for (won, prompt), (lost, other) in zip(of, against, strict=True)
        if prompt is not None and prompt == other
    ]
    if not chosen:
        raise InputError(
            f"{records.path} holds no pair of pictures of one prompt of which people chose one; dpo needs such pairs"
        )
    won, lost, prompts = (list(column) for column in zip(*chosen, strict=True))
    return Preferences(Pictures(records), won, lost, prompts)


def read_examples(records: Records) -> Examples:
    """The pictures of a table with their prompts. Other columns are ignored. Raise InputError if there are no
    prompts."""
    if records.kind is None:
        if "prompt" not in records.table.types:
            raise InputError(f"{records.path} has no column prompt; wanted pictures with their prompts")
        keys = [key for batch in records.images() for key in batch["key"].to_pylist()]
        texts = [text for batch in records.table.stream({"prompt": pa.string()}) for text in batch[0].to_pylist()]
    else:
        table = records.labels()
        sides = ("_a", "_b") if records.kind == "comparisons" else ("",)
        keys = [key for side in sides for key in table["image" + side].to_pylist()]
        texts = [text for side in sides for text in table["prompt" + side].to_pylist()]
    items = [item for item in dict.fromkeys(zip(keys, texts, strict=True)) if item[1] is not None]
    if not items:
        raise InputError(f"{records.path} has no picture with a prompt; wanted at least one")
    return Examples(Pictures(records), [key for key, _ in items], [text for _, text in items])


def _names(table: pa.Table, name: str) -> list[str | None]:
    """The names that the numbers of `labels_alone` stand for."""
    sides = ("_a", "_b") if name + "_a" in table.schema.names else ("",)
    values = (text for side in sides for text in table[name + side].to_pylist())
    return list(dict.fromkeys(values))
