"""Pictures that people compare, for the page: read from their owner's place, and encoded again.

Only candidates of a database of votes are given out, and never the original files. Knows no route.
"""

import asyncio
import re
from typing import NamedTuple

from starlette.requests import Request

from embed.inputs.decoding import Decoders, View
from embed.inputs.fetch import read_bytes
from embed.inputs.images import ImageError
from embed.spec import InputError
from embed.wording import one_line
from runtime.collect.candidates import Candidate
from runtime.service.answering.engine import Engine
from runtime.service.answering.state import Service
from runtime.service.network.turns import Job
from runtime.service.routes.thumbnails import TYPICAL_BYTES, Kept

SIZES = (128, 256, 512, 1024)
FULL = 4096  # longest side in pixels; larger pictures are made smaller
FIRST = 512  # size made of a picture before its pair is shown, to check that it can be


class Size(NamedTuple):
    """The original width and height of a picture."""

    width: int
    height: int


class Views:
    """Views of candidates. The most recent ones are kept."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._decoders: Decoders = service.decoders
        self._kept = Kept()
        self._sizes: dict[str, Size] = {}

    async def get(self, request: Request, one: Candidate, size: int) -> bytes:
        """A WebP with at most about `size` pixels on a side. Raise ImageError if the picture cannot be shown."""
        size = next((known for known in SIZES if size <= known), FULL)
        if (kept := self._kept.get((one.id, size))) is not None:
            return kept
        async with self._service.work(request, 1, TYPICAL_BYTES) as (engine, job):
            return (await self._made(engine, job, one, size)).data

    async def sizes(self, request: Request, some: list[Candidate]) -> dict[str, Size | ImageError]:
        """The sizes of pictures by id, or an error for one that cannot be shown. All others are then ready to be
        shown."""
        new = [one for one in some if one.id not in self._sizes or self._kept.get((one.id, FIRST)) is None]
        found: dict[str, Size | ImageError] = {one.id: self._sizes[one.id] for one in some if one not in new}
        if new:
            async with self._service.work(request, len(new), len(new) * TYPICAL_BYTES) as (engine, job):
                made = await asyncio.gather(*(self._attempted(engine, job, one) for one in new))
            found |= dict(zip([one.id for one in new], made, strict=True))
        return found

    async def _attempted(self, engine: Engine, job: Job, one: Candidate) -> Size | ImageError:
        try:
            return Size(*(await self._made(engine, job, one, FIRST))[1:])
        except ImageError as error:
            return error

    async def _made(self, engine: Engine, job: Job, one: Candidate, size: int) -> View:
        async with self._service.fetcher.slots:  # held until it is decoded, since its memory was not reserved
            data = await self.read(one)
            async with engine.turns.turn(job):
                found = await engine.decoded(self._decoders.view(data, size))
        if isinstance(found, ImageError):
            raise found
        self._kept.keep((one.id, size), found.data)
        if len(self._sizes) > 100_000:
            self._sizes.clear()
        self._sizes[one.id] = Size(found.width, found.height)
        return found

    async def read(self, one: Candidate) -> bytes:
        """The bytes of the picture's file. Raise ImageError if no address has it."""
        if one.data is not None:
            return one.data
        refused = ImageError("read", "no picture", "it has no address")
        for address in one.addresses:
            try:
                if re.match("https?://", address, re.IGNORECASE):
                    return await self._service.fetcher.fetch(address)
                return await asyncio.to_thread(read_bytes, address, self._service.config.limits.max_bytes)
            except ImageError as error:
                refused = error
            except FileNotFoundError as error:
                refused = ImageError("read", "no such file", one_line(error))
            except (OSError, InputError) as error:
                refused = ImageError("read", "unreadable", one_line(error))
        raise refused
