"""The pictures of a report, small enough to lie in its page.

They come from the table that was measured, or else from where the cache read them.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from embed.cache.store import Cache
from embed.inputs.fetch import read_bytes
from embed.inputs.thumbnails import SIZE, data_uri, shrunk, thumbnail, thumbnail_at
from embed.records.formats import Records
from embed.spec import InputError

FULL = 640  # pixels of a picture that opens in full


@dataclass(frozen=True)
class Tile:
    """A picture in two sizes, as sources of <img>: to look over, and to look at."""

    small: str
    full: str


def tile(image: Image.Image) -> Tile:
    """Both sizes of a picture; one that is small has one."""
    full = data_uri(shrunk(image, FULL))
    return Tile(data_uri(shrunk(image.copy(), SIZE)) if max(image.size) > SIZE else full, full)


def read_tiles(records: Records, cache: Cache, wanted: set[int]) -> dict[int, Tile]:
    """The pictures of some rows of the cache, without those that cannot be read."""
    found = {row: tile(image) for row, image in _from_table(records, cache, wanted)}
    places = cache.places()
    for row in wanted - found.keys():
        if places[row].is_valid and (image := thumbnail_at([places[row].as_py()], FULL)):
            found[row] = tile(image)
    return found


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
                    yield row, thumbnail(data or read_bytes(uri), FULL)
        if not left:
            return
