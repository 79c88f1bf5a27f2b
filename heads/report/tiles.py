"""The pictures of a report, small enough to lie in its page.

They come from the table that was measured; one that cannot be read leaves a grey tile.
"""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from embed.cache.store import Cache
from embed.inputs.fetch import read_bytes
from embed.inputs.thumbnails import data_uri, thumbnail
from embed.records.formats import Records
from embed.spec import InputError


def read_tiles(records: Records, cache: Cache, wanted: set[int]) -> dict[int, str]:
    """The pictures of some rows of the cache, as sources of <img>; grey where one cannot be read."""
    tiles = {row: data_uri(thumbnail(data)) for row, data in _pictures(records, cache, wanted)}
    grey = data_uri(thumbnail(b""))
    return {row: tiles.get(row, grey) for row in wanted}


def _pictures(records: Records, cache: Cache, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """The row in the cache and the bytes of each picture wanted that the table leads to."""
    left = set(wanted)
    for batch in records.images():
        rows = cache.image_rows(batch["key"])
        for i in np.flatnonzero(np.isin(rows, list(left))):
            row, data, uri = int(rows[i]), batch["bytes"][int(i)].as_py(), batch["uri"][int(i)].as_py()
            if row in left and (data or uri):
                left.discard(row)
                with suppress(InputError, OSError):
                    yield row, data or read_bytes(uri)
        if not left:
            return
