"""Bytes by URI: local files with plain `open`, everything else through fsspec.

A URI is a path, `file://...` (percent-encoded), or `scheme://...` for any file system that fsspec knows.
"""

import os
import re
from stat import S_ISREG
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote_to_bytes

from embed.spec import InputError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

MAX_BYTES = 100 << 20
HTTP_TIMEOUT_S = 60  # for one picture; a server that never ends must not stop the job

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def read_bytes(uri: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes at `uri`.

    OSError where this one cannot be read: missing, refused, no regular file, or longer than `max_bytes`; the length
    is checked before reading where the file system tells it, and reading stops beyond it in any case. InputError
    where nothing of its scheme can be read: an unknown one, or one whose library is not installed.
    """
    path = local_path(uri)
    if path is None:
        return _read_remote(uri, max_bytes)
    # A pipe would wait for a writer for ever: it opens at once with O_NONBLOCK, and is then refused.
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not S_ISREG(status.st_mode):
            raise OSError(f"{uri} is no regular file")
        return _read(file, uri, status.st_size, max_bytes)


def local_stat(uri: str) -> tuple[int, int] | None:
    """(size in bytes, modification time in ns) of a local file; None where `uri` is remote or nothing is there."""
    path = local_path(uri)
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def local_path(uri: str) -> str | None:
    """The path of a local file; None for another file system."""
    match = _SCHEME.match(uri)
    if match is None:
        return uri
    if match[1].lower() != "file":
        return None
    return os.fsdecode(unquote_to_bytes(re.sub(r"^localhost(?=/)", "", uri[match.end() :])))


def _read_remote(uri: str, max_bytes: int) -> bytes:
    try:
        with _filesystem(uri.partition("://")[0].lower()).open(uri, "rb") as file:
            return _read(file, uri, getattr(file, "size", None), max_bytes)
    except (OSError, InputError):
        raise
    except Exception as error:  # every file system has its own family of errors
        raise OSError(f"cannot read {uri}: {type(error).__name__}: {error}") from error


def _filesystem(scheme: str) -> "AbstractFileSystem":
    import fsspec

    try:
        if scheme not in ("http", "https"):
            return fsspec.filesystem(scheme)
        import aiohttp

        # With block_size 0 a file is one plain stream instead of a series of range requests.
        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        return fsspec.filesystem(scheme, block_size=0, client_kwargs={"timeout": timeout})
    except (ValueError, ImportError) as error:
        raise InputError(f"cannot read {scheme}:// addresses: {error}") from None


def _read(file: BinaryIO, uri: str, size: int | None, max_bytes: int) -> bytes:
    if size is not None and size > max_bytes:
        raise OSError(f"{uri} has {size:,} bytes; the limit is {max_bytes:,}")
    pieces: list[bytes] = []
    left = max_bytes + 1
    # A stream may give less than asked for; only nothing is the end.
    while left and (piece := file.read(min(left, 1 << 20))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise OSError(f"{uri} has more bytes than the limit of {max_bytes:,}")
    return b"".join(pieces)
