"""`python -m embed merge`."""

from pathlib import Path

from embed.cli.console import progress


def merge(caches: tuple[Path, ...], /, *, out: Path) -> dict[str, object]:
    """Make one cache of several.

    Args:
        caches: Folders made by `python -m embed cache`, all with one backbone.
        out: The cache to write to, a new one or one to add to.
    """
    from embed.jobs.merge import merge_caches

    result = merge_caches(caches, out, progress)
    print(f"{out}: {result['images']:,} pictures, {result['prompts']:,} prompts")
    return result
