"""What `--out` may name, checked before the work, and artifacts that take the place of older ones whole or not at all.

Beside OUT, `.OUT.tmp` is what is being written. When it is complete it and OUT change places in one step, so that a
process that is killed leaves the old one or the new. A file system that cannot do so renames OUT to `.OUT.old` before,
and who is killed between these steps leaves it there, for the next one that writes to put back.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embed.files import sync_folder, temporary_name
from embed.spec import InputError

# What the folder of each kind of artifact has. Of two that fit, the first is meant.
MARKS = {
    "head": "head.json",
    "bundle": "bundle.json",
    "tuned backbone": "tuned.json",
    "sweep": "sweep.json",
    "job of scores": "job.json",
    "catalogue": f"v{'[0-9]' * 6}",
    "cache": "manifest.json",
    "Triton repository": "*/config.pbtxt",
}
GROWING = ("job of scores", "catalogue", "cache")  # are written in their place, and others in a folder beside it
# Files of ours that lie in a folder before anything that counts.
LEFTOVERS = {".lock", *(temporary_name(Path(name)).name for name in MARKS.values() if name.endswith(".json"))}


def require_out(out: Path, kind: str, overwrite: bool) -> None:
    """Raise InputError unless an artifact of this kind can be written to the folder `out`.

    It must be new, empty, or such an artifact that may be overwritten, or added to.
    """
    place = out.resolve()
    if not place.exists() and _old(place).exists():
        _old(place).rename(place)
    if place.exists() and not place.is_dir():
        raise InputError(f"{out} is a file; wanted a folder to write a {kind} to, so choose another --out")
    found = _kind_of(place) if place.exists() else None
    if found is None and place.exists() and (others := sorted(set(os.listdir(place)) - LEFTOVERS)):
        raise InputError(f"{out} is not a {kind} and not empty (it has {others[0]}); choose another --out")
    if found not in (kind, None):
        raise InputError(f"{out} is a {found}, not a {kind}; choose another --out")
    if found and not overwrite:
        raise InputError(f"{out} is a {kind} already; say --overwrite to replace it, or choose another --out")
    if kind not in GROWING and (Path.cwd().is_relative_to(place) or place.is_mount()):
        raise InputError(f"{out} is a mount, or the folder you are in, and cannot be replaced; choose a folder in it")
    _require_writable(place if kind in GROWING else place.parent, out)


def require_out_file(out: Path, option: str, overwrite: bool = True) -> None:
    """Raise InputError unless a file can be written to `out`, which `option` named."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; wanted a file for {option}")
    if out.exists() and not overwrite:
        raise InputError(f"{out} is there already; say --overwrite to replace it, or choose another {option}")
    _require_writable(out.resolve().parent, out)


def _require_writable(place: Path, out: Path) -> None:
    """Raise InputError unless this process may make files in a folder, or in the nearest one above that exists."""
    above = next(folder for folder in (place, *place.parents) if folder.exists())
    if not above.is_dir():
        raise InputError(f"{out} cannot be written, because {above} is a file; choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{out} cannot be written: no permission to write in {above}")


def _kind_of(folder: Path) -> str | None:
    return next((kind for kind, mark in MARKS.items() if any(folder.glob(mark))), None)


@contextmanager
def replacing(out: Path, kind: str, overwrite: bool = False) -> Iterator[Path]:
    """A new folder that becomes `out`, in place of any there, when the block ends, and is removed when it fails.

    Raise InputError as `require_out` does. One process at a time writes a folder.
    """
    require_out(out, kind, overwrite)
    out = out.resolve()
    folder = temporary_name(out)
    for left in (folder, _old(out)):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        for path in folder.rglob("*"):
            sync_folder(path)  # files too
        if not (out.exists() and _exchanged(folder, out)):
            if out.exists():
                out.rename(_old(out))
            folder.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not out.exists() and _old(out).exists():
            _old(out).rename(out)
    shutil.rmtree(_old(out), ignore_errors=True)


def _exchanged(first: Path, second: Path) -> bool:
    """Give each of two folders the other's name in one step, which Linux can, on most file systems."""
    import ctypes

    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")
