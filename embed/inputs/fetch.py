"""Bytes by URI, and the pictures of a folder: local files with plain `open`, everything else through fsspec.

A URI is a path, `file://...` (percent-encoded), or `scheme://...` for any file system that fsspec knows. Of the web,
redirects are followed to other web addresses.
"""

import os
import re
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote, unquote_to_bytes

from embed.spec import InputError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
MAX_BYTES = 100 << 20
HTTP_TIMEOUT_S = 60  # for one picture; a server that never ends must not stop the job

_UNFIT = re.compile(r"""%(?![0-9A-Fa-f]{2})|[^!-~]|["<>\\^`{|}]""")  # for a web address, which is sent without them
_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?((?><!--.*?-->)\s*)*+<(!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def read_bytes(uri: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes at `uri`.

    Raise OSError if this one cannot be read: missing, refused, no regular file, or longer than `max_bytes`; the length
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
    scheme = uri.partition("://")[0].lower()
    try:
        return _read_web(uri, scheme, max_bytes) if scheme in ("http", "https") else _read_store(uri, scheme, max_bytes)
    except (OSError, InputError):
        raise
    except Exception as error:  # every file system has its own family of errors
        raise OSError(f"cannot read {uri}: {type(error).__name__}: {error}") from error


def _read_store(uri: str, scheme: str, max_bytes: int) -> bytes:
    with _filesystem(scheme).open(uri, "rb") as file:
        return _read(file, uri, getattr(file, "size", None), max_bytes)


def _read_web(uri: str, scheme: str, max_bytes: int) -> bytes:
    try:
        import aiohttp
    except ImportError as error:
        raise InputError(f"cannot read {scheme}:// addresses: {error}") from None

    # With block_size 0 a file is one plain stream instead of a series of range requests, with a size none is asked for
    # first, and what is encoded is sent as it is: a signature holds for no other spelling. A name in another alphabet
    # must be encoded, its host's in a way of its own.
    web = _filesystem(
        scheme,
        block_size=0,
        encoded=uri.isascii(),
        client_kwargs={"timeout": aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)},
    )
    address = _UNFIT.sub(lambda found: quote(found[0]), uri) if uri.isascii() else uri
    try:
        with web.open(address, "rb", size=max_bytes) as file:
            data = _read(file, uri, None, max_bytes)
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri}: the address answered 404, not found") from None
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OSError(f"cannot read {uri}: {type(error).__name__}: {error}") from error
    if _PAGE.match(data[:4096]):
        raise OSError(f"{uri}: the address answered with a web page, not a picture")
    return data


def _filesystem(scheme: str, **options: object) -> "AbstractFileSystem":
    import fsspec

    try:
        return fsspec.filesystem(scheme, **options)
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


def some_pictures(folder: Path, count: int) -> list[Path]:
    """Up to `count` picture files under the folder, evenly spread over their sorted names."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if len(paths) < 2:
        raise InputError(f"{folder} holds {len(paths)} pictures; wanted at least two to compare")
    return [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths
