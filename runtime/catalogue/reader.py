"""A catalogue: pictures sorted by popularity, which can be searched for similar and popular ones at once.

    catalogue/
      manifest.json            identity, bundle, counts, index, the current version; replaced last, atomically
      v000001/vectors.npy      (n, d) float16, unit norm; row i is the i-th most popular picture
      v000001/popularity.npy   (n,) float32 percentiles in (0, 1), descending
      v000001/places.arrow     row i: where the picture was read when it was embedded, null if unknown
      v000001/rows.arrow       row i: image (its name), image_id, width, height, count, ..., and the table's columns
      v000001/index.faiss ...  unless the index is exact: see runtime.index.ivf and runtime.index.hnsw

The blended score of picture i for query q is cos(q, x_i) + popularity_weight * popularity_i. The rows above a least
percentile are a prefix. All files are memory-mapped. An open catalogue keeps serving its version while a writer makes
another. Knows no encoder: queries are vectors.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.addresses import Place, join
from embed.arrays import Bools, Float16s, Float32s, Floats, Ints, positions
from embed.files import read_manifest
from embed.inputs.shown import Tabular, lines_html, picture_at, pictures_html
from embed.spec import Identity, InputError, Side
from runtime.catalogue.conditions import matching
from runtime.catalogue.hits import Hit, Hits, Searchable, Weights, hits_of, jsonable
from runtime.config import Wish
from runtime.index.base import Effort, IndexKind
from runtime.index.blend import SPARE, best_of, pareto_front, scan, similarities
from runtime.index.effort import Tuned
from runtime.index.factory import read_index

FORMAT = 2
READABLE = (1, 2)  # format 1 differs only in the lists of an IVF

# A scan of so few rows is faster than any index.
SCAN_ROWS = 20_000
SCAN_COST = 4  # with more rows, a candidate of an index costs as much as scanning this many
SAMPLE_ROWS = 10_000  # rows of the sample for percentiles of similarity
SHOWN = 12  # number of pictures shown in a notebook
MOST_CANDIDATES = 2048  # for more hits than this all rows are scanned


class IndexEntry(TypedDict):
    """The manifest's entry for the index. The exact index has no efforts."""

    kind: Literal["exact"] | IndexKind
    min_recall: NotRequired[float]
    efforts: NotRequired[list[Tuned]]


class CatalogueManifest(TypedDict):
    """The contents of manifest.json."""

    format: int
    version: str
    identity: dict[str, object]
    images_root: str
    bundle: str | None
    popularity: dict[str, Any]  # the fields of PopularityConfig
    index: IndexEntry
    files: dict[str, int]  # sizes in bytes


class Catalogue(Searchable, Tabular):
    """One version of a catalogue, read only."""

    def __init__(self, path: Path, manifest: CatalogueManifest) -> None:
        folder = path / manifest["version"]
        for name, size_bytes in manifest["files"].items():
            if (found := (folder / name).stat().st_size) != size_bytes:
                raise InputError(
                    f"{folder / name} has {found} bytes; the manifest says {size_bytes}: make the catalogue again"
                )
        self.path = path
        self.folder = folder
        self.manifest = manifest
        self.identity = Identity.from_json(manifest["identity"])
        self.vectors: Float16s = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        self.popularity: Float32s = np.load(folder / "popularity.npy", mmap_mode="r", allow_pickle=False)
        self.rows: pa.Table = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow"))).read_all()
        self.index = None
        if manifest["index"]["kind"] != "exact":
            if manifest["format"] == 1 and manifest["index"]["kind"] != "hnsw":
                raise InputError(
                    f"{path} has an index of an older plaudit; make the catalogue again: python -m runtime index"
                )
            self.index = read_index(folder, manifest["index"]["kind"])
        self._efforts = manifest["index"].get("efforts", [])

    @classmethod
    def open(cls, path: str | Path) -> "Catalogue":
        """Open the newest version of the catalogue at `path`. Raise InputError if there is none or it is damaged."""
        file = Path(path) / "manifest.json"
        manifest = read_manifest(file, "catalogue", READABLE, CatalogueManifest)
        while True:
            try:
                return cls(file.parent, manifest)
            except FileNotFoundError:
                # A writer may have replaced the version meanwhile; if the manifest is the same, a file is really
                # missing.
                tried, manifest = manifest, read_manifest(file, "catalogue", READABLE, CatalogueManifest)
                if manifest["version"] == tried["version"]:
                    raise

    def __len__(self) -> int:
        return len(self.popularity)

    def __repr__(self) -> str:
        return f"{len(self):,} pictures by popularity, index {self.manifest['index']['kind']}, in {self.path}"

    def _repr_html_(self) -> str:
        names = self.rows["image"].slice(0, SHOWN).to_pylist()  # the most popular come first
        counts = self.rows["count"].slice(0, SHOWN).to_pylist()
        said = ["" if count is None else f"count {count:,.0f}" for count in counts]
        shown = zip(map(picture_at, self.addresses(names)), names, said, strict=True)
        return lines_html([repr(self)]) + pictures_html(shown, "The most popular")

    def to_arrow(self) -> pa.Table:
        """A table with one row for each picture, the most popular first: its name, id, size and count, and the columns
        of the table of popularity."""
        return self.rows

    @property
    def images_root(self) -> str:
        """The folder or URI to which the names of pictures are relative."""
        root = self.manifest["images_root"]
        return str(root) if "://" in root else str((self.path / root).resolve())

    @property
    def bundle(self) -> Path | None:
        """The bundle that encodes this catalogue's queries, or None."""
        return None if self.manifest["bundle"] is None else (self.path / self.manifest["bundle"]).resolve()

    def image_embeddings(self) -> Float16s:
        """(n, d) float16. This and the next three methods are the same as a cache's, so that a version can be made from
        another."""
        return self.vectors

    def pooled_embeddings(self) -> Float16s | None:
        """None: a catalogue has no features before the projection."""
        return None

    def metadata(self, side: Side) -> pa.Table:
        """image_path, image_id, width and height of each row; a catalogue has only the side `images`."""
        return self.rows.select(["image", "image_id", "width", "height"]).rename_columns(
            ["image_path", "image_id", "width", "height"]
        )

    def places(self) -> pa.Array:
        """(n,) where the picture of each row was read when it was embedded, null if unknown."""
        if "places.arrow" not in self.manifest["files"]:  # an old catalogue without places
            return pa.nulls(len(self), pa.string())
        found = pa.ipc.open_file(pa.memory_map(str(self.folder / "places.arrow"))).read_all()
        return found["uri"].combine_chunks()

    def addresses(self, keys: Sequence[str], images_root: str | None = None) -> list[list[str]]:
        """The addresses at which each picture may be read, for each name: under `images_root` if it is given, and
        otherwise the place where it was embedded and under the catalogue's own root.

        Raise InputError for an unknown picture.
        """
        if images_root is not None:
            return [[join(images_root, key)] for key in keys]
        places = self.places().take(pa.array([self.row_of(key) for key in keys], pa.int64())).to_pylist()
        return [
            [*([place] if place else []), join(self.images_root, key)] for key, place in zip(keys, places, strict=True)
        ]

    def image_rows(self, keys: pa.ChunkedArray, place: Place | None = None) -> Ints:
        """(m,) int64: the row of each picture, found by its name or by its place; -1 if there is none."""
        found = positions(keys, self.rows["image"])
        lost = np.flatnonzero(found < 0)
        if place is not None and len(lost):
            there = [place(key) or "" for key in keys.take(pa.array(lost)).to_pylist()]
            found[lost] = positions(there, self.places())
        return found

    def vectors_of(self, hits: Sequence[Hit]) -> Float16s:
        """(n, d) float16: the vectors of pictures that a search found."""
        return self.vectors[[hit.row for hit in hits]]

    def front(self, query: Float32s, wish: Wish) -> Hits:
        """The Pareto front for a query (d,): the hits to which no other is superior in both similarity and popularity,
        most similar first.

        Their blended scores are their similarities. Only `min_percentile`, `where` and `excluded` of the wish are used.
        Every picture is compared.
        """
        queries, weights = self._checked(query[None], 1, 0.0, wish.min_percentile)
        allowed = self._allowed(wish.min_percentile, wish.where)
        rows = np.arange(allowed) if isinstance(allowed, int) else np.flatnonzero(allowed)
        if wish.excluded:
            away = pc.is_in(self.rows["image_id"], value_set=pa.array(wish.excluded, pa.string()))
            rows = rows[~np.asarray(away)[rows]]
        similar = similarities(self.vectors, queries[0], rows)
        front = rows[pareto_front(similar, self.popularity[rows])][None]
        found = best_of(front, self.vectors, self.popularity, queries, weights, max(front.shape[1], 1))
        return Hits(self.hits(*found)[0], self)

    def least_similarity(self, query: Float32s, percentile: float) -> float:
        """The cosine with a query (d,) that has this percentile (0 to 100) among all pictures, or among SAMPLE_ROWS of
        them."""
        return float(np.percentile(self._sample @ query, percentile))

    @cached_property
    def _sample(self) -> Float32s:
        """(n, d) at most SAMPLE_ROWS vectors, evenly spaced over the catalogue."""
        rows = np.linspace(0, len(self) - 1, min(len(self), SAMPLE_ROWS)).astype(np.int64)
        return self.vectors[rows].astype(np.float32)

    def row_of(self, key_or_id: str) -> int:
        """The row of a picture with this name or image_id. Raise InputError if there is none."""
        for column in ("image", "image_id"):
            row = pc.index(self.rows[column], key_or_id).as_py()
            if row >= 0:
                return int(row)
        raise InputError(f"{self.path} has no picture named {key_or_id!r}, nor one with that id")

    def key_of(self, image_id: str) -> str | None:
        """The name of the picture with that image_id, or None."""
        row = pc.index(self.rows["image_id"], image_id).as_py()
        return None if row < 0 else str(self.rows["image"][row])

    def id_of(self, key_or_id: str) -> str:
        """The image_id of a picture with this name or image_id."""
        return str(self.rows["image_id"][self.row_of(key_or_id)])

    def vector_of(self, key_or_id: str) -> Float32s:
        """(d,) float32: the vector of a picture with this name or image_id."""
        vector: Float32s = self.vectors[self.row_of(key_or_id)].astype(np.float32)
        return vector

    def _search(
        self, queries: Float32s, k: int, weights: Float32s, min_percentile: float, where: str | None
    ) -> list[list[Hit]]:
        return self.hits(*self.search_rows(queries, k, weights, min_percentile, where))

    def hits(self, rows: Ints, similarities: Floats, scores: Floats) -> list[list[Hit]]:
        """The hits, with names and metadata, for the result of `search_rows`."""
        found = rows >= 0
        hits = iter(hits_of(self.rows.take(rows[found]), rows[found], similarities[found], scores[found]))
        return [list(islice(hits, count)) for count in found.sum(axis=1).tolist()]

    def search_rows(
        self, queries: Float32s, k: int, weights: Weights, min_percentile: float = 0.0, where: str | None = None
    ) -> tuple[Ints, Floats, Floats]:
        """Rows (m, k) int64, and their cosines and blended scores (m, k) float64, best first. Past the last hit the row
        is -1.

        Arguments are those of `search`, with queries in float32, and are not checked.
        """
        weights = np.broadcast_to(np.asarray(weights, np.float32), len(queries))
        allowed = self._allowed(min_percentile, where)
        count = allowed if isinstance(allowed, int) else int(allowed.sum())
        best = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf), np.full((len(queries), k), -np.inf)
        scanned = np.ones(len(queries), bool)
        if self.index is not None:
            confined = None if count == len(self) else allowed
            for effort, chosen in self._by_effort(weights, k, count):
                candidates = self.index.candidates(queries[chosen], weights[chosen], effort, confined)
                found = best_of(candidates, self.vectors, self.popularity, queries[chosen], weights[chosen], k)
                for array, values in zip(best, found, strict=True):
                    array[chosen] = values
                # Scan if the index found fewer hits than there are.
                scanned[chosen] = (found[0] >= 0).sum(axis=1) < min(k, count)
        if scanned.any():
            part = queries[scanned], weights[scanned]
            candidates = self._scan(*part, k, allowed)
            for array, values in zip(best, best_of(candidates, self.vectors, self.popularity, *part, k), strict=True):
                array[scanned] = values
        return best

    def _allowed(self, min_percentile: float, where: str | None) -> int | Bools:
        """The number of allowed rows, from the first on, or a mask (n,) bool."""
        least = np.float32(min_percentile / 100)
        prefix = bisect_right(self.popularity, -least, key=lambda value: -value)  # reads few of a million rows
        if where is None:
            return prefix
        mask = np.zeros(len(self), bool)
        mask[:prefix] = matching(where, self.rows.slice(0, prefix))
        return mask

    def _scan(self, queries: Float32s, weights: Float32s, k: int, allowed: int | Bools) -> Ints:
        if isinstance(allowed, int):
            return scan(self.vectors[:allowed], self.popularity[:allowed], queries, weights, k)
        return scan(self.vectors, self.popularity, queries, weights, k, np.flatnonzero(allowed))

    def _by_effort(self, weights: Float32s, k: int, count: int) -> list[tuple[Effort, Bools]]:
        """The efforts to search with, each with the mask of its queries. Queries that a scan answers faster are in
        none.

        An effort is used for the weight at which it was tuned and for higher ones up to the next. Lower weights need
        more effort.
        """
        assert self.index is not None
        efforts = []
        bounds = [effort["weight"] for effort in self._efforts]
        chosen = np.maximum(np.searchsorted(bounds, weights, side="right") - 1, 0)
        for i in np.unique(chosen):
            effort = self._efforts[i]
            share = max(count, 1) / len(self)
            # With only a share of the rows allowed, more lists are probed to see as many allowed rows.
            probes = int(np.ceil(effort["probes"] / share))
            candidates = max(effort["candidates"], k + SPARE)
            looked_at = min(1.0, probes / self.index.lists) * len(self) if self.index.lists else 64 * probes
            if count > SCAN_ROWS and SCAN_COST * count > looked_at and candidates <= MOST_CANDIDATES:
                efforts.append((Effort(probes, candidates), chosen == i))
        return efforts


def hit_json(hit: Hit) -> dict[str, object]:
    """A hit in the JSON of the command and the service: its fields and its metadata."""
    of_its_own = {name: value for name, value in vars(hit).items() if name != "row"}
    titles = (hit.metadata.get(name) for name in ("title", "prompt"))
    exposures, rate = hit.metadata.get("exposures"), None
    if hit.count is not None and isinstance(exposures, int | float) and exposures > 0:
        rate = hit.count / exposures
    return of_its_own | {
        "percentile": 100 * hit.popularity,
        "rate": rate,
        "title": next((title for title in titles if isinstance(title, str)), None),
        "metadata": jsonable(hit.metadata),
    }
