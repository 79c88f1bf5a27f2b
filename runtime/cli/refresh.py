"""`python -m runtime refresh`, also `index refresh`."""

from functools import partial
from pathlib import Path
from typing import Annotated

from embed.addresses import places_below
from embed.cli.console import progress
from embed.options import Option
from embed.spec import InputError
from runtime.cli.popularity import CountOptions, folder_of, read_popularity, report
from runtime.config import PopularityConfig


def refresh(
    catalogue: Path,
    /,
    *,
    popularity: str | None = None,
    reading: CountOptions,
    popularity_config: partial[PopularityConfig],
    cache: Path | None = None,
    delete: Annotated[tuple[str, ...], Option(many=True)] = (),
) -> dict[str, object]:
    """Give a catalogue new counts, pictures or deletions.

    Example:
        plaudit runtime refresh catalogue --popularity today.csv

    Args:
        catalogue: A folder made by `python -m runtime index`.
        popularity: A table of new counts with the columns that `index` reads, or predicted:BUNDLE
            or predicted:BUNDLE#OUTPUT.
        cache: The cache with the vectors of new pictures.
        delete: Pictures to remove from the catalogue.
    """
    from embed.cache.store import Cache
    from runtime.catalogue import writer
    from runtime.catalogue.reader import Catalogue

    if not (popularity or delete or cache):
        raise InputError("there is nothing to do; give --popularity TABLE, --cache CACHE or --delete PICTURE")
    old = Catalogue.open(catalogue)
    before = PopularityConfig(**old.manifest["popularity"])
    table, config, predict = read_popularity(popularity, reading, old.identity, popularity_config, before)
    pictures = Cache.open(cache) if cache else None
    place = places_below(folder_of(popularity))
    return report(*writer.refresh(catalogue, table, pictures, config, delete, predict, progress, place))
