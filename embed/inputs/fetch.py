"""Read bytes by URI and list the pictures of a folder: local files with plain `open`, all others through fsspec.

A URI is a path, `file://...` (percent-encoded), or `scheme://...` for any file system that fsspec knows. Redirects of
web addresses are followed to other web addresses.
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
HTTP_TIMEOUT_S = 60  # for one picture, so that a server that never ends cannot stop the job

_UNFIT = re.compile(r"""%(?![0-9A-Fa-f]{2})|[^!-~]|["<>\\^`{|}]""")  # not allowed in a web address; is encoded
_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?((?><!--.*?-->)\s*)*+<(!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def read_bytes(uri: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes at `uri`.

    Raise OSError if it cannot be read: it is missing, refused, not a regular file, or longer than `max_bytes`. The
    length is checked before reading if the file system knows it, and reading never goes beyond it. Raise InputError if
    nothing with its scheme can be read, because the scheme is unknown or its library is not installed.
    """
    path = local_path(uri)
    if path is None:
        return _read_remote(uri, max_bytes)
    # Opening a pipe would wait for a writer for ever. With O_NONBLOCK it opens at once and is refused below.
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not S_ISREG(status.st_mode):
            raise OSError(f"{uri} is not a regular file")
        return _read(file, uri, status.st_size, max_bytes)


def local_stat(uri: str) -> tuple[int, int] | None:
    """Return (size in bytes, modification time in ns) of a local file, or None if it is remote or missing."""
    path = local_path(uri)
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def local_path(uri: str) -> str | None:
    """Return the path of a local file, or None for another file system."""
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
    except Exception as error:  # every file system raises errors of its own classes
        raise OSError(f"cannot read {uri}: {type(error).__name__}: {error}") from error


def _read_store(uri: str, scheme: str, max_bytes: int) -> bytes:
    with _filesystem(scheme).open(uri, "rb") as file:
        return _read(file, uri, getattr(file, "size", None), max_bytes)


def _read_web(uri: str, scheme: str, max_bytes: int) -> bytes:
    try:
        import aiohttp
    except ImportError as error:
        raise InputError(f"cannot read {scheme}:// addresses: {error}") from None

    # With block_size 0 the file is read as one plain stream instead of many range requests. With a size given, the
    # server is not asked for it. An encoded address is sent as it is, because a signature is valid for no other
    # spelling. A name in another alphabet must be encoded, and its host in a special way.
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
    # A stream may return less than asked for; only an empty result means the end.
    while left and (piece := file.read(min(left, 1 << 20))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise OSError(f"{uri} has more bytes than the limit of {max_bytes:,}")
    return b"".join(pieces)


def some_pictures(folder: Path, count: int) -> list[Path]:
    """Return up to `count` picture files under the folder, evenly spread over their sorted names."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if len(paths) < 2:
        raise InputError(f"{folder} holds {len(paths)} pictures; wanted at least two to compare")
    return [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths
