"""Get pictures for a prompt that a person has written, from a generator at a URL or from a table that is replayed."""

import asyncio
import base64
import binascii
import json
from pathlib import Path
from typing import Protocol

import numpy as np

from embed.inputs.fetch import read_bytes
from embed.spec import InputError
from embed.wording import one_line
from runtime.collect.candidates import Candidate, Candidates, read_candidates

MOST_ANSWER_BYTES = 64 << 20


class GeneratorError(Exception):
    """The generator gave no pictures."""


class Generator(Protocol):
    """A source of pictures for a prompt."""

    async def pictures(self, prompt: str, seed: int, n: int) -> list[bytes]:
        """The files of `n` pictures. Raise GeneratorError if there are none."""


class HttpGenerator:
    """`POST URL {prompt, seed, n}` -> `{"pictures": [base64, ...]}`."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def pictures(self, prompt: str, seed: int, n: int) -> list[bytes]:
        """The files of `n` pictures. Raise GeneratorError for any other answer."""
        import httpcore

        body = json.dumps({"prompt": prompt, "seed": seed, "n": n}).encode()
        headers = [("Content-Type", "application/json"), ("User-Agent", "plaudit")]
        answer = bytearray()
        try:
            async with (
                httpcore.AsyncConnectionPool() as pool,
                pool.stream("POST", self._url, headers=headers, content=body) as response,
            ):
                async for chunk in response.aiter_stream():
                    answer += chunk
                    if len(answer) > MOST_ANSWER_BYTES:
                        raise GeneratorError(
                            f"the generator's answer is too long; at most {MOST_ANSWER_BYTES} bytes are read"
                        )
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise GeneratorError(
                f"the generator cannot be reached: {one_line(error) or type(error).__name__}"
            ) from None
        if response.status != 200:
            raise GeneratorError(f"the generator answered {response.status}; wanted 200")
        return pictures_in(bytes(answer), n)


def pictures_in(answer: bytes, n: int) -> list[bytes]:
    """The files of the pictures in a generator's answer. Raise GeneratorError for another answer, or too few
    pictures."""
    try:
        found = [base64.b64decode(text, validate=True) for text in json.loads(answer)["pictures"]]
    except (ValueError, TypeError, KeyError, binascii.Error):
        raise GeneratorError('the generator\'s answer is not {"pictures": [base64, ...]}') from None
    if len(found) < n:
        raise GeneratorError(f"the generator gave {len(found)} pictures; wanted {n}")
    return found[:n]


class TableGenerator:
    """Replay a table: give its pictures of exactly this prompt, or of all prompts if it has fewer than two of this
    one."""

    def __init__(self, candidates: Candidates, max_bytes: int) -> None:
        self._candidates = candidates
        self._max_bytes = max_bytes

    async def pictures(self, prompt: str, seed: int, n: int) -> list[bytes]:
        """The files of `n` pictures that the seed chooses. Raise GeneratorError if they cannot be read."""
        known = dict(zip(self._candidates.prompts, self._candidates.groups, strict=True))
        items = known.get(prompt, np.empty(0, np.int64))
        if len(items) < 2:
            items = np.arange(len(self._candidates.picture))
        order = np.random.default_rng(seed).permutation(items)[:n]
        read = [asyncio.to_thread(self._read, self._candidates.of_item(item)) for item in order]
        try:
            return list(await asyncio.gather(*read))
        except (OSError, InputError) as error:
            raise GeneratorError(f"the table's pictures cannot be read: {one_line(error)}") from None

    def _read(self, candidate: Candidate) -> bytes:
        return candidate.data if candidate.data is not None else read_bytes(candidate.addresses[0], self._max_bytes)


def open_generator(where: str, max_bytes: int) -> Generator:
    """The generator at a URL, or a table to replay. Raise InputError if `where` is neither."""
    if where.startswith(("http://", "https://")):
        return HttpGenerator(where)
    return TableGenerator(read_candidates(Path(where)), max_bytes)
