"""Sources that give one record after another: JSON arrays, folders of pictures, webdataset tars.

They read as tables like any other: a folder with the columns `image` and `prompt`, a tar with `image`, `bytes`,
`prompt` and the scalars of its `.json` members. Only a batch of records is ever held as Python objects.
"""

import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from embed.records.tables import Table, Types
from embed.spec import InputError

BATCH_RECORDS = 8192
MAX_RECORD_CHARS = 64 << 20  # of one object in a JSON array; text that never closes must not fill the memory

# Beside pictures in a folder, and not pictures. Hidden files are left out too; whatever else is there counts as one.
SIDE_FILES = (".csv", ".html", ".json", ".jsonl", ".md", ".npy", ".npz", ".parquet", ".tar", ".tsv", ".txt", ".zip")
TAR_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


class SampleTable(Table):
    """A source of Python dicts, one a row."""

    def _samples(self, types: Types) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _open(self) -> tuple[pa.Schema, bool]:
        # The names are enough: columns are read with the types that are asked for.
        first = list(itertools.islice(self._samples({}), 100))
        names = dict.fromkeys(itertools.chain.from_iterable(first))
        return pa.schema([(name, pa.null()) for name in names]), bool(first)

    def _stream(self, types: Types, rows: int) -> Iterator[pa.RecordBatch]:
        schema = pa.schema(list(types.items()))
        for samples in _batched(self._samples(types), min(rows, BATCH_RECORDS)):
            yield pa.RecordBatch.from_pylist(samples, schema)

    def _read(self, types: Types) -> pa.Table:
        tables = [self._to_table(samples, types) for samples in _batched(self._samples(types), BATCH_RECORDS)]
        return pa.concat_tables(tables, promote_options="permissive")

    def _to_table(self, samples: list[dict[str, Any]], types: Types) -> pa.Table:
        """The columns of `types`, and every other one that holds no lists and objects."""
        columns = {}
        for name in dict.fromkeys([*types, *itertools.chain.from_iterable(samples)]):
            values = [sample.get(name) for sample in samples]
            if name in types or not any(isinstance(value, list | dict) for value in values):
                try:
                    columns[name] = pa.array(values, types.get(name))
                except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                    raise InputError(f"{self.path}: column {name!r} holds different kinds of values: {error}") from None
        return pa.table(columns)


class JsonArrayTable(SampleTable):
    """One JSON array of objects, read object by object."""

    def _samples(self, types: Types) -> Iterator[dict[str, Any]]:
        with pa.input_stream(self.path, compression="detect") as raw:
            for number, record in enumerate(_json_array(io.TextIOWrapper(raw, encoding="utf-8-sig"))):
                if not isinstance(record, dict):
                    raise InputError(f"{self.path}: record {number} is {str(record)[:40]!r}; wanted a JSON object")
                yield record


class FolderTable(SampleTable):
    """Every file under a folder but hidden ones and side files, sorted by name, folder by folder.

    Links to folders are not followed. The prompt of `a.jpg` is the text of `a.txt` beside it, null where there is
    none; bytes in it that are not UTF-8 read as U+FFFD. A file name that is not UTF-8 becomes its `file://` URI.
    """

    plain_format = "folder"

    def _open(self) -> tuple[pa.Schema, bool]:
        has_rows = next(_files(self.path, ""), None) is not None
        return pa.schema([("image", pa.string()), ("prompt", pa.string())]), has_rows

    def _samples(self, types: Types) -> Iterator[dict[str, Any]]:
        for name in _files(self.path, ""):
            sample: dict[str, Any] = {"image": _utf8_name(self.path, name)}
            if "prompt" in types:
                text = Path(self.path, name).with_suffix(".txt")
                sample["prompt"] = text.read_text("utf-8", "replace").strip() if text.is_file() else None
            yield sample


class TarTable(SampleTable):
    """webdataset shards: one path, or a brace pattern such as `shard-{0000..0009}.tar`.

    `image` is the sample's `__key__`, `bytes` its picture, `prompt` its `.txt`, or else the `prompt` or `caption` of
    its `.json`, whose other scalars are further columns.
    """

    plain_format = "webdataset"

    def _open(self) -> tuple[pa.Schema, bool]:
        fixed = {"image": pa.string(), "bytes": pa.binary(), "prompt": pa.string()}
        found, has_rows = super()._open()
        others = [name for name in found.names if name not in fixed]
        return pa.schema([*fixed.items(), *((name, pa.null()) for name in others)]), has_rows

    def _samples(self, types: Types) -> Iterator[dict[str, Any]]:
        first_keys: dict[str, str] = {}
        for shard in _shards(self.path):
            for number, members in enumerate(_tar_members(shard)):
                key = members["__key__"]
                if number == 0 and first_keys.setdefault(key, shard) != shard:
                    raise InputError(f"{first_keys[key]} and {shard} both begin with the key {key!r}: keys must differ")
                yield _tar_sample(members, shard, "bytes" in types)


def _batched(samples: Iterable[dict[str, Any]], rows: int) -> Iterator[list[dict[str, Any]]]:
    samples = iter(samples)
    while batch := list(itertools.islice(samples, rows)):
        yield batch


def _json_array(file: TextIO) -> Iterator[Any]:
    """The elements of the JSON array in `file`, decoded as they are read."""
    decode = json.JSONDecoder().raw_decode
    skip = re.compile(r"[\s,]*").match
    text = file.read(1 << 20).lstrip().removeprefix("[")
    position = 0
    while True:
        position = skip(text, position).end()  # type: ignore[union-attr]
        if text.startswith("]", position):
            return
        try:
            element, position = decode(text, position)
        except json.JSONDecodeError:
            more = file.read(max(1 << 20, len(text) - position))
            if not more or len(text) - position > MAX_RECORD_CHARS:
                raise
            text, position = text[position:] + more, 0
            continue
        yield element


def _files(root: str, folder: str) -> Iterator[str]:
    with os.scandir(os.path.join(root, folder)) as entries:
        found = sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_file()) for entry in entries)
    for name, is_folder, is_file in found:
        path = os.path.join(folder, name)
        if name.startswith("."):
            continue
        if is_folder:
            yield from _files(root, path)
        elif is_file and not name.lower().endswith(SIDE_FILES):
            yield path


def _utf8_name(root: str, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        return Path(root, name).absolute().as_uri()
    return name


def _shards(pattern: str) -> list[str]:
    if "{" in pattern:
        try:
            from braceexpand import braceexpand
        except ImportError:
            raise InputError(f"reading {pattern} needs webdataset: pip install webdataset") from None
        shards = list(braceexpand(pattern))
    else:
        shards = [pattern]
    if missing := [shard for shard in shards if not os.path.isfile(shard)]:
        raise InputError(f"{missing[0]} does not exist" + (f", nor do {len(missing) - 1} more" * (len(missing) > 1)))
    return shards


def _tar_members(shard: str) -> Iterator[dict[str, Any]]:
    """The samples of one tar as `webdataset` groups them: `__key__`, and bytes by extension."""
    import tarfile

    try:
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ImportError:
        raise InputError(f"reading {shard} needs webdataset: pip install webdataset") from None
    with open(shard, "rb") as file:
        try:
            yield from group_by_keys(tar_file_expander([{"url": shard, "stream": file}]))
        except (tarfile.TarError, ValueError) as error:
            raise InputError(f"{shard} cannot be read: {error}") from None


def _tar_sample(members: dict[str, Any], shard: str, with_bytes: bool) -> dict[str, Any]:
    facts = json.loads(members.get("json", "{}"))
    if not isinstance(facts, dict):
        raise InputError(f"{shard}: {members['__key__']}.json is no JSON object")
    sample = facts | {"image": members["__key__"]}
    if with_bytes:
        sample["bytes"] = next((data for name, data in members.items() if name.endswith(TAR_PICTURES)), None)
    else:
        sample.pop("bytes", None)
    text = members["txt"].decode("utf-8", "replace").strip() if "txt" in members else None
    sample["prompt"] = text or facts.get("prompt") or facts.get("caption")
    return sample
