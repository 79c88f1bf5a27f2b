"""`python -m embed inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING

from embed.cli.console import table
from embed.spec import UNKNOWN
from embed.wording import NOUN

if TYPE_CHECKING:
    from embed.cache.store import DecodingEntry


def inspect(cache: Path, /) -> dict[str, object]:
    """Show what a cache holds and which inputs failed.

    Example:
        plaudit embed inspect cache

    Args:
        cache: A folder made by `python -m embed cache`.
    """
    from embed.cache.store import Cache
    from embed.jobs.verify import inspect_cache

    result = inspect_cache(Cache.open(cache))
    identity = dict(result["identity"])
    identity |= identity.pop("preprocess") or {"preprocess": UNKNOWN}
    lines = [f"{name:15} {value}" for name, value in identity.items()]
    lines += [f"{'made by':15} {NOUN[side]}: {engine}" for side, engine in result["engines"]]
    lines += [f"{'decoding':15} {_decoding(entry)}" for entry in result["decoding"]]
    lines += [f"{name:15} {result[name]:,}" for name in ("images", "names", "prompts", "failures")]
    lines += [f"{'adopted from':15} {path}" for path in sorted({one["path"] for one in result["adopted"].values()})]
    for name, entry in result["boundary"].items():
        least = (entry.get("certificate") or {}).get("cosine_min", 1.0)
        lines.append(f"{'boundary':15} {name}: cosine of the resulting vectors to fp32 at least {least:.6f}")
    if result["failures"]:
        rows = [(f"{row['stage']}: {row['reason']}", f"{row['count']:,}", row["example"]) for row in result["reasons"]]
        lines += ["", *table(["failed", "pictures", "such as"], rows)]
    print(*lines, sep="\n")
    return result


def _decoding(entry: "DecodingEntry") -> str:
    proof = f"cosine to exact at least {entry['cosine_min']:.6f} on {entry['rows']}"
    if "decoder" in entry:
        return f"{entry['pictures']:,} JPEGs on a device by {entry.get('library', 'torchvision')}: {proof}"
    if entry["scale"] is None:
        return "exact from here on"
    return f"{entry['pictures']:,} large pictures at {entry['scale']} times the size wanted: {proof}"
