"""The pictures of a report, small enough to lie in its page.

They come from the table that was measured, through the safe decoder; one that cannot be read leaves a grey tile.
"""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from PIL import Image

from embed.cache.store import Cache
from embed.inputs.fetch import read_bytes
from embed.inputs.images import ImageError, load_image
from embed.records.formats import Records
from embed.spec import InputError
from heads.report.page import data_uri

SIZE = 192  # pixels


def read_tiles(records: Records, cache: Cache, wanted: set[int]) -> dict[int, str]:
    """The pictures of some rows of the cache, as sources of <img>; grey where one cannot be read."""
    tiles: dict[int, str] = {}
    for row, data in _pictures(records, cache, wanted):
        with suppress(ImageError):
            tiles[row] = data_uri(load_image(data), SIZE)
    grey = data_uri(Image.new("RGB", (8, 8), (160, 160, 160)), 8)
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
