"""Clients of the service: `Client`, and `AsyncClient` for asyncio. They need httpx, which the extra `client` installs.

    with Client("http://localhost:8000") as client:
        for outcome in client.score(["a.webp", "b.webp"], "dog face"):
            print(outcome)

Pictures are bytes, paths, or http(s) addresses on hosts that the service fetches from. They are sent in batches, and
each picture gets its answer or its own ItemError, in the same order. An error of a whole request raises ServiceError,
and bad arguments raise InputError. While the service is too busy or cannot be reached, requests are sent again.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Sequence
from typing import Any, Generic, Self, TypeVar, Unpack

try:
    import httpx
except ModuleNotFoundError:
    raise ModuleNotFoundError("runtime.client needs httpx; run: pip install 'plaudit[client]'", name="httpx") from None

from embed.spec import InputError
from runtime.clients.answers import (
    Embeddings,
    Hit,
    Id,
    ItemError,
    Like,
    Picture,
    Ranked,
    Score,
    ServiceError,
    Text,
    Wishes,
)
from runtime.clients.exchange import Reply, Result, Steps, tried
from runtime.clients.questions import (
    Item,
    Question,
    Sources,
    batches,
    embedded_items,
    embedding,
    hits_of,
    outcomes,
    ranked,
    scored_items,
    scoring,
    similar_body,
    with_bytes,
)

__all__ = [
    "AsyncClient",
    "Client",
    "Embeddings",
    "Hit",
    "Id",
    "ItemError",
    "Like",
    "Picture",
    "Ranked",
    "Score",
    "ServiceError",
    "Text",
    "Wishes",
]

Answer = TypeVar("Answer")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
SIDE_BY_SIDE = 4  # concurrent requests of one call of AsyncClient; a service has room for about 8 of 32 pictures


class _Shared(Generic[Http]):
    """The constructor of both clients, and how they build requests."""

    _kind: type[Http]

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        batch: int = 32,
        batch_bytes: int = 8 << 20,
        retries: int = 5,
        timeout_s: float = 120.0,
        http: Http | None = None,
    ) -> None:
        """A client of the service at `url`.

        Args:
            token: The bearer token of the service. By default the first line of $PLAUDIT_TOKEN, if it is set.
            batch: The number of pictures or prompts in one request. There are fewer if that is too much for the
                service.
            batch_bytes: The bytes of pictures in one request, unless a single picture is larger.
            retries: How many times a request is sent again while the service is too busy or cannot be reached.
            timeout_s: A request is not sent again after so many seconds, and the service may be silent for as long.
            http: An httpx client to send with, such as one with its own proxy or certificates.
        """
        if batch < 1:
            raise InputError(f"batch is {batch}; wanted at least 1")
        given = os.environ.get("PLAUDIT_TOKEN", "") if token is None else token
        first = (
            given.strip().partition("\n")[0].strip()
        )  # the variable may hold several tokens that the service accepts
        self._headers = {"Authorization": f"Bearer {first}"} if first else {}
        self._url = url.rstrip("/")
        self._most = (batch, batch_bytes)
        self._retries = retries
        self._timeout_s = timeout_s
        self._http: Http = self._kind() if http is None else http

    def _request(self, method: str, path: str, **content: Any) -> httpx.Request:
        headers = {**self._headers, "X-Request-Id": uuid.uuid4().hex}
        return self._http.build_request(method, self._url + path, headers=headers, timeout=self._timeout_s, **content)

    def _post(self, path: str, divisible: bool = False, **content: Any) -> Steps[httpx.Response]:
        return tried(self._request("POST", path, **content), self._retries, self._timeout_s, divisible)


class Client(_Shared[httpx.Client]):
    """A client that waits for answers. Threads may share it."""

    _kind = httpx.Client

    def score(
        self,
        images: Sequence[Picture],
        prompts: str | Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        sources: Sources = None,
    ) -> list[Score | ItemError]:
        """Score pictures under a prompt, or each under its own; higher is preferred.

        If a bundle has several outputs, the first requested one is the score, and all requested ones are in `outputs`.
        `sources` are the pictures that these were made from: one for all, or one or None for each.
        """
        return self._ask(scoring(outputs), scored_items(images, prompts, sources))

    def rank(
        self,
        images: Sequence[Picture],
        prompt: str | None = None,
        outputs: Sequence[str] | None = None,
        sources: Sources = None,
    ) -> list[Ranked | ItemError]:
        """Score pictures under one prompt, with the probability that each is the preferred one of all."""
        return ranked(self.score(images, prompt, outputs, sources))

    def embed(self, images: Sequence[Picture] = (), prompts: Sequence[str] = ()) -> Embeddings:
        """Unit vectors of pictures and prompts."""
        found = self._ask(embedding(), embedded_items(images, prompts))
        return Embeddings(found[: len(images)], found[len(images) :])

    def similar(self, likes: Sequence[Like], dislikes: Sequence[Like] = (), **wishes: Unpack[Wishes]) -> list[Hit]:
        """Find popular pictures of the catalogue that are like `likes` and unlike `dislikes`, best first."""
        return hits_of(self._run(self._post("/v1/similar", json=similar_body(likes, dislikes, wishes))))

    def ready(self) -> bool:
        """Whether the service can be reached and is ready. The request is sent only once."""
        try:
            return self._http.send(self._request("GET", "/health/ready")).status_code == 200
        except httpx.RequestError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: Question[Answer], items: Sequence[Item]) -> list[Answer | ItemError]:
        found = list[Answer | ItemError]()
        for batch in batches(items, *self._most):
            found += self._run(outcomes(self._post, question, [with_bytes(item) for item in batch]))
        return found

    def _run(self, steps: Steps[Result]) -> Result:
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as done:
                result: Result = done.value
                return result
            if isinstance(step, float):
                time.sleep(step)
                continue
            try:
                reply = self._http.send(step)
            except httpx.RequestError as error:
                reply = error


class AsyncClient(_Shared[httpx.AsyncClient]):
    """A client for asyncio, which sends several batches concurrently. Otherwise it is like Client."""

    _kind = httpx.AsyncClient

    async def score(
        self,
        images: Sequence[Picture],
        prompts: str | Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        sources: Sources = None,
    ) -> list[Score | ItemError]:
        """Score pictures under a prompt, or each under its own; higher is preferred."""
        return await self._ask(scoring(outputs), scored_items(images, prompts, sources))

    async def rank(
        self,
        images: Sequence[Picture],
        prompt: str | None = None,
        outputs: Sequence[str] | None = None,
        sources: Sources = None,
    ) -> list[Ranked | ItemError]:
        """Score pictures under one prompt, with the probability that each is the preferred one of all."""
        return ranked(await self.score(images, prompt, outputs, sources))

    async def embed(self, images: Sequence[Picture] = (), prompts: Sequence[str] = ()) -> Embeddings:
        """Unit vectors of pictures and prompts."""
        found = await self._ask(embedding(), embedded_items(images, prompts))
        return Embeddings(found[: len(images)], found[len(images) :])

    async def similar(
        self, likes: Sequence[Like], dislikes: Sequence[Like] = (), **wishes: Unpack[Wishes]
    ) -> list[Hit]:
        """Find popular pictures of the catalogue that are like `likes` and unlike `dislikes`, best first."""
        body = await asyncio.to_thread(similar_body, likes, dislikes, wishes)
        return hits_of(await self._run(self._post("/v1/similar", json=body)))

    async def ready(self) -> bool:
        """Whether the service can be reached and is ready. The request is sent only once."""
        try:
            return (await self._http.send(self._request("GET", "/health/ready"))).status_code == 200
        except httpx.RequestError:
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, question: Question[Answer], items: Sequence[Item]) -> list[Answer | ItemError]:
        async def ask(batch: list[Item]) -> list[Answer | ItemError]:
            async with slots:
                read = await asyncio.to_thread(lambda: [with_bytes(item) for item in batch])
                return await self._run(outcomes(self._post, question, read))

        slots = asyncio.Semaphore(SIDE_BY_SIDE)
        tasks = [asyncio.ensure_future(ask(batch)) for batch in batches(items, *self._most)]
        try:
            return [outcome for found in await asyncio.gather(*tasks) for outcome in found]
        finally:  # if one failed, the others are no longer needed
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, steps: Steps[Result]) -> Result:
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as done:
                result: Result = done.value
                return result
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            try:
                reply = await self._http.send(step)
            except httpx.RequestError as error:
                reply = error
