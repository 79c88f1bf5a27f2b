"""Whole files or none: everything is written under a temporary name, synced, and renamed into place.

One process at a time writes a folder.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from embed.spec import InputError

Manifest = TypeVar("Manifest", bound=Mapping[str, object])


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path`, whole, when the block ends, and not at all when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # numpy and Arrow do not name the file, numpy not even the cause, when the disk is full.
            code = error.errno or errno.ENOSPC
            raise OSError(code, os.strerror(code), str(path)) from error
        raise
    sync_folder(path.parent)


def temporary_name(path: Path) -> Path:
    """Where `atomic_write` writes the file that will be `path`; a killed process leaves it behind."""
    return path.with_name(f".{path.name}.tmp")


def write_with(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Like `atomic_write`, for a writer that takes the open file."""
    with atomic_write(path) as file:
        writer(file)


def sync_folder(path: Path) -> None:
    """Make the renames inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone in writing the folder `path`, which is made, until the block ends or the process dies."""
    import fcntl  # not on Windows, where what is only read may still be read

    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another job is writing {path}; wait for it, or choose another --out") from None
        yield


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Sorted, indented JSON that ends in a newline: equal data gives equal bytes."""
    text = json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def read_manifest(path: Path, what: str, formats: tuple[int, ...], kind: type[Manifest]) -> Manifest:
    """The JSON object at `path`, its `format` checked against the ones this version reads.

    `what` names the kind of artifact for the message, such as "cache" or "bundle". `kind` is the TypedDict of such
    manifests, whose required keys have to be there.
    """
    if not path.is_file():
        raise InputError(f"{path.parent} is not a {what}: it has no {path.name}")
    try:
        manifest = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); make the {what} again") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise InputError(f"{path} is not the manifest of a {what}: it has no field 'format'")
    if manifest["format"] not in formats:
        raise InputError(
            f"{path} has {what} format {manifest['format']!r}; this version of plaudit reads {list(formats)}:"
            f" upgrade plaudit, or make the {what} again"
        )
    if missing := sorted(getattr(kind, "__required_keys__", set()) - manifest.keys()):
        raise InputError(f"{path} is damaged (it lacks {', '.join(missing)}); make the {what} again")
    return cast(Manifest, manifest)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_id(data: bytes) -> str:
    """The identity of a picture's or prompt's bytes: their SHA-256, cut to 128 bits, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()[:32]
