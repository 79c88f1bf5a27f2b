"""What every catalogue is, here or in Milvus: it answers queries with hits."""

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

Weights: TypeAlias = float | Float32s  # one for all queries, or one a query (m,)

# Columns that a hit has as fields of its own; the others are its metadata.
HIT_COLUMNS = ("image", "image_id", "count", "popularity")


@dataclass(frozen=True)
class Hit:
    """One picture found. `similarity` is a cosine, `popularity` a percentile in (0, 1), `blended_score` the two
    together, by which hits are ordered."""

    id: str  # hash of the picture's content
    key: str  # its name
    similarity: float
    popularity: float
    count: float | None  # as it was given; None where unknown
    blended_score: float
    metadata: dict[str, object]
    row: int = field(default=-1, repr=False, compare=False)  # of a catalogue here


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
        """A row for each hit: its fields, its percentile, and the catalogue's other columns."""
        import pyarrow as pa

        own = [{name: value for name, value in vars(hit).items() if name not in ("metadata", "row")} for hit in self]
        rows = [
            {**hit.metadata, **fields, "percentile": 100 * hit.popularity}
            for hit, fields in zip(self, own, strict=True)
        ]
        return pa.Table.from_pylist(rows)


def figures_of(hit: Hit) -> dict[str, str]:
    """The figures of a hit as people read them, by what they are called."""
    values = (
        *(f"{hit.blended_score:.4f}", f"{hit.similarity:.4f}", f"{100 * hit.popularity:.1f}"),
        "" if hit.count is None else f"{hit.count:,.0f}",
    )
    return dict(zip(_FIGURES, values, strict=True))


_FIGURES = ("blended score", "similarity", "percentile", "count")


class Searchable(ABC):
    """Pictures with their popularity, searched by vectors of one backbone, `identity`."""

    identity: Identity

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def vectors_of(self, hits: Sequence[Hit]) -> Float16s | Float32s:
        """(n, d) vectors of pictures that `search` found."""

    def addresses(self, keys: Sequence[str], images_root: str | None = None) -> list[list[str]]:
        """Where each picture may be read, by name, as far as that is known here."""
        return [[] if images_root is None else [join(images_root, key)] for key in keys]

    def search(
        self,
        queries: Float32s,
        k: int = 10,
        popularity_weight: Weights = POPULARITY_WEIGHT,
        min_percentile: float = 0.0,
        where: str | None = None,
    ) -> list[Hits]:
        """For each of `queries` (m, d), unit norm, its hits, best first: k, or as many as there are.

        `popularity_weight` is one number or one a query (m,); `min_percentile` in [0, 100]; `where` is a filter on the
        columns (see filters). Raise InputError for a query of another length or a column that is not there.
        """
        queries, weights = self._checked(queries, k, popularity_weight, min_percentile)
        found = self._search(queries, k, weights, min_percentile, where)
        return [Hits(hits, self) for hits in found]

    def least_similarity(self, query: Float32s, percentile: float) -> float:
        """The cosine with a query (d,) that has this percentile among all pictures, as far as a sample tells."""
        raise InputError("this kind of catalogue cannot tell a percentile of similarity; leave it out")

    @abstractmethod
    def _search(
        self, queries: Float32s, k: int, weights: Float32s, min_percentile: float, where: str | None
    ) -> list[list[Hit]]:
        """`search` for queries (m, d) and weights (m,), both float32, that are known to be right."""

    def _checked(
        self, queries: Float32s, k: int, popularity_weight: Weights, min_percentile: float
    ) -> tuple[Float32s, Float32s]:
        """Queries (m, d) and weights (m,) as float32; raise InputError for what cannot be searched with."""
        queries, dim = np.asarray(queries, np.float32), self.identity.dim
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise InputError(f"queries have the shape {queries.shape}; the catalogue's vectors want (m, {dim})")
        if not np.isfinite(queries).all():
            raise InputError("a query holds numbers that are not finite")
        if k < 1:
            raise InputError(f"k is {k}; wanted 1 or more")
        weights = np.asarray(popularity_weight, np.float32)
        if weights.shape not in ((), (len(queries),)) or not np.isfinite(weights).all():
            raise InputError(
                f"popularity weight is {popularity_weight}; wanted a number, or one a query ({len(queries)},)"
            )
        if not 0 <= min_percentile <= 100:
            raise InputError(f"least percentile is {min_percentile}; wanted 0 to 100")
        return queries, np.broadcast_to(weights, len(queries))


def hit_of(columns: Mapping[str, Any], similarity: float, score: float, row: int = -1) -> Hit:
    """The hit that a catalogue's row with these columns is."""
    metadata = {name: value for name, value in columns.items() if name not in HIT_COLUMNS}
    of_its_own = (columns["image_id"], columns["image"], similarity, columns["popularity"], columns["count"])
    return Hit(*of_its_own, score, metadata, row)


def hits_of(columns: "pa.Table", rows: Ints, similarities: Floats, scores: Floats) -> list[Hit]:
    """The hits that rows of a catalogue with these columns are, (n,) each."""
    own = (columns[name].to_pylist() for name in HIT_COLUMNS)
    others = [name for name in columns.column_names if name not in HIT_COLUMNS]
    metadata = zip(*(columns[name].to_pylist() for name in others), strict=True) if others else repeat((), len(rows))
    each = zip(rows.tolist(), similarities.tolist(), scores.tolist(), *own, metadata, strict=True)
    return [
        Hit(id, key, similarity, popularity, count, score, dict(zip(others, values, strict=True)), row)
        for row, similarity, score, key, id, count, popularity, values in each
    ]


def jsonable(metadata: Mapping[str, object]) -> dict[str, object]:
    """Metadata with dates and other values that JSON lacks as text, and numbers that are not finite as null."""

    def plain(value: object) -> object:
        if isinstance(value, float):
            return value if np.isfinite(value) else None
        return value if value is None or isinstance(value, str | int) else str(value)

    return {name: plain(value) for name, value in metadata.items()}
