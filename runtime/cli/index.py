"""`python -m runtime index`."""

from functools import partial
from pathlib import Path

from embed.addresses import places_below
from embed.cli.console import progress
from embed.config import Overwriting
from embed.spec import InputError, require_same_identity
from runtime.cli.popularity import PREDICTED, CountOptions, folder_of, read_popularity, report
from runtime.config import IndexConfig, PopularityConfig


def index(
    cache: Path,
    /,
    *,
    out: Path,
    overwriting: Overwriting,
    bundle: Path | None = None,
    popularity: str | None = None,
    predicted: str | None = None,
    reading: CountOptions,
    popularity_config: partial[PopularityConfig],
    images_root: str | None = None,
    index_config: IndexConfig,
) -> dict[str, object]:
    """Make a catalogue of a cache's pictures and their popularity.

    Example:
        plaudit runtime index cache --popularity a.csv --bundle bundle --out catalogue

    Args:
        cache: A folder made by `python -m embed cache`.
        out: The folder to write the catalogue to.
        bundle: The bundle that encodes the catalogue's queries.
        popularity: A table, or a pattern of its shards, with the columns image and count. It may also have exposures,
            timestamp, prompt and other columns to filter by.
        predicted: A bundle whose head predicts the popularity of all pictures, if there are no counts. BUNDLE#OUTPUT
            chooses another of its outputs. The same as --popularity predicted:BUNDLE.
        images_root: The folder or URL where the names of pictures start. By default the table's own folder.
    """
    from embed.cache.store import Cache
    from runtime.catalogue.writer import build, require_place

    if (popularity is None) == (predicted is None):
        raise InputError(
            "give either --popularity TABLE or --predicted BUNDLE; for pictures that lack a count in the"
            " table give --missing predicted:BUNDLE"
        )
    source = popularity if predicted is None else f"{PREDICTED}{predicted}"
    require_place(out, overwriting.overwrite)
    opened = Cache.open(cache)
    if bundle:
        from runtime.scoring.bundle import open_bundle

        encoder = open_bundle(bundle)
        encoder.require_towers()
        identity = encoder.identity
        require_same_identity(opened.identity, f"the cache {cache}", identity, f"the bundle {bundle}")
    table, config, predict = read_popularity(source, reading, opened.identity, popularity_config, PopularityConfig())
    root, queries = images_root or folder_of(source), opened.text_embeddings()
    options = (table, config, index_config, root, bundle, predict, queries, progress, overwriting.overwrite)
    return report(*build(out, opened, *options, places_below(root)))
