"""The cache: a folder of unit-norm vectors that other tools can read, and the ledger of what failed.

    manifest.json                            identity, source, every file with its rows and SHA-256; written last
    images/img_emb/img_emb_0000.npy          (n, d) float16, or a link to it (embed.cache.linked); row i is that of
    images/metadata/metadata_0000.parquet    image_path (its first name), image_id, width, height
    images/keys/keys_0000.parquet            image_path, image_id, size_bytes, mtime_ns, uri: all names of pictures
    prompts/text_emb/..., prompts/metadata/... (caption, prompt_id)
    failures.parquet                         key, stage, reason, detail, size_bytes, mtime_ns

Each side has the layout of clip-retrieval's embeddings. Only files that the manifest lists count; files that a killed
job left behind are removed when the cache is next opened for writing. This module does not know models or pictures.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embed.addresses import Place
from embed.arrays import Array, Float16s, Ints, positions
from embed.cache.linked import Adopted, link, require_unchanged
from embed.cache.names import rows_of_names
from embed.files import atomic_write, locked, read_manifest, require_out, sha256_file, temporary_name, write_json
from embed.spec import SIDES, BoundaryDtype, Identity, InputError, Side, Source, known_fields, require_same_identity

if TYPE_CHECKING:
    from embed.arrays import Column

FORMAT = 1

# The column with the hash of a row's content, and the folder of its vectors.
ID_COLUMN = {"images": "image_id", "prompts": "prompt_id"}
EMBEDDINGS = {"images": "img_emb", "prompts": "text_emb"}

STRING, INT32, INT64 = pa.string(), pa.int32(), pa.int64()
METADATA = {
    "images": pa.schema({"image_path": STRING, "image_id": STRING, "width": INT32, "height": INT32}),
    "prompts": pa.schema({"caption": STRING, "prompt_id": STRING}),
}
# Size and time are null unless the picture is a local file. A picture that failed is read again once they have changed.
# The uri is where the picture was read (see embed.addresses.place_of); caches of older versions lack it.
KEYS = pa.schema({"image_path": STRING, "image_id": STRING, "size_bytes": INT64, "mtime_ns": INT64, "uri": STRING})
FAILURES = pa.schema(  # stages and reasons are taken from a few fixed phrases, so that they can be counted
    {"key": STRING, "stage": STRING, "reason": STRING, "detail": STRING, "size_bytes": INT64, "mtime_ns": INT64}
)


StoredDtype = BoundaryDtype | Literal["uint8"]  # uint8 is for pixels, when a whole tower is trained


class FileEntry(TypedDict):
    """A file in the manifest."""

    rows: int
    sha256: str


class BoundaryEntry(TypedDict):
    """A boundary in the manifest; see embed.cache.boundary."""

    depth: int
    dtype: StoredDtype
    certificate: NotRequired[dict[str, Any]]  # the fields of embed.graphs.trace.Certificate


class DecodingEntry(TypedDict):
    """In the manifest, pictures that were decoded in the same way; see embed.jobs.scaling."""

    scale: int | None  # None means exact decoding
    rows: int  # pictures on which the cosine to exact decoding was measured
    cosine_mean: float
    cosine_min: float
    pictures: int  # rows of the cache whose picture was decoded at a reduced size or on a device
    decoder: NotRequired[Literal["device"]]  # see embed.jobs.on_device
    library: NotRequired[str]  # which decoded on the device; absent in caches made when torchvision was the only one


Engines = dict[Side, list[dict[str, Any]]]  # the fields of each embed.engines.choice.Engine that was used, latest last


class ManifestFields(TypedDict, total=False):
    """Fields of the manifest that jobs write."""

    adopted: dict[str, Adopted]  # by the name of the shard's vector file
    engines: Engines
    decoding: list[DecodingEntry]  # the latest last; absent if all decoding was exact
    boundary: dict[str, BoundaryEntry]
    refreshed_from: str


class CacheManifest(ManifestFields):
    """manifest.json."""

    format: int
    identity: dict[str, Any]
    source: dict[str, Any]
    files: dict[str, FileEntry]


class Cache:
    """A finished or growing cache, opened for reading."""

    def __init__(self, path: Path, manifest: CacheManifest) -> None:
        self.path = path
        self.manifest = manifest
        self.identity = Identity.from_json(manifest["identity"])
        self.source = Source(**known_fields(Source, manifest["source"]))

    @classmethod
    def open(cls, path: str | Path) -> "Cache":
        """Open the cache at `path`. Raise InputError if there is none, or its format or linked files are wrong."""
        path = Path(path)
        cache = cls(path, read_manifest(path / "manifest.json", "cache", (FORMAT,), CacheManifest))
        hashes = {name: entry["sha256"] for name, entry in cache.manifest["files"].items()}
        require_unchanged(path, cache.adopted, hashes)
        return cache

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        counts = f"{self.count('images'):,} pictures and {self.count('prompts'):,} prompts"
        return f"{counts} of {self.source.model} in {self.path}"

    def files(self, side: Side, folder: str) -> list[Path]:
        """Return the committed files of one folder, such as ("images", "metadata"), in row order."""
        prefix = f"{side}/{folder}/"
        names = [name for name in self.manifest["files"] if name.startswith(prefix)]
        return [self.path / name for name in sorted(names, key=lambda name: (len(name), name))]

    def count(self, side: Side) -> int:
        """Return how many different pictures or prompts have a vector."""
        prefix = f"{side}/{EMBEDDINGS[side]}/"
        return sum(entry["rows"] for name, entry in self.manifest["files"].items() if name.startswith(prefix))

    @property
    def boundaries(self) -> dict[str, BoundaryEntry]:
        """The manifest's entry of each boundary, by the boundary's folder; see embed.cache.boundary."""
        return self.manifest.get("boundary", {})

    @property
    def decoding(self) -> list[DecodingEntry]:
        """How JPEGs were decoded, the latest last; empty if all pictures were decoded exactly."""
        return self.manifest.get("decoding", [])

    @property
    def scale(self) -> int | None:
        """The scale (see embed.inputs.scaled) at which the latest pictures were decoded."""
        return self.decoding[-1]["scale"] if self.decoding else None

    @property
    def adopted(self) -> dict[str, Adopted]:
        """Where the vectors of some shards came from, by the file name of each shard."""
        return self.manifest.get("adopted", {})

    def arrays(self, side: Side, folder: str | None = None) -> list[Float16s]:
        """Return memory-mapped (n_i, d) float16 arrays, one for each shard, in row order."""
        files = self.files(side, folder or EMBEDDINGS[side])
        found = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
        for array in found:
            if array.ndim != 2 or array.dtype != np.float16:
                raise InputError(f"{self.path}: a shard of {side} is {array.dtype}{array.shape}; wanted float16 (n, d)")
        return found

    def image_embeddings(self) -> Float16s:
        """Return the vectors of the pictures in memory: (n, d) float16 of unit norm."""
        return self._concatenated("images")

    def pooled_embeddings(self) -> Float16s | None:
        """Return the pictures' features before the projection, (n, p) float16 of unit norm, or None without them."""
        return np.concatenate(arrays) if (arrays := self.arrays("images", "pooled_emb")) else None

    def text_embeddings(self) -> Float16s:
        """Return the vectors of the prompts in memory: (n, d) float16 of unit norm."""
        return self._concatenated("prompts")

    def _concatenated(self, side: Side) -> Float16s:
        arrays = self.arrays(side)
        return np.concatenate(arrays) if arrays else np.empty((0, self.identity.dim), np.float16)

    def metadata(self, side: Side, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the metadata of one side; row i belongs to vector i."""
        return _read_tables(self.files(side, "metadata"), METADATA[side], columns)

    def keys(self) -> pa.Table:
        """Return all names of pictures, each with the content that it had when it was met."""
        return _as_keys(pq.read_table(file) for file in self.files("images", "keys"))

    def places(self) -> pa.Array:
        """Return (n,) places where each row's picture was last read; null if unknown or inside a table."""
        names, ids = self.keys(), self.metadata("images", ["image_id"])["image_id"]
        names = names.filter(names["uri"].is_valid())
        names = names.take(pa.array(np.arange(len(names))[::-1]))
        at = positions(ids, names["image_id"])
        return names["uri"].combine_chunks().take(pa.array(at, mask=at < 0))

    def column(self, file: Path, name: str) -> pa.ChunkedArray:
        """Return one column of one committed Parquet file."""
        return pq.read_table(file, columns=[name])[name]

    def failures(self) -> pa.Table:
        """Return the ledger: key, stage, reason and detail of every input without a vector."""
        name = "failures.parquet"
        files = [self.path / name] if name in self.manifest["files"] else []
        return _read_tables(files, FAILURES, None)

    def image_rows(self, keys: "Column | Sequence[str]", place: Place | None = None) -> Ints:
        """Return (m,) int64: the vector row of each picture key, or -1 if there is none; see `rows_of_names`."""
        return rows_of_names(keys, self.keys(), self.metadata("images", ["image_id"])["image_id"], place)

    def prompt_rows(self, prompts: "Column | Sequence[str]") -> Ints:
        """Return (m,) int64: the vector row of each prompt, or -1 if the cache does not have it."""
        return positions(prompts, self.metadata("prompts", ["caption"])["caption"])


class CacheWriter:
    """Appends shards to a new or existing cache. Nothing is part of the cache before `commit`.

    It holds a lock so that two jobs never write to the same cache. Use it as a context manager.
    """

    def __init__(self, path: str | Path, identity: Identity, source: Source) -> None:
        self.path = Path(path)
        require_out(self.path, "cache", overwrite=True)
        self._locked = locked(self.path)
        self._locked.__enter__()
        try:
            self._manifest = self._open_or_create(identity, source)
            self._remove_leftovers()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. What was not committed is lost."""
        self._locked.__exit__(None, None, None)

    def cache(self) -> Cache:
        """Return the cache with everything written so far, committed or not."""
        return Cache(self.path, self._manifest)

    def _open_or_create(self, identity: Identity, source: Source) -> CacheManifest:
        if not (self.path / "manifest.json").exists():
            manifest: CacheManifest = {
                "format": FORMAT,
                "identity": identity.to_json(),
                "source": {"model": source.model, "pretrained": source.pretrained},
                "files": {},
            }
            write_json(self.path / "manifest.json", manifest)
        cache = Cache.open(self.path)
        require_same_identity(cache.identity, f"the cache {self.path}", identity, "the backbone asked for")
        return cache.manifest.copy()

    def _remove_leftovers(self) -> None:
        files, ledger = self._manifest["files"], self.path / "failures.parquet"
        # The ledger is the only file that is replaced: a job killed before its commit may have left the next version.
        if ledger.name in files and (not ledger.exists() or sha256_file(ledger) != files[ledger.name]["sha256"]):
            del files[ledger.name]
        for side in SIDES:
            for file in (self.path / side).rglob("*"):
                if file.is_file() and file.relative_to(self.path).as_posix() not in files:
                    file.unlink()
        for file in (ledger, temporary_name(ledger), temporary_name(self.path / "manifest.json")):
            if file.name not in files:
                file.unlink(missing_ok=True)

    def append(self, side: Side, metadata: pa.Table, **arrays: Array | Path) -> None:
        """Write one shard: `metadata` (n rows) and its arrays by folder, such as `img_emb=(n, d) float16`.

        Instead of an array, the path of a .npy file may be given; the file is then linked.
        """
        shard = len(self.cache().files(side, "metadata"))
        for folder, array in arrays.items():
            name = f"{side}/{folder}/{folder}_{shard:04d}.npy"
            if isinstance(array, Path):
                link(array, self.path / name)
                self._record(name, len(metadata))
                continue
            if len(array) != len(metadata):
                raise ValueError(f"{folder} has {len(array)} rows, its metadata {len(metadata)}")
            self.write_array(name, array)
        self._write_table(f"{side}/metadata/metadata_{shard:04d}.parquet", metadata.cast(METADATA[side]))

    def write_array(self, name: str, array: Array) -> None:
        """Write one .npy file. `name` is its path inside the cache, which starts with a side."""
        with atomic_write(self.path / name) as file:
            np.save(file, array, allow_pickle=False)
        self._record(name, len(array))

    def append_keys(self, keys: pa.Table) -> None:
        """Write names of pictures: those of the shard that was just appended, or new names of known pictures."""
        shard = len(self.cache().files("images", "keys"))
        self._write_table(f"images/keys/keys_{shard:04d}.parquet", _as_keys([keys]))

    def replace_failures(self, failures: pa.Table) -> None:
        """Write the whole ledger."""
        self._write_table("failures.parquet", failures.cast(FAILURES))

    def commit(self, **fields: Unpack[ManifestFields]) -> None:
        """Make everything written since the last commit part of the cache, and put `fields` into the manifest."""
        self._manifest = {**self._manifest, **fields}
        write_json(self.path / "manifest.json", self._manifest)

    def _write_table(self, name: str, table: pa.Table) -> None:
        with atomic_write(self.path / name) as file:
            pq.write_table(table, file)
        self._record(name, len(table))

    def _record(self, name: str, rows: int) -> None:
        self._manifest["files"][name] = {"rows": rows, "sha256": sha256_file(self.path / name)}


def _as_keys(tables: Iterable[pa.Table]) -> pa.Table:
    """Return one table with the columns of KEYS; tables of older versions lack the uri, which is then null."""
    return pa.concat_tables([KEYS.empty_table(), *tables], promote_options="default").cast(KEYS)


def _read_tables(files: Iterable[Path], schema: pa.Schema, columns: Sequence[str] | None) -> pa.Table:
    tables = [pq.read_table(file, columns=columns) for file in files]
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    return pa.concat_tables(tables) if tables else schema.empty_table()
