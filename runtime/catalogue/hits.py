"""The common interface of catalogues, local or in Milvus, which answer queries with hits."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from embed.addresses import join
from embed.arrays import Float16s, Float32s, Floats, Ints
from embed.inputs.shown import Tabular, picture_at, pictures_html
from embed.spec import Identity, InputError
from embed.wording import table
from runtime.config import POPULARITY_WEIGHT

if TYPE_CHECKING:
    import pyarrow as pa

Weights: TypeAlias = float | Float32s  # one for all queries, or (m,) one for each

# Columns that are fields of a hit; all others are its metadata.
HIT_COLUMNS = ("image", "image_id", "count", "popularity")


@dataclass(frozen=True)
class Hit:
    """One picture found. `similarity` is a cosine, `popularity` is in (0, 1), and `blended_score` combines both and
    orders the hits."""

    id: str  # a hash of the picture's content
    key: str  # the picture's name
    similarity: float
    popularity: float
    count: float | None  # as in the table; None if unknown
    blended_score: float
    metadata: dict[str, object]
    row: int = field(default=-1, repr=False, compare=False)  # only in a local catalogue


class Hits(list[Hit], Tabular):
    """The hits of one query, best first, as a list that shows its pictures in a notebook."""

    def __init__(self, hits: Iterable[Hit], catalogue: "Searchable | None" = None) -> None:
        super().__init__(hits)
        self._catalogue = catalogue

    def __repr__(self) -> str:
        return "\n".join(table(["picture", *_FIGURES], [[hit.key, *figures_of(hit).values()] for hit in self]))

    def _repr_html_(self) -> str:
        known, names = self._catalogue, [hit.key for hit in self]
        places = [[] for _ in self] if known is None else known.addresses(names)
        said = [", ".join(f"{name} {value}" for name, value in figures_of(hit).items() if value) for hit in self]
        return pictures_html(zip(map(picture_at, places), names, said, strict=True))

    def to_arrow(self) -> "pa.Table":
        """A table with one row for each hit: its fields, its percentile, and the catalogue's other columns."""
        import pyarrow as pa

        own = [{name: value for name, value in vars(hit).items() if name not in ("metadata", "row")} for hit in self]
        rows = [
            {**hit.metadata, **fields, "percentile": 100 * hit.popularity}
            for hit, fields in zip(self, own, strict=True)
        ]
        return pa.Table.from_pylist(rows)


def figures_of(hit: Hit) -> dict[str, str]:
    """The figures of a hit as text for people, by name."""
    values = (
        *(f"{hit.blended_score:.4f}", f"{hit.similarity:.4f}", f"{100 * hit.popularity:.1f}"),
        "" if hit.count is None else f"{hit.count:,.0f}",
    )
    return dict(zip(_FIGURES, values, strict=True))


_FIGURES = ("blended score", "similarity", "percentile", "count")


class Searchable(ABC):
    """Pictures with their popularity, searched by vectors of one backbone, whose identity is `identity`."""

    identity: Identity

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def vectors_of(self, hits: Sequence[Hit]) -> Float16s | Float32s:
        """(n, d) the vectors of pictures that `search` found."""

    def addresses(self, keys: Sequence[str], images_root: str | None = None) -> list[list[str]]:
        """The addresses at which each picture may be read, for each name; empty if none is known."""
        return [[] if images_root is None else [join(images_root, key)] for key in keys]

    def search(
        self,
        queries: Float32s,
        k: int = 10,
        popularity_weight: Weights = POPULARITY_WEIGHT,
        min_percentile: float = 0.0,
        where: str | None = None,
    ) -> list[Hits]:
        """The hits of each of `queries` (m, d) of unit norm, best first: k of them, or fewer if there are fewer.

        `popularity_weight` is a number, or (m,) one for each query. `min_percentile` is in [0, 100]. `where` is a
        filter on the columns (see filters). Raise InputError for a query of another length or an unknown column.
        """
        queries, weights = self._checked(queries, k, popularity_weight, min_percentile)
        found = self._search(queries, k, weights, min_percentile, where)
        return [Hits(hits, self) for hits in found]

    def least_similarity(self, query: Float32s, percentile: float) -> float:
        """The cosine with a query (d,) that has this percentile (0 to 100) among all pictures, estimated on a sample.
        Raise InputError if this kind of catalogue cannot tell."""
        raise InputError(
            "this kind of catalogue has no percentiles of similarity; leave --min-similarity-percentile out"
        )

    @abstractmethod
    def _search(
        self, queries: Float32s, k: int, weights: Float32s, min_percentile: float, where: str | None
    ) -> list[list[Hit]]:
        """`search` for queries (m, d) and weights (m,), both float32, that were checked."""

    def _checked(
        self, queries: Float32s, k: int, popularity_weight: Weights, min_percentile: float
    ) -> tuple[Float32s, Float32s]:
        """Queries (m, d) and weights (m,) as float32. Raise InputError for arguments that cannot be used."""
        queries, dim = np.asarray(queries, np.float32), self.identity.dim
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise InputError(
                f"queries have the shape {queries.shape}; wanted (m, {dim}), as the catalogue's vectors have"
            )
        if not np.isfinite(queries).all():
            raise InputError("a query has numbers that are not finite; wanted finite numbers")
        if k < 1:
            raise InputError(f"k is {k}; wanted 1 or more")
        weights = np.asarray(popularity_weight, np.float32)
        if weights.shape not in ((), (len(queries),)) or not np.isfinite(weights).all():
            raise InputError(
                f"popularity weight is {popularity_weight}; wanted a number, or one for each query ({len(queries)},)"
            )
        if not 0 <= min_percentile <= 100:
            raise InputError(f"min_percentile is {min_percentile}; wanted 0 to 100")
        return queries, np.broadcast_to(weights, len(queries))


def hit_of(columns: Mapping[str, Any], similarity: float, score: float, row: int = -1) -> Hit:
    """The hit for a catalogue's row with these columns."""
    metadata = {name: value for name, value in columns.items() if name not in HIT_COLUMNS}
    of_its_own = (columns["image_id"], columns["image"], similarity, columns["popularity"], columns["count"])
    return Hit(*of_its_own, score, metadata, row)


def hits_of(columns: "pa.Table", rows: Ints, similarities: Floats, scores: Floats) -> list[Hit]:
    """The hits for rows of a catalogue with these columns. Arguments are (n,)."""
    own = (columns[name].to_pylist() for name in HIT_COLUMNS)
    others = [name for name in columns.column_names if name not in HIT_COLUMNS]
    metadata = zip(*(columns[name].to_pylist() for name in others), strict=True) if others else repeat((), len(rows))
    each = zip(rows.tolist(), similarities.tolist(), scores.tolist(), *own, metadata, strict=True)
    return [
        Hit(id, key, similarity, popularity, count, score, dict(zip(others, values, strict=True)), row)
        for row, similarity, score, key, id, count, popularity, values in each
    ]


def jsonable(metadata: Mapping[str, object]) -> dict[str, object]:
    """Metadata for JSON: dates and other values that JSON lacks become text, and numbers that are not finite become
    null."""

    def plain(value: object) -> object:
        if isinstance(value, float):
            return value if np.isfinite(value) else None
        return value if value is None or isinstance(value, str | int) else str(value)

    return {name: plain(value) for name, value in metadata.items()}
