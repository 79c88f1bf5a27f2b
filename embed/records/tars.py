"""Webdataset tars: the files of a sample are side by side under one name: `0001.jpg`, `0001.txt`, `0001.json`."""

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

FIRST_SAMPLES = 100  # these decide the columns, until `complete` is called
PICTURES = {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "img"}
PICTURES |= {"avif", "heic", "heif", "jxl", "jp2", "ppm", "pgm", "pbm"}  # not all can be decoded; the ledger says so
FIXED = {"image": pa.string(), "bytes": pa.binary(), "prompt": pa.string()}

Place: TypeAlias = tuple[int, int]  # a file in its tar: its offset and its length, in bytes
Files: TypeAlias = dict[str, Place]  # the files of a sample, by extension


class TarTable(SampleTable):
    """The samples of some shards, in order.

    `image` is the sample's name, `bytes` its picture, and `prompt` its `.txt`, or else the `prompt` or `caption` of its
    `.json`. Other scalars of the `.json` become further columns. A picture's extension is a column too, so that
    {"bytes": "depth.png"} can choose one of several. A shard that is cut short gives one more picture that cannot be
    read.
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
        """Log, once for each shard, which parts of it are not read."""
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
    """One tar, open for reading.

    After its samples were read, `ending` says how it was cut short, or is None, and `left_out` names files that belong
    to no sample.
    """

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
        """Yield the name of each sample and its files: adjacent files with equal names up to the first dot.

        If none of these has a plain extension, such as `jpg` beside `depth.png`, their names contain dots and end at
        the last dot.
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
        """Return the content of a file, or what remains of it if the tar is cut short."""
        offset, size = place
        self._tar.fileobj.seek(offset)
        try:
            return self._tar.fileobj.read(size)
        except EOFError:
            return b""

    def text(self, place: Place | None) -> str | None:
        """Return the content of a text file, or None if it is missing or cut short."""
        data = b"" if place is None else self.data(place)
        return data.decode("utf-8", "replace") if place is not None and len(data) == place[1] else None

    def _files(self, key: str, files: Sequence[tuple[str, Place]]) -> Files:
        found = dict(files)
        if len(found) < len(files):
            raise InputError(f"{self.path} cannot be read: it holds a file of {key!r} twice")
        return found

    def _members(self) -> Iterator[tuple[str, str, Place]]:
        """Yield for every file its name up to the first dot, the rest of the name, and its place."""
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
                self._tar.members.clear()  # type: ignore[attr-defined]  # it grows with every entry
                yield entry
            self.ending = self._early_end()
        except (tarfile.TarError, EOFError) as error:
            self.ending = f"ends early ({error})"

    def _early_end(self) -> str | None:
        """Return what is wrong at the end of the tar, where blocks of zeros should be, or None."""
        place, file = self._tar.offset, self._tar.fileobj
        file.seek(place)
        block, rest = file.read(512), file.read(1 << 20)
        if len(block) < 512:
            return f"ends early (at byte {place}, {'inside a header' if block else 'without its end blocks'})"
        if block.strip(b"\0"):
            return f"ends early (at byte {place} is not a header)"
        return f"is read only up to its end at byte {place}, but another tar follows" if rest.strip(b"\0") else None


def _sample(shard: Shard, key: str, files: Files, types: Types) -> dict[str, Any]:
    try:
        facts = json.loads(shard.text(files.get("json")) or "{}")
    except ValueError as error:
        raise InputError(f"{shard.path}: {key}.json is not a JSON object ({error})") from None
    if not isinstance(facts, dict):
        raise InputError(f"{shard.path}: {key}.json is not a JSON object")
    pictures = [name for name in files if name.rpartition(".")[2] in PICTURES]
    sample: dict[str, Any] = dict.fromkeys(pictures) | facts | {"image": key}
    sample["prompt"] = (shard.text(files.get("txt")) or "").strip() or facts.get("prompt") or facts.get("caption")
    sample.pop("bytes", None)
    for name in types.keys() & {"bytes", *pictures}:
        chosen = _picture(shard, key, pictures) if name == "bytes" else name
        sample[name] = shard.data(files[chosen]) if chosen else None
    return sample


def _picture(shard: Shard, key: str, pictures: Sequence[str]) -> str | None:
    """Return the extension of the sample's picture. A plain one, such as `jpg`, is preferred to `depth.png`."""
    plain = [name for name in pictures if "." not in name] or pictures
    if len(plain) > 1:
        raise InputError(
            f"{shard.path}: {key!r} has the pictures {', '.join(plain)}; choose one, such as --columns bytes={plain[0]}"
        )
    return plain[0] if plain else None


def _schema(samples: Iterable[dict[str, Any]]) -> pa.Schema:
    names = dict.fromkeys(name for sample in samples for name in sample if name not in FIXED)
    own = {name: pa.binary() if name.rpartition(".")[2] in PICTURES else pa.null() for name in names}
    return pa.schema(list((FIXED | own).items()))
