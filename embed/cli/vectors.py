"""`python -m embed adopt`, `merge` and `refresh`: make caches from existing vectors, without reading pictures."""

from pathlib import Path

from embed.cli.console import progress, suggest, table, warn
from embed.config import AdoptConfig, DeviceConfig
from embed.files import require_kind
from embed.wording import NOUN


def adopt(source: str, /, *, identity: Path, out: Path, config: AdoptConfig) -> dict[str, object]:
    """Make a cache of vectors that you already have.

    They are in a folder as clip-retrieval writes it, or in a table with a column of lists beside the names of pictures
    in the column image or image_path, or prompts in the column prompt or caption.

    Example:
        plaudit embed adopt clip_folder --identity identity.json --out cache

    Args:
        source: The folder, or a table or a pattern of its shards.
        identity: A JSON file that says which model made the vectors: model, weights and dim, and, if you know them,
            preprocess, activation, tokenizer and context_length. Only vectors with the same values can be compared. Or
            the manifest of a cache or bundle that has the same backbone.
        out: The folder of the cache. An existing cache grows.
    """
    from dataclasses import asdict

    from embed.cache.store import Cache
    from embed.jobs.adopt import adopt_vectors, read_identity

    counts = adopt_vectors(source, *read_identity(identity), out, config, progress)
    cache = Cache.open(out)
    header = ["", "linked", "written", "known", "refused", "in the cache"]
    numbers = {str(side): {**asdict(found), "in_cache": cache.count(side)} for side, found in counts.items()}
    rows = [[NOUN[side], *(f"{number:,}" for number in row.values())] for side, row in numbers.items()]
    print(*table(header, rows), sep="\n")
    if failed := sum(row["failed"] for row in numbers.values()):
        warn(f"{failed:,} vectors were refused; run `plaudit embed inspect {out}` to see which and why")
    suggest(["embed", "inspect", out], ["heads", "train", out, "--data", "TABLE", "--out", out.with_name("head")])
    return {"cache": str(out), **numbers}


def merge(caches: tuple[Path, ...], /, *, out: Path) -> dict[str, object]:
    """Join several caches into one.

    Example:
        plaudit embed merge part_1 part_2 --out cache

    Args:
        caches: Folders made by `python -m embed cache`, all with one backbone.
        out: The folder of the cache. An existing cache grows.
    """
    from embed.jobs.merge import merge_caches

    result = merge_caches(caches, out, progress)
    print(f"{out}: {result['images']:,} pictures, {result['prompts']:,} prompts")
    suggest(["heads", "train", out, "--data", "TABLE", "--out", out.with_name("head")])
    return result


def refresh(cache: Path, /, *, tuned: Path, out: Path, device: DeviceConfig) -> dict[str, object]:
    """Compute a cache's vectors again with a tuned backbone, without reading pictures.

    Example:
        plaudit embed refresh cache --tuned tuned --out tuned_cache

    Args:
        cache: A folder made by `python -m embed cache --boundary`.
        tuned: A folder made by `python -m heads unfreeze`.
        out: The folder to write the new cache to.
    """
    require_kind(cache, "cache")
    require_kind(tuned, "tuned backbone")
    from embed.devices import resolve_device
    from embed.unfreeze.refresh import refresh_cache

    result = refresh_cache(cache, tuned, out, resolve_device(device.device), progress)
    print(f"{out}: {result['images']:,} pictures, {result['prompts']:,} prompts")
    suggest(["heads", "train", out, "--data", "TABLE", "--out", out.with_name("head")])
    return result
