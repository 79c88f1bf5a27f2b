"""The types that the Python clients take and return."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from embed.arrays import Float32s

Picture = bytes | str | os.PathLike[str]  # a file's bytes, its path, or an http(s) address that the service fetches


@dataclass(frozen=True)
class Text:
    """A text that hits should be like or unlike."""

    text: str


@dataclass(frozen=True)
class Id:
    """A picture of the catalogue, by its name or id, that hits should be like or unlike."""

    id: str


Like = Picture | Text | Id | Float32s


class Wishes(TypedDict, total=False):
    """Conditions for hits. The fields have the meaning of the options of `runtime similar`."""

    k: int
    popularity_weight: float
    min_percentile: float
    min_similarity_percentile: float
    where: str
    dedup: float
    group_by: str
    per_group: int
    include_query: bool
    front: bool


@dataclass(frozen=True)
class ItemError:
    """The reason why one picture has no answer."""

    stage: str
    reason: str
    message: str


@dataclass(frozen=True)
class Score:
    """One picture's score. Fields that the head does not give are None."""

    score: float
    uncertainty: float | None = None
    calibrated_score: float | None = None
    percentile: float | None = None  # 0 to 100
    outputs: Mapping[str, "Score"] | None = None  # the requested outputs by name; the fields above are the first one's


@dataclass(frozen=True, kw_only=True)
class Ranked(Score):
    """One picture's score and rank. Rank 1 is the preferred picture, and `probability` is that of being preferred."""

    rank: int
    probability: float


class Embeddings(NamedTuple):
    """Unit vectors in the order in which pictures and prompts were given."""

    images: list[Float32s | ItemError]
    prompts: list[Float32s | ItemError]


@dataclass(frozen=True)
class Hit:
    """One picture of the catalogue; blended_score = similarity + popularity_weight * popularity."""

    id: str
    key: str
    blended_score: float
    similarity: float
    popularity: float
    percentile: float
    count: float | None
    rate: float | None
    title: str | None
    thumbnail: str
    metadata: Mapping[str, object]


class ServiceError(Exception):
    """The error of a whole request. `status` is None if there was no answer at all."""

    def __init__(self, status: int | None, reason: str, message: str, request_id: str) -> None:
        super().__init__(f"{status or ''} {reason}: {message} (request {request_id})".lstrip())
        self.status = status
        self.reason = reason
        self.message = message
        self.request_id = request_id
