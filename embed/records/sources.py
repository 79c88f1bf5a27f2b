"""Open what a name stands for: a file, a folder, a pattern of shards, or a dataset that `datasets` saved."""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa

from embed.records.columnar import ArrowFileTable, ArrowStream, HasArrowTable, MemoryTable, ParquetTable
from embed.records.delimited import CsvTable
from embed.records.json_records import JsonTable
from embed.records.plain import holds_bytes, plain
from embed.records.samples import FolderTable
from embed.records.tables import Rows, Table, Types
from embed.records.tars import TarTable
from embed.spec import InputError

TableSource: TypeAlias = str | Path | ArrowStream | HasArrowTable

READERS: dict[str, type[Table]] = {
    ".parquet": ParquetTable,
    ".csv": CsvTable,
    ".tsv": CsvTable,
    ".json": JsonTable,
    ".jsonl": JsonTable,
    ".ndjson": JsonTable,
    ".arrow": ArrowFileTable,
    ".feather": ArrowFileTable,
}
SPLITS = {"train", "test", "validation", "valid", "val", "dev"}
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.parquet")  # as Hugging Face names them


class ShardedTable(Table):
    """Several tables with the same columns, read one after another as one table."""

    def __init__(self, path: str, root: str, aliases: Mapping[str, str], shards: Sequence[Table]) -> None:
        self._shards = [shard for shard in shards if shard.has_rows] or shards[:1]
        super().__init__(path, root, aliases)

    @property
    def files(self) -> list[str]:
        return [file for shard in self._shards for file in shard.files]

    def _open(self) -> tuple[pa.Schema, bool]:
        for shard in self._shards[1:]:
            _require_same(self._shards[0], shard)
        rows = [shard.rows for shard in self._shards if shard.rows is not None]
        self.rows = sum(rows) if len(rows) == len(self._shards) else None
        schemas = [pa.schema(list(shard.types.items())) for shard in self._shards]
        return pa.unify_schemas(schemas, promote_options="permissive"), self._shards[0].has_rows

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        for shard in self._shards:
            with shard._readable():
                yield from shard._stream(types, rows)

    def _read(self, types: Types) -> pa.Table:
        tables = []
        for shard in self._shards:
            with shard._readable():
                table = shard._read(types)
                tables.append(pa.table({name: plain(table[name]) for name in table.column_names}))
        return pa.concat_tables(tables, promote_options="permissive")

    def _whole_rows(self, types: Types, rows: int, start: int) -> Iterator[Rows]:
        for shard in self._shards:
            if shard.rows is not None and shard.rows <= start:
                start -= shard.rows
                continue
            with shard._readable():
                for batch in shard._whole_rows(types, rows, 0):
                    yield batch.slice(start)
                    start = max(0, start - len(batch))


def open_table(source: TableSource, columns: Mapping[str, str]) -> Table:
    """Return the reader for a file, a folder, a pattern of shards or a table in memory. `columns` is {ours: theirs}.

    Raise InputError if there is no such file, or if its name is not that of a table.
    """
    if not isinstance(source, str | Path):
        return MemoryTable(source, columns)
    path = str(source)
    if os.path.isdir(path):
        return _open_folder(path, columns)
    files = _named(path)
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    if all(re.search(r"\.(tar(\.(gz|bz2|xz))?|tgz)$", file.lower()) for file in files):
        return TarTable(path, root, columns, files)
    return _joined(path, root, columns, files)


def _joined(path: str, root: str, columns: Mapping[str, str], files: Sequence[str]) -> Table:
    if len(files) == 1:
        return _reader(files[0])(files[0], root, columns)
    return ShardedTable(path, root, columns, [_reader(file)(file, root, {}) for file in files])


def _reader(file: str) -> type[Table]:
    suffix = os.path.splitext(re.sub(r"\.(gz|bz2|zst)$", "", file.lower()))[1]
    if suffix not in READERS:
        raise InputError(f"{file} has an unknown file type; wanted {', '.join(READERS)}, .tar or a folder")
    return READERS[suffix]


def _require_same(first: Table, other: Table) -> None:
    """Raise InputError if two shards do not belong to one table. A key that a JSON file lacks is null there."""
    differing = [] if isinstance(other, JsonTable) else sorted(first.types.keys() ^ other.types.keys())
    if differing:
        having, lacking = (first, other) if differing[0] in first.types else (other, first)
        raise InputError(
            f"{lacking.path} lacks the column {differing[0]!r} of {having.path}; all shards must have the same columns"
        )
    for name in first.types.keys() & other.types.keys():
        if holds_bytes(first.types[name]) != holds_bytes(other.types[name]):
            raise InputError(
                f"column {name!r} holds {first.types[name]} in {first.path} and {other.types[name]} in {other.path};"
                " all shards must have the same types"
            )


def _named(pattern: str) -> list[str]:
    """Return the file of this name, or the files that match `{000..009}`, `{a,b}`, `*`, `?` and `[...]` in it."""
    if os.path.exists(pattern):
        return [pattern]
    found: list[str] = []
    for name in _expanded(pattern):
        matching = sorted(filter(os.path.isfile, glob.glob(name, recursive=True)))
        found += matching if glob.has_magic(name) else [name]
    if not found:
        raise InputError(f"{pattern} does not exist: no file name matches it")
    found = list(dict.fromkeys(found))
    if missing := [file for file in found if not os.path.isfile(file)]:
        raise InputError(f"{missing[0]} does not exist" + (f", nor do {len(missing) - 1} more" * (len(missing) > 1)))
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with braces stands for, as in a shell."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers:
        first, last = map(int, numbers.groups())
        choices = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    else:
        choices = found[1].split(",")
    for choice in choices:
        yield from _expanded(pattern[: found.start()] + choice + pattern[found.end() :])


def _open_folder(path: str, columns: Mapping[str, str]) -> Table:
    """Open a dataset that the `datasets` library saved, a folder of Parquet files, or a folder of pictures."""
    if os.path.isfile(os.path.join(path, "dataset_dict.json")):
        splits = json.loads(Path(path, "dataset_dict.json").read_text())["splits"]
        raise InputError(
            f"{path} holds the splits {', '.join(splits)}; name one, such as {os.path.join(path, splits[0])}"
        )
    if os.path.isfile(os.path.join(path, "state.json")):
        state = json.loads(Path(path, "state.json").read_text())
        files = [os.path.join(path, file["filename"]) for file in state["_data_files"]]
        return _joined(path, os.path.abspath(path), columns, files)
    inside = os.path.join(glob.escape(path), "")
    found = sorted(glob.glob(f"{inside}*.parquet") + glob.glob(f"{inside}*/*.parquet"))
    pictures = FolderTable(path, os.path.abspath(path), columns)
    if not found or (pictures.has_rows and not any(map(SHARD.fullmatch, found))):
        return pictures
    return _joined(path, os.path.abspath(path), columns, _one_split(path, found))


def _one_split(path: str, files: Sequence[str]) -> Sequence[str]:
    """Return the Parquet files of a folder. Raise InputError if they are of several tables, or if some are missing."""
    splits: dict[str, list[str]] = {}
    for file in files:
        shard, name = SHARD.fullmatch(file), os.path.basename(file)
        start = re.split(r"[-_.]", name)[0]
        prefix = shard[1] + "-" if shard else os.path.join(os.path.dirname(file), start if start in SPLITS else "")
        splits.setdefault(prefix, []).append(file)
    if len(splits) > 1:
        patterns = [f"{prefix}*.parquet" for prefix in splits]
        raise InputError(f"{path} holds several tables; name one of {', '.join(patterns)}")
    for file in files:
        if (shard := SHARD.fullmatch(file)) and int(shard[3]) != len(files):
            raise InputError(f"{path} has only {len(files)} of {int(shard[3])} files such as {file}; add the others")
    return files


def pictures_root(table: Table, images_root: str | Path | None) -> str:
    """Return the folder or URI that a table's picture paths start from: `images_root`, or else the table's folder.

    Raise InputError if `images_root` is a folder that does not exist.
    """
    if images_root is None:
        return table.root
    root = str(images_root)
    if "://" in root:
        return root
    if not os.path.isdir(root):
        raise InputError(f"{root}, where the pictures should be, is not a folder; check --images-root")
    return os.path.abspath(root)
