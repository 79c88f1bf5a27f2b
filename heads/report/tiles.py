"""The pictures of a report, small enough to be embedded in its page.

They are read through the measured table, or from where the cache read them.
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

FULL = 640  # longest side in pixels of a picture that is opened


@dataclass(frozen=True)
class Tile:
    """A picture in two sizes, as sources of <img>: small for the overview, and large to open."""

    small: str
    full: str


def tile(image: Image.Image) -> Tile:
    """Both sizes of a picture. A small picture has only one."""
    full = data_uri(shrunk(image, FULL))
    return Tile(data_uri(shrunk(image.copy(), SIZE)) if max(image.size) > SIZE else full, full)


def read_tiles(records: Records, cache: Cache, wanted: set[int]) -> dict[int, Tile]:
    """The tiles of the wanted rows of the cache, without pictures that cannot be read."""
    found = {row: tile(image) for row, image in _from_table(records, cache, wanted)}
    places = cache.places()
    for row in wanted - found.keys():
        if places[row].is_valid and (image := thumbnail_at([places[row].as_py()], FULL)):
            found[row] = tile(image)
    return found


def _from_table(records: Records, cache: Cache, wanted: set[int]) -> Iterator[tuple[int, Image.Image]]:
    """Yield the cache row and the picture of each wanted picture that the table names."""
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
