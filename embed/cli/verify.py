"""`python -m embed verify`."""

from pathlib import Path
from typing import Annotated

from embed.cli.console import progress
from embed.config import Limits, MinCosine, PicturesConfig, Wanted
from embed.options import Range
from embed.wording import NOUN


def verify(
    cache: Path,
    tables: tuple[str, ...] = (),
    /,
    *,
    reading: PicturesConfig,
    sample: Annotated[int, Range(1)] = 64,
    min_cosine: MinCosine = Wanted.min_cosine,
) -> dict[str, object]:
    """Check a cache's files, and embed a sample of its inputs again.

    Example:
        plaudit embed verify cache likes.csv --images-root pictures

    Args:
        cache: A folder made by `python -m embed cache`.
        tables: The tables that its pictures come from. They are needed to embed a sample of pictures again.
        sample: How many pictures, and how many prompts, are embedded again.
        min_cosine: The lowest cosine allowed between a stored vector and its new one, which is computed in fp32.
    """
    from embed.cache.store import Cache
    from embed.engines.machine import machine_cache
    from embed.engines.towers import Towers
    from embed.jobs.verify import verify_cache
    from embed.records.formats import read_records

    opened = Cache.open(cache)
    records = [read_records(table, reading.format, reading.images_root, reading.columns) for table in tables]
    root = reading.machine_cache or machine_cache()
    towers = None
    if not opened.source.is_adopted:
        towers = Towers(opened.source, root, ["projected"], opened.identity.preprocess.ignore_exif)
    result = verify_cache(opened, records, towers, Limits(), size=sample, min_cosine=min_cosine, progress=progress)
    print(f"{result['files']} files are unchanged since they were written")
    for side, noun in NOUN.items():
        compared, least = result[side]["compared"], result[side]["cosine_min"]
        if compared:
            print(f"{compared} {noun} embedded again: cosine to the stored vectors at least {least:.6f}")
    if towers is None:
        print("nothing was embedded again: the vectors were adopted, so their backbone is not known here")
    elif opened.count("images") and not result["images"]["compared"]:
        wanted = "check --images-root" if tables else "name the tables that they come from"
        print(f"no pictures were compared, because none was found; {wanted}")
    return result
