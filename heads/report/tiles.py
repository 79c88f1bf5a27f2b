"""The pictures of a report, small enough to lie in its page.

They come from the table that was measured, or else from where the cache read them.
"""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from PIL import Image

from embed.cache.store import Cache
from embed.inputs.fetch import read_bytes
from embed.inputs.thumbnails import data_uri, thumbnail, thumbnail_at
from embed.records.formats import Records
from embed.spec import InputError


def read_tiles(records: Records, cache: Cache, wanted: set[int]) -> dict[int, str]:
    """The pictures of some rows of the cache, as sources of <img>, without those that cannot be read."""
    found = dict(_from_table(records, cache, wanted))
    places = cache.places()
    for row in wanted - found.keys():
        if places[row].is_valid and (image := thumbnail_at([places[row].as_py()])):
            found[row] = image
    return {row: data_uri(image) for row, image in found.items()}


def _from_table(records: Records, cache: Cache, wanted: set[int]) -> Iterator[tuple[int, Image.Image]]:
    """The row in the cache and the picture of each that is wanted and that the table leads to."""
    left = set(wanted)
    for batch in records.images():
        rows = cache.image_rows(batch["key"], records.place)
        for i in np.flatnonzero(np.isin(rows, list(left))):
            row, data, uri = int(rows[i]), batch["bytes"][int(i)].as_py(), batch["uri"][int(i)].as_py()
            if row in left and (data or uri):
                left.discard(row)
                with suppress(InputError, OSError):
                    yield row, thumbnail(data or read_bytes(uri))
        if not left:
            return
