"""Vectors that were made elsewhere, in files that a cache links instead of copying them, and what is known of them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from embed.files import sha256_file, sync_folder
from embed.spec import InputError


class Adopted(TypedDict):
    """Where a shard's vectors were made: the file, its state when it was read, and its row that came first.

    If the shard is that file itself, linked and not copied, it has to stay as it was.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    start: int
    linked: bool


def link(file: Path, name: Path) -> None:
    """Give a file a second name, or where that cannot be, one that points to it."""
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    try:
        os.link(file.resolve(), name)
    except OSError:  # another file system or owner
        name.symlink_to(file.resolve())
    sync_folder(name.parent)


def require_unchanged(cache: Path, adopted: Mapping[str, Adopted], hashes: Mapping[str, str]) -> None:
    """Raise InputError if a file that a cache links is gone, or has other vectors by now.

    Of one whose time of change is another, as it is in a copy of the cache, the hash decides.
    """
    for name, entry in adopted.items():
        if not entry["linked"]:
            continue
        file, lies = cache / name, f"{cache} uses the vectors of {entry['path']} where they lie, and that file"
        if not file.exists():
            raise InputError(f"{lies} is gone; put it back, or adopt it anew into another folder")
        stat = file.stat()
        known = (stat.st_size, stat.st_mtime_ns) == (entry["size_bytes"], entry["mtime_ns"])
        if not known and sha256_file(file) != hashes[name]:
            raise InputError(f"{lies} has changed; adopt it anew into another folder, with --copy if it often does")
