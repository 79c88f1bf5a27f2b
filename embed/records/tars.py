"""Webdataset tars: the files of a sample stand side by side under one name, `0001.jpg`, `0001.txt`, `0001.json`."""

import itertools
import json
import logging
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

import pyarrow as pa

from embed.records.plain import holds_bytes
from embed.records.samples import SampleTable
from embed.records.tables import Types
from embed.spec import InputError
from embed.wording import one_line

logger = logging.getLogger(__name__)

FIRST_SAMPLES = 100  # whose facts are the columns, until `complete`
PICTURES = {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "img"}
PICTURES |= {"avif", "heic", "heif", "jxl", "jp2", "ppm", "pgm", "pbm"}  # some are not decoded, and the ledger says so
FIXED = {"image": pa.string(), "bytes": pa.binary(), "prompt": pa.string()}

Place: TypeAlias = tuple[int, int]  # of a file in its tar: where it begins, and how long it is
Files: TypeAlias = dict[str, Place]  # of a sample, by extension


class TarTable(SampleTable):
    """Samples of some shards, in their order.

    `image` is the sample's name, `bytes` its picture, `prompt` its `.txt`, or else the `prompt` or `caption` of its
    `.json`, whose other scalars are further columns. A picture's extension is a column too, so that
    {"bytes": "depth.png"} chooses among several. A shard that ends early is one picture more, which cannot be read.
    """

    plain_format = "webdataset"

    def __init__(self, path: str, root: str, aliases: Mapping[str, str], shards: Sequence[str]) -> None:
        self._shards = shards
        self._warned: set[str] = set()
        super().__init__(path, root, aliases)

    @property
    def files(self) -> list[str]:
        return list(self._shards)

    def _open(self) -> tuple[pa.Schema, bool]:
        samples = list(itertools.islice(self._samples({}), FIRST_SAMPLES))
        return _schema(samples), bool(samples)

    def complete(self) -> None:
        with self._readable():
            self._know(_schema(self._samples({})))

    def _samples(self, types: Types) -> Iterator[dict[str, Any]]:
        with_pictures = any(map(holds_bytes, types.values()))
        first_keys: dict[str, str] = {}
        for path in self._shards:
            with Shard(path) as shard:
                for number, (key, files) in enumerate(shard.samples()):
                    if number == 0 and first_keys.setdefault(key, path) != path:
                        raise InputError(
                            f"{first_keys[key]} and {path} both begin with the key {key!r}: keys must differ"
                        )
                    yield _sample(shard, key, files, types)
            if shard.ending and with_pictures:
                yield {"image": f"{path} {shard.ending}"}
            self._warn(shard)

    def _warn(self, shard: "Shard") -> None:
        """Say once what a shard has that is not read."""
        if shard.path not in self._warned:
            self._warned.add(shard.path)
            if shard.ending:
                logger.warning(f"{shard.path} {shard.ending}")
            if shard.left_out:
                logger.warning(
                    f"{shard.path}: {len(shard.left_out)} files without an extension are left out, the first"
                    f" {shard.left_out[0]}"
                )


class Shard:
    """One tar, open for reading. Once its samples are read, `ending` says how it ended early, if it did, and `left_out`
    names the files that are of no sample."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.ending: str | None = None
        self.left_out: list[str] = []
        try:
            self._tar = tarfile.open(path)  # noqa: SIM115
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{path} cannot be read: {one_line(error)}") from None

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, *error: object) -> None:
        self._tar.close()

    def samples(self) -> Iterator[tuple[str, Files]]:
        """The name of each sample and its files: those side by side whose names are equal up to the first dot.

        Where none of them has a plain extension, such as `jpg` beside `depth.png`, the names have dots of their own,
        and end at the last one.
        """
        for key, members in itertools.groupby(self._members(), key=itemgetter(0)):
            files = [(extension, place) for _, extension, place in members]
            if any("." not in extension for extension, _ in files):
                yield key, self._files(key, files)
                continue
            samples: dict[str, list[tuple[str, Place]]] = {}
            for extension, place in files:
                stem, _, last = extension.rpartition(".")
                samples.setdefault(f"{key}.{stem}", []).append((last, place))
            for name, some in samples.items():
                yield name, self._files(name, some)

    def data(self, place: Place) -> bytes:
        """The content of a file, or what is left of it where the tar ends early."""
        offset, size = place
        self._tar.fileobj.seek(offset)
        try:
            return self._tar.fileobj.read(size)
        except EOFError:
            return b""

    def text(self, place: Place | None) -> str | None:
        """The content of a file of text; None where there is none, or not all of it."""
        data = b"" if place is None else self.data(place)
        return data.decode("utf-8", "replace") if place is not None and len(data) == place[1] else None

    def _files(self, key: str, files: Sequence[tuple[str, Place]]) -> Files:
        found = dict(files)
        if len(found) < len(files):
            raise InputError(f"{self.path} cannot be read: it holds a file of {key!r} twice")
        return found

    def _members(self) -> Iterator[tuple[str, str, Place]]:
        """Of every file its name up to the first dot, what follows, and its place."""
        for entry in self._entries():
            name = entry.name.rpartition("/")[2]
            extension = name.partition(".")[2]
            if entry.isreg() and extension and not name.startswith("."):
                yield entry.name[: -len(extension) - 1], extension.lower(), (entry.offset_data, entry.size)
            elif not entry.isdir() and not name.startswith((".", "__")):
                self.left_out.append(entry.name)

    def _entries(self) -> Iterator[tarfile.TarInfo]:
        try:
            while entry := self._tar.next():
                self._tar.members.clear()  # type: ignore[attr-defined]  # which would grow with every entry
                yield entry
            self.ending = self._early_end()
        except (tarfile.TarError, EOFError) as error:
            self.ending = f"ends early ({error})"

    def _early_end(self) -> str | None:
        """What stands where the blocks of zeros should be that end a tar."""
        place, file = self._tar.offset, self._tar.fileobj
        file.seek(place)
        block, rest = file.read(512), file.read(1 << 20)
        if len(block) < 512:
            return f"ends early (at byte {place}, {'inside a header' if block else 'without its end blocks'})"
        if block.strip(b"\0"):
            return f"ends early (at byte {place} is no header)"
        return f"is not read beyond its end at byte {place}, where another tar follows" if rest.strip(b"\0") else None


def _sample(shard: Shard, key: str, files: Files, types: Types) -> dict[str, Any]:
    try:
        facts = json.loads(shard.text(files.get("json")) or "{}")
    except ValueError as error:
        raise InputError(f"{shard.path}: {key}.json is no JSON object ({error})") from None
    if not isinstance(facts, dict):
        raise InputError(f"{shard.path}: {key}.json is no JSON object")
    pictures = [name for name in files if name.rpartition(".")[2] in PICTURES]
    sample: dict[str, Any] = dict.fromkeys(pictures) | facts | {"image": key}
    sample["prompt"] = (shard.text(files.get("txt")) or "").strip() or facts.get("prompt") or facts.get("caption")
    sample.pop("bytes", None)
    for name in types.keys() & {"bytes", *pictures}:
        chosen = _picture(shard, key, pictures) if name == "bytes" else name
        sample[name] = shard.data(files[chosen]) if chosen else None
    return sample


def _picture(shard: Shard, key: str, pictures: Sequence[str]) -> str | None:
    """The extension of the sample's picture: a plain one before one with dots, such as `jpg` before `depth.png`."""
    plain = [name for name in pictures if "." not in name] or pictures
    if len(plain) > 1:
        raise InputError(
            f"{shard.path}: {key!r} has the pictures {', '.join(plain)}; say which, such as --columns bytes={plain[0]}"
        )
    return plain[0] if plain else None


def _schema(samples: Iterable[dict[str, Any]]) -> pa.Schema:
    names = dict.fromkeys(name for sample in samples for name in sample if name not in FIXED)
    own = {name: pa.binary() if name.rpartition(".")[2] in PICTURES else pa.null() for name in names}
    return pa.schema(list((FIXED | own).items()))
