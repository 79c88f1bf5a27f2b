"""Serve a generator over HTTP with limits, as a source of pictures for the service's comparing page.

    POST /generate     {"prompt": str, "seed": int = 0, "n": int = 1} -> {"pictures": [base64 of a PNG], "seeds": [int]}
    GET  /health/live

Picture i has the seed `seed` + i, so that the same request gives the same pictures. Only one request generates at a
time, and few may wait; others get status 429. Needs starlette from the extra `serve`.
"""

import asyncio
import base64
import hmac
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from embed.options import Range, require_valid
from heads.generating.config import MAX_SEED

if TYPE_CHECKING:
    from PIL.Image import Image
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAX_BODY_BYTES = 1 << 16
BODY_TIMEOUT_S = 10.0
FIELDS = ("prompt", "seed", "n")


@dataclass(frozen=True)
class SourceLimits:
    """Limits of a served generator."""

    max_pictures: Annotated[int, Range(1)] = 8
    """The largest number of pictures in a request to --serve."""
    max_prompt: Annotated[int, Range(1)] = 1000
    """The largest number of characters of a prompt in a request to --serve."""
    max_waiting: Annotated[int, Range(0)] = 4
    """The largest number of requests to --serve that wait while another is answered."""

    def __post_init__(self) -> None:
        require_valid(self)


class Refused(Exception):
    """A refused request, with the HTTP status and a message that says what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def create_app(
    make: "Callable[[Sequence[str], Sequence[int]], list[Image]]", limits: SourceLimits, tokens: Sequence[str] = ()
) -> "Starlette":
    """The ASGI application. If there are tokens, each request needs one of them as its bearer token."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    turn, waiting = asyncio.Lock(), 0

    async def generate(request: "Request") -> "Response":
        nonlocal waiting
        _require_token(request, tokens)
        prompt, seed, n = read_question(await _body(request), limits)
        if waiting > limits.max_waiting:
            raise Refused(429, f"{waiting} requests are waiting already; try again later")
        waiting += 1
        try:
            async with turn:
                if await request.is_disconnected():
                    raise Refused(499, "the client disconnected")
                seeds = range(seed, seed + n)
                images = await asyncio.to_thread(make, [prompt] * n, seeds)
        finally:
            waiting -= 1
        return JSONResponse({"pictures": [_png(image) for image in images], "seeds": list(seeds)})

    async def live(request: "Request") -> "Response":
        return JSONResponse({"live": True})

    async def refuse(request: "Request", error: Exception) -> "Response":
        status = error.status if isinstance(error, Refused) else 500
        headers = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status)
        return JSONResponse({"error": {"message": str(error)}}, status, headers)

    routes = [Route("/generate", generate, methods=["POST"]), Route("/health/live", live)]
    return Starlette(routes=routes, exception_handlers={Refused: refuse})


def read_question(body: bytes, limits: SourceLimits) -> tuple[str, int, int]:
    """The prompt, seed and number of pictures of a request. Raise Refused with status 422 for a bad body."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(422, "the body is not JSON") from None
    if not isinstance(asked, dict) or not set(asked) <= set(FIELDS):
        raise Refused(422, f"wanted an object with {', '.join(FIELDS)} and nothing else")
    prompt, seed, n = asked.get("prompt"), asked.get("seed", 0), asked.get("n", 1)
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > limits.max_prompt:
        raise Refused(422, f"prompt must be a text of 1 to {limits.max_prompt} characters")
    if type(n) is not int or not 1 <= n <= limits.max_pictures:
        raise Refused(422, f"n must be a whole number from 1 to {limits.max_pictures}")
    if type(seed) is not int or not 0 <= seed <= MAX_SEED + 1 - n:
        raise Refused(422, f"seed must be a whole number from 0 to {MAX_SEED + 1 - n}")
    return prompt, seed, n


async def _body(request: "Request") -> bytes:
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                found += piece
                if len(found) > MAX_BODY_BYTES:
                    raise Refused(413, f"the body is too long; at most {MAX_BODY_BYTES} bytes are allowed")
    except TimeoutError:
        raise Refused(408, f"the body took longer than {BODY_TIMEOUT_S:g} s") from None
    return bytes(found)


def _require_token(request: "Request", tokens: Sequence[str]) -> None:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    # Compare with every token in constant time, so that timing tells nothing.
    known = [hmac.compare_digest(given.strip().encode(), token.encode()) for token in tokens]
    if tokens and not (kind.lower() == "bearer" and any(known)):
        raise Refused(401, "the bearer token is missing or wrong; send Authorization: Bearer TOKEN")


def _png(image: "Image") -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
