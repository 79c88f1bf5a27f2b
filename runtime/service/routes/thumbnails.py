"""Small versions of the catalogue's pictures, for pages that show hits.

Only pictures of the catalogue are shown. A file is read from the place that the catalogue knows, and refused if its
content is no longer the picture that was embedded. It is decoded in a decoder process like all pictures, and sent as a
new file. Knows no route.
"""

import asyncio
import re
from collections import OrderedDict
from enum import IntEnum
from functools import partial

from embed.files import content_id
from embed.inputs.decoding import Decoders
from embed.inputs.fetch import read_bytes
from embed.inputs.images import ImageError
from embed.spec import InputError
from embed.wording import one_line
from runtime.catalogue.reader import Catalogue
from runtime.config import MIB
from runtime.service.answering.engine import Engine
from runtime.service.network.fetching import Fetcher
from runtime.service.network.turns import Job

KEPT_BYTES = 64 * MIB
TYPICAL_BYTES = MIB  # assumed size of a file, which is not read before its turn


class ThumbnailSize(IntEnum):
    """The longer side in pixels."""

    tiny = 64
    small = 128
    medium = 256
    large = 512
    full = 2048


class Kept:
    """A cache of the most recently requested pictures."""

    def __init__(self) -> None:
        self._bytes = 0
        self._found: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def get(self, key: tuple[str, int]) -> bytes | None:
        """The picture with this id and size, or None if it is not kept."""
        if key in self._found:
            self._found.move_to_end(key)
        return self._found.get(key)

    def keep(self, key: tuple[str, int], data: bytes) -> None:
        """Keep a picture, and drop the oldest ones if there is no room."""
        if key in self._found:  # another request has made it meanwhile
            return
        self._found[key] = data
        self._bytes += len(data)
        while self._bytes > KEPT_BYTES:
            self._bytes -= len(self._found.popitem(last=False)[1])


class Thumbnails:
    """Thumbnails of the current catalogue. The most recently requested ones are kept."""

    def __init__(self, decoders: Decoders, fetcher: Fetcher, images_root: str | None, max_bytes: int) -> None:
        """The names of pictures are relative to `images_root`, or by default to the place that the catalogue knows."""
        self._decoders = decoders
        self._fetcher = fetcher
        self._images_root = images_root
        self._max_bytes = max_bytes
        self._catalogue: Catalogue | None = None  # the catalogue of the kept thumbnails
        self._kept = Kept()

    async def get(self, engine: Engine, job: Job, image_id: str, size: int) -> bytes | None:
        """A WebP with at most `size` pixels on a side, or None if the catalogue has no such picture.

        Raise ImageError if the picture cannot be shown.
        """
        assert engine.catalogue is not None
        if self._catalogue is not engine.catalogue:
            self._catalogue, self._kept = engine.catalogue, Kept()
        if (kept := self._kept.get((image_id, size))) is not None:
            return kept
        addresses = await engine.search(partial(self._addresses, engine.catalogue, image_id))
        if addresses is None:
            return None
        async with self._fetcher.slots:  # held until it is decoded, since its memory was not reserved
            data = await self._read(addresses, image_id)
            async with engine.turns.turn(job):
                found = await engine.decoded(self._decoders.thumbnail(data, int(size)))
        if isinstance(found, ImageError):
            raise found
        if self._catalogue is engine.catalogue:  # the catalogue may have been replaced meanwhile
            self._kept.keep((image_id, size), found)
        return found

    def _addresses(self, catalogue: Catalogue, image_id: str) -> list[str] | None:
        key = catalogue.key_of(image_id)
        return None if key is None else catalogue.addresses([key], self._images_root)[0]

    async def _read(self, addresses: list[str], image_id: str) -> bytes:
        """The picture's bytes from the first address that has them. Raise the first address's ImageError if none
        has."""
        refused = []
        for address in addresses:
            try:
                data = await self._bytes_at(address)
            except ImageError as error:
                refused.append(error)
            except FileNotFoundError as error:
                refused.append(ImageError("read", "no such file", one_line(error)))
            except (OSError, InputError) as error:
                refused.append(ImageError("read", "unreadable", one_line(error)))
            else:
                if content_id(data) == image_id:
                    return data
                refused.append(ImageError("read", "changed since it was embedded", address))
        raise refused[0]

    async def _bytes_at(self, address: str) -> bytes:
        """The bytes at an address. URLs must be on the list of hosts, since a catalogue's table may come from
        strangers."""
        if re.match("https?://", address, re.IGNORECASE):
            return await self._fetcher.fetch(address)
        return await asyncio.to_thread(read_bytes, address, self._max_bytes)
