"""Vectors that other tools made, in files that a cache links and does not copy, and what is recorded about them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from embed.files import sha256_file, sync_folder
from embed.spec import InputError


class Adopted(TypedDict):
    """Where a shard's vectors came from: the file, its size and time when it was read, and the first row that we took.

    If the cache links the file itself, the file must not change.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    start: int
    linked: bool


def link(file: Path, name: Path) -> None:
    """Make a hard link `name` to a file, or a symbolic link if that is not possible."""
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    try:
        os.link(file.resolve(), name)
    except OSError:  # another file system or owner
        name.symlink_to(file.resolve())
    sync_folder(name.parent)


def require_unchanged(cache: Path, adopted: Mapping[str, Adopted], hashes: Mapping[str, str]) -> None:
    """Raise InputError if a file that a cache links is gone or has changed.

    If only its modification time differs, as in a copy of the cache, the hash decides.
    """
    for name, entry in adopted.items():
        if not entry["linked"]:
            continue
        file, lies = cache / name, f"{cache} links to the vectors in {entry['path']}, and that file"
        if not file.exists():
            raise InputError(f"{lies} is gone; put it back, or adopt it again into another folder")
        stat = file.stat()
        known = (stat.st_size, stat.st_mtime_ns) == (entry["size_bytes"], entry["mtime_ns"])
        if not known and sha256_file(file) != hashes[name]:
            raise InputError(f"{lies} has changed; adopt it again into another folder, with --copy if it often changes")
