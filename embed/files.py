"""Write files and folders completely or not at all: under a temporary name, synced, and renamed when complete.

`require_out` checks `--out` before the work begins, and `replacing` puts an artifact in the place of an older one. What
is being written to OUT is in `.OUT.tmp` beside it. When it is complete, the two folders exchange their names in one
step, so that a process that is killed leaves either the old one or the new one. If the file system cannot do that, OUT
is first renamed to `.OUT.old`. A process that is killed between these two steps leaves it there, and the next one that
writes to OUT puts it back. Only one process at a time may write a folder.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from embed.spec import InputError

Manifest = TypeVar("Manifest", bound=Mapping[str, object])

# The file or folder by which each kind of artifact is recognised. If several match, the first one counts.
MARKS = {
    "head": "head.json",
    "bundle": "bundle.json",
    "tuned backbone": "tuned.json",
    "sweep": "sweep.json",
    "tuned generator": "tuning.json",
    "job of scores": "job.json",
    "catalogue": f"v{'[0-9]' * 6}",
    "cache": "manifest.json",
    "pipeline": "model_index.json",
    "folder of generated pictures": "generated.json",
    "Triton repository": "*/config.pbtxt",
}
# The files that a folder to be replaced may hold. A Triton repository may hold one model and its parts.
HOLDS = {
    "head": ("head.json", "head.safetensors", "folds.safetensors", "trained.parquet"),
    "bundle": ("bundle.json", "*.onnx", "weights.bin", "tokenizer.json", "reference.npz", "README.md"),
    "tuned backbone": ("tuned.json", "delta.safetensors", "head"),
    "sweep": ("sweep.json", "best.json"),
    "tuned generator": (
        *("tuning.json", "pytorch_lora_weights.safetensors", "unet", "transformer", "report.html", "README.md"),
    ),
    "pipeline": ("model_index.json", "unet", "scheduler"),
    "Triton repository": (),
}
GROWING = (
    "job of scores",
    "catalogue",
    "cache",
    "folder of generated pictures",
)  # these are written in place, and all others in a folder beside their place
# Files of ours that may be in a folder before it holds an artifact.
LEFTOVERS = {".lock", *(f".{name}.tmp" for name in MARKS.values() if name.endswith(".json"))}


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears at `path` when the block ends. If the block fails, no file appears."""
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
            # If the disk is full, numpy and Arrow do not name the file, and numpy does not even name the cause.
            code = error.errno or errno.ENOSPC
            raise OSError(code, os.strerror(code), str(path)) from error
        raise
    sync_folder(path.parent)


def temporary_name(path: Path) -> Path:
    """Return where `atomic_write` writes the file that will become `path`. A killed process leaves it behind."""
    return path.with_name(f".{path.name}.tmp")


def write_with(path: Path, writer: Callable[[BinaryIO], object]) -> None:
    """Do the same as `atomic_write`, for a function that writes to an open file."""
    with atomic_write(path) as file:
        writer(file)


def sync_folder(path: Path) -> None:
    """Make the renames inside a folder durable on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Create the folder `path` and hold its lock until the block ends or the process dies.

    Raise InputError if another process holds it.
    """
    import fcntl  # here because Windows lacks it, and reading should work there

    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another job is writing {path}; wait for it, or choose another --out") from None
        yield


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Write sorted, indented JSON with a newline at the end, so that equal data gives equal bytes."""
    text = json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def read_lines(path: Path, what: str) -> list[str]:
    """Return the lines of a UTF-8 text that are not empty, without spaces at both ends.

    `what` says what a line holds, such as "prompt". Raise InputError if the file is not UTF-8 or has no such line.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a UTF-8 text (byte {error.start}); save it as UTF-8") from None
    found = [line for line in lines if line]
    if not found:
        raise InputError(f"{path} holds no {what}; wanted one a line")
    return found


def read_manifest(path: Path, what: str, formats: tuple[int, ...], kind: type[Manifest]) -> Manifest:
    """Read the JSON object at `path`, a manifest. Raise InputError if it is missing, damaged or of an unknown format.

    `what` names the kind of artifact for the message, such as "cache" or "bundle". `kind` is the TypedDict of the
    manifest; its required keys must be there.
    """
    _require_manifest(path, what)
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


def require_kind(folder: str | Path, what: str) -> None:
    """Raise InputError unless a folder has the manifest of a "head", a "cache" or a "tuned backbone".

    Commands call this before they import torch, so that a wrong path is told at once.
    """
    _require_manifest(Path(folder) / MARKS[what], what)


def _require_manifest(path: Path, what: str) -> None:
    folder = path.parent
    if path.is_file():
        return
    found = _kind_of(folder) if folder.is_dir() else None
    if found not in (None, what):
        exports = f"; `plaudit export onnx {folder} --out BUNDLE` makes one" if found == "head" else ""
        raise InputError(f"{folder} is a {found}, not a {what}{exports if what == 'bundle' else ''}")
    raise InputError(f"{folder} is not a {what}: it has no {path.name}")


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_id(data: bytes) -> str:
    """Return the id of a picture's or prompt's bytes: the first 128 bits of their SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()[:32]


def require_out(out: Path, kind: str, overwrite: bool) -> None:
    """Raise InputError unless an artifact of this kind can be written to the folder `out`.

    It must be new or empty, or hold such an artifact that may be replaced or that grows.
    """
    place = Path(os.path.realpath(out))
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
    if found and kind not in GROWING and (others := _foreign(place, kind)):
        raise InputError(f"{out} is a {kind} that also holds {others[0]}, which would be lost; choose another --out")
    if kind not in GROWING and (Path.cwd().is_relative_to(place) or place.is_mount()):
        raise InputError(f"{out} is a mount or the current folder and cannot be replaced; choose a folder inside it")
    _require_writable(place if kind in GROWING else place.parent, out)


def require_out_file(out: Path, option: str, overwrite: bool = True) -> None:
    """Raise InputError unless a file can be written to `out`, the value of `option`."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; wanted a file for {option}")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists already; say --overwrite to replace it, or choose another {option}")
    _require_writable(Path(os.path.realpath(out)).parent, out)


def _require_writable(place: Path, out: Path) -> None:
    """Raise InputError unless this process may create files in a folder, or in its nearest parent that exists."""
    above = next(folder for folder in (place, *place.parents) if folder.exists())
    if not above.is_dir():
        raise InputError(f"{out} cannot be written, because {above} is a file; choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{out} cannot be written: no permission to write in {above}")


def _kind_of(folder: Path) -> str | None:
    return next((kind for kind, mark in MARKS.items() if any(folder.glob(mark))), None)


def _foreign(folder: Path, kind: str) -> list[str]:
    """Return the files in an artifact's folder that do not belong to it."""
    names = sorted(set(os.listdir(folder)) - LEFTOVERS)
    model = min(names, key=len)
    own = HOLDS[kind] or (model, *(f"{model}_{part}" for part in ("image", "text", "head")))
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in own)]


@contextmanager
def replacing(out: Path, kind: str, overwrite: bool = False) -> Iterator[Path]:
    """Give a new folder that replaces `out` when the block ends, or is removed if the block fails.

    Raise InputError as `require_out` does. Only one process at a time may write a folder.
    """
    require_out(out, kind, overwrite)
    out = Path(os.path.realpath(out))
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
    """Exchange the names of two folders in one step, and return whether that worked (on Linux it mostly does)."""
    import ctypes

    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")
