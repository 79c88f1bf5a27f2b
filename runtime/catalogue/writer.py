"""Write catalogues. Every change makes a new version in its own folder, which becomes current once manifest.json names
it.

Readers keep the version that they opened. The previous version stays until the next write, for readers that are just
opening it; then leftovers of killed writers are also removed. Knows no model.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.addresses import Place
from embed.arrays import Float16s, Float32s
from embed.files import atomic_write, locked, require_out, sync_folder, write_json, write_with
from embed.progress import Progress, silent
from embed.spec import InputError, require_same_identity
from runtime.catalogue.reader import FORMAT, Catalogue, CatalogueManifest, IndexEntry
from runtime.catalogue.rows import OWN_COLUMNS, Pictures, PopularRows, Predict, popular_rows
from runtime.config import IndexConfig, PopularityConfig
from runtime.index.base import Effort
from runtime.index.effort import RecallTooLow, Tuned, measure, tune
from runtime.index.factory import KINDS, build_index, bytes_per_vector, read_index

COPY_ROWS = 65_536
EXACT_UP_TO = 200_000  # with more vectors than this, `auto` makes an index
TUNING_QUERIES = 400
REFRESH_QUERIES = 64  # queries that measure the recall of a refreshed index
RECALL_SLACK = 0.02  # so few queries may measure this much less than the required recall


def build(
    out: str | Path,
    pictures: Pictures,
    labels: pa.Table,
    config: PopularityConfig,
    index: IndexConfig,
    images_root: str | Path = ".",
    bundle: str | Path | None = None,
    predict: Predict | None = None,
    queries: Float16s | Float32s | None = None,
    progress: Progress = silent,
    overwrite: bool = False,
    place: Place | None = None,
) -> tuple[Catalogue, PopularRows]:
    """Make a catalogue at `out` of the pictures to which `labels` gives a popularity (see runtime.catalogue.rows).

    An existing catalogue gets a new version if `overwrite` is set. Raise InputError as `require_place` does. An index
    is tuned on mixtures of the pictures' own vectors and on `queries` (m, d), such as prompts. The pictures' names are
    relative to `images_root`, a folder or URI.
    """
    out = Path(out)
    require_place(out, overwrite)
    with _writing(out) as folder:
        rows = popular_rows(labels, pictures, config, predict, place=place)
        vectors, popularity = _write_rows(folder, pictures, rows)
        sample = tuning_queries(vectors, queries)
        found = _build_index(folder, vectors, popularity, index, sample, progress)
        encoder = None if bundle is None else _relative(bundle, out)
        _commit(out, folder, pictures, config, found, _relative(images_root, out), encoder)
    return Catalogue.open(out), rows


def require_place(out: Path, overwrite: bool) -> None:
    """Raise InputError unless a catalogue can be made at `out`: a new one, or a new version if `overwrite` is set."""
    require_out(out, "catalogue", overwrite or not (out / "manifest.json").exists())


def refresh(
    path: str | Path,
    labels: pa.Table | None = None,
    pictures: Pictures | None = None,
    config: PopularityConfig | None = None,
    delete: Sequence[str] = (),
    predict: Predict | None = None,
    progress: Progress = silent,
    place: Place | None = None,
) -> tuple[Catalogue, PopularRows]:
    """Give a catalogue new counts. The result is as from `build` with the same labels, but the index is not trained
    again.

    Pictures come from `pictures`, such as a cache that has grown, or by default from the catalogue. `labels` and
    `config` are by default the catalogue's own. Pictures in `delete` are left out.
    """
    path = Path(path)
    old = Catalogue.open(path)
    if pictures is not None:
        require_same_identity(old.identity, f"the catalogue {path}", pictures.identity, "the pictures to add")
    config = config or PopularityConfig(**old.manifest["popularity"])
    labels = old.rows.drop_columns(list(OWN_COLUMNS)) if labels is None else labels
    for key in delete:
        old.row_of(key)  # raises InputError for an unknown picture
    with _writing(path) as folder:
        source: Pictures = old if pictures is None else pictures
        rows = popular_rows(labels, source, config, predict, delete, place)
        vectors, popularity = _write_rows(folder, source, rows)
        found = _carry_index(folder, old, rows, vectors, popularity, progress)
        _commit(path, folder, source, config, found, old.manifest["images_root"], old.manifest["bundle"])
    return Catalogue.open(path), rows


def tuning_queries(vectors: Float16s, queries: Float16s | Float32s | None, count: int = TUNING_QUERIES) -> Float32s:
    """(m, d) float32 unit vectors: up to half of `count` from `queries`, and the others halfway between two
    neighbouring rows.

    A row used as a query would find itself; a point halfway to another picture is neither picture.
    """
    rng = np.random.default_rng(0)
    given = np.empty((0, vectors.shape[1])) if queries is None else rng.permutation(queries)[: count // 2]
    first, second = rng.choice(len(vectors), (2, count - len(given)))
    mixed = 0.8 * vectors[first].astype(np.float32) + 0.2 * vectors[second].astype(np.float32)
    sample = np.concatenate([given, mixed]).astype(np.float32)
    return rng.permutation(sample / np.linalg.norm(sample, axis=1, keepdims=True))


def _build_index(
    folder: Path, vectors: Float16s, popularity: Float32s, config: IndexConfig, queries: Float32s, progress: Progress
) -> IndexEntry:
    """Write the index of a new version, and return its entry for the manifest. Raise InputError if no kind meets the
    config."""
    if config.kind == "exact" or (config.kind == "auto" and len(vectors) <= EXACT_UP_TO):
        return {"kind": "exact"}
    kinds = [kind for kind in KINDS if config.kind in ("auto", kind)]
    refused = []
    for kind in kinds:
        size_bytes = bytes_per_vector(kind, vectors.shape[1]) * len(vectors)
        if config.max_memory_bytes is not None and size_bytes > config.max_memory_bytes:
            refused.append(f"{kind} takes {size_bytes} bytes, more than {config.max_memory_bytes}")
            continue
        with progress(len(vectors), "pictures", "indexing") as step:
            index = build_index(kind, vectors, popularity, step)
        try:
            tuned = tune(index, vectors, popularity, queries, config.min_recall)
        except RecallTooLow as error:
            refused.append(str(error))
            continue
        index.write(folder)
        return {"kind": kind, "min_recall": config.min_recall, "efforts": tuned}
    raise InputError("; ".join(refused))


def _carry_index(
    folder: Path, old: Catalogue, rows: PopularRows, vectors: Float16s, popularity: Float32s, progress: Progress
) -> IndexEntry:
    """Write the old version's index with the new rows in it, and return its entry for the manifest."""
    was = old.manifest["index"]
    if was["kind"] == "exact":
        return {"kind": "exact"}
    # Pictures are matched by content. The same content under two names has the same vector, so any of its rows will do.
    known = np.asarray(pc.fill_null(pc.index_in(rows.table["image_id"], value_set=old.rows["image_id"]), -1))
    with progress(len(vectors), "pictures", "indexing") as step:
        new = read_index(old.folder, was["kind"], mapped=False).refilled(known, vectors, popularity, step)
    new.write(folder)
    queries = tuning_queries(vectors, None, REFRESH_QUERIES)
    tuned: list[Tuned] = []
    for effort in was["efforts"]:
        tried = Effort(effort["probes"], effort["candidates"])
        recall = measure(new, vectors, popularity, queries, effort["weight"], tried)
        tuned.append({**effort, "recall_at_10": recall})
    if min(effort["recall_at_10"] for effort in tuned) < was["min_recall"] - RECALL_SLACK:
        # The counts changed so much that the efforts no longer suffice.
        tuned = tune(new, vectors, popularity, tuning_queries(vectors, None), was["min_recall"])
    return {**was, "efforts": tuned}


def _write_rows(folder: Path, pictures: Pictures, rows: PopularRows) -> tuple[Float16s, Float32s]:
    """Write the files of a version except its index, and return the memory-mapped vectors and the popularity."""
    vectors = pictures.image_embeddings()
    with atomic_write(folder / "vectors.npy") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(rows.vector_rows), vectors.shape[1])}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows.vector_rows), COPY_ROWS):
            some = vectors[rows.vector_rows[start : start + COPY_ROWS]]
            file.write(np.ascontiguousarray(some, "<f2").data)
    popularity = np.asarray(rows.table["popularity"])
    write_with(folder / "popularity.npy", lambda file: np.save(file, popularity, allow_pickle=False))
    places = pa.table({"uri": pictures.places().take(pa.array(rows.vector_rows))})
    for name, table in (("rows", rows.table.combine_chunks()), ("places", places)):
        with atomic_write(folder / f"{name}.arrow") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    return np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False), popularity


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """The folder of the next version, with a lock on writing the catalogue. It is removed if the block fails."""
    with locked(path):
        current = _version(path)
        for entry in path.iterdir():
            if _is_version(entry.name) and entry.name != current:
                shutil.rmtree(entry)
        folder = path / f"v{int(current[1:]) + 1:06d}"
        folder.mkdir()
        try:
            yield folder
        except BaseException:
            if _version(path) != folder.name:
                shutil.rmtree(folder)
            raise


def _version(path: Path) -> str:
    """The current version, even of a catalogue that this plaudit cannot read; v000000 if there is none."""
    try:
        name = str(json.loads((path / "manifest.json").read_text())["version"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        name = ""
    return name if _is_version(name) else "v000000"


def _is_version(name: str) -> bool:
    return name[:1] == "v" and name[1:].isdigit()


def _commit(
    path: Path,
    folder: Path,
    pictures: Pictures,
    config: PopularityConfig,
    index: IndexEntry,
    images_root: str,
    bundle: str | None,
) -> None:
    sync_folder(path)
    manifest: CatalogueManifest = {
        "format": FORMAT,
        "version": folder.name,
        "identity": pictures.identity.to_json(),
        "images_root": images_root,
        "bundle": bundle,
        "popularity": asdict(config),
        "index": index,
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    write_json(path / "manifest.json", manifest)


def _relative(place: str | Path, out: Path) -> str:
    """A path relative to the catalogue, so that both can be moved together. A URI does not change."""
    return str(place) if "://" in str(place) else os.path.relpath(place, out)
