"""The middleware in front of the routes, the same for every request: identity, limits, deadline, log.

A request is refused before its body is read if the token is wrong (401), the path is unknown (404), the body is too
long (413), or there is so much work that it would miss its deadline (429 with Retry-After). Memory is counted for the
parts of bodies that have arrived, not for announced lengths; if too much is under way, the answer is also 429. Routes
see only complete bodies. A request that still misses its deadline gets 504, and its work is cancelled, as it is if its
client disconnects. Each request gets one line in the log, without bodies, prompts or pictures.
"""

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.config import ServiceConfig
from runtime.service.network.connections import Peer
from runtime.service.network.errors import Problem
from runtime.service.network.metrics import Metrics
from runtime.service.network.sessions import Sessions, from_own_page
from runtime.service.network.tracing import Tracing
from runtime.service.network.turns import Caller, Turns

log = logging.getLogger("plaudit.service")

CLIENT_GONE = 499  # for log and metrics, as in nginx; there is no client to receive it
BODY_TIMEOUT_S = 30.0
AGAIN_S = 0.5  # a refused client that comes back earlier has to wait; Retry-After is at least one second
HEAD_BYTES = 1 << 14  # shorter bodies arrive together with their head
MOST_LOGGED = 200  # the most characters of a client's text in the log

# The id of the current request, also in the threads and tasks that work for it.
request_id_now: ContextVar[str] = ContextVar("request_id", default="")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


@dataclass
class Gate:
    """Limits on the items and the bytes of bodies that are under way. Requests beyond them are refused at once."""

    max_items: int
    max_bytes: int
    busy: Callable[[], Problem]  # the problem for a refused request
    items: int = 0
    bytes: int = 0
    requests: int = 0

    @contextmanager
    def admit(self, items: int = 0, bytes: int = 0, requests: int = 0) -> Iterator[None]:
        """Reserve room for so much until the block ends. Raise Problem 429 if there is none."""
        if (
            self.items + items > self.max_items
            or self.bytes + bytes > self.max_bytes
            or self.requests + requests > self.max_items
        ):
            raise self.busy()
        self.items, self.bytes, self.requests = self.items + items, self.bytes + bytes, self.requests + requests
        try:
            yield
        finally:
            self.items, self.bytes, self.requests = self.items - items, self.bytes - bytes, self.requests - requests


class Front:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        turns: Turns,
        metrics: Metrics,
        tracing: Tracing,
        config: ServiceConfig,
        routes: Sequence[BaseRoute],
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._gate = gate
        self._turns = turns
        self._metrics = metrics
        self._routes = routes
        self._guarded = config.guarded
        self._sessions = Sessions(config.tokens if config.pages else ())
        self._max_body_bytes = config.max_body_bytes
        self._deadline_s = config.deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.monotonic()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        request_id_now.set(request_id)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        peer: Peer = state.setdefault("peer", Peer())
        route, status = self._route(scope), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        watched = not route.startswith(("/health", "/metrics"))
        with self._tracing.request(scope["method"], route, headers) if watched else nullcontext(_ignore) as ended:
            try:
                outcome = await self._serve(scope, headers, receive, answer)
                status = status or outcome
            except Exception as error:
                if not isinstance(error, Problem):
                    log.exception("an unexpected error", extra={"fields": {"request_id": request_id}})
                    error = Problem(500, "fault", "an unexpected error in the service; see its log")
                state["reason"] = error.reason
                if not status:
                    await error.answer(request_id)(scope, receive, answer)
            finally:
                status = status or CLIENT_GONE
                ended(status)
                seconds = time.monotonic() - start
                if status == 429:
                    peer.refused_at = time.monotonic()
                self._metrics.requests.labels(route, str(status)).inc()
                self._metrics.request_s.labels(route).observe(seconds)
                if "reason" in state:
                    self._metrics.refusals.labels(route, str(status), state["reason"]).inc()
                log.log(
                    logging.INFO if watched else logging.DEBUG,
                    "request",
                    extra={"fields": _line(scope, headers, status, seconds)},
                )

    def _route(self, scope: Scope) -> str:
        """The template of the path, such as `/v1/score`, for any method; "other" if there is none."""
        served = (route for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        return getattr(next(served, None), "path", "other")

    async def _serve(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> int:
        """Serve a request, and return 0 if it was answered, or CLIENT_GONE. Raise Problem if it is refused or late."""
        self._check_token(scope, headers)
        if scope["method"] != "POST" or all(route.matches(scope)[0] is not Match.FULL for route in self._routes):
            scope["state"]["caller"] = self._caller(scope, headers)
            return await self._within_deadline(scope, deque(), receive, send)
        given = headers.get(b"content-length", b"")
        announced = int(given) if given.isdigit() else 0
        if announced > self._max_body_bytes:
            raise self._too_long(announced)
        # A refused client that comes back at once waits here, because refusing it hundreds of times a second would slow
        # others.
        await asyncio.sleep(max(0.0, scope["state"]["peer"].refused_at + AGAIN_S - time.monotonic()))
        if announced > HEAD_BYTES:
            self._turns.check(self._caller(scope, headers), announced)
        with ExitStack() as taken:
            body = await self._read_body(receive, taken)
            if body is None:
                return CLIENT_GONE
            taken.enter_context(self._gate.admit(requests=1))
            scope["state"]["caller"] = self._caller(scope, headers)
            return await self._within_deadline(scope, body, receive, send)

    def _check_token(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raise Problem unless the request has a token for its path, or the cookie of a person who signed in on a
        page."""
        path = scope["path"]
        tokens = next((tokens for prefix, tokens in self._guarded.items() if path.startswith(prefix)), ())
        by_cookie = tokens and path.startswith("/v1/") and b"authorization" not in headers
        if by_cookie and (session := self._sessions.of(headers)) is not None:
            if not from_own_page(scope["method"], headers):
                raise Problem(403, "other site", "a page of another site may not send requests in your name")
            scope["state"] |= {"session": session, "voter": session.name or None}
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Compare with all tokens, so that timing reveals nothing about them.
        right = [hmac.compare_digest(given.strip(), token.encode()) for token in tokens]
        if tokens and not (any(right) and scheme.lower() == b"bearer"):
            missing = "the token is missing; send the header Authorization: Bearer TOKEN"
            wrong = "this token is not one of the service's tokens"
            message = wrong if scheme.lower() == b"bearer" and given.strip() else missing
            raise Problem(401, "no valid token", message, {"WWW-Authenticate": "Bearer"})

    def _caller(self, scope: Scope, headers: dict[bytes, bytes]) -> Caller:
        """The caller of a request, by address and token, with its deadline if it starts now."""
        address = (scope.get("client") or ("",))[0]
        token = headers.get(b"authorization", b"").split()[-1:] if any(self._guarded.values()) else ()
        if (session := scope["state"].get("session")) is not None:
            token = [session.nonce.encode()]
        return Caller((address, *token), time.monotonic() + self._deadline_s)

    def _too_long(self, size: int) -> Problem:
        return Problem(413, "body too long", f"{size} bytes, at most {self._max_body_bytes} allowed in one request")

    async def _read_body(self, receive: Receive, taken: ExitStack) -> deque[bytes] | None:
        """The complete body in parts, with room for it until `taken` ends, or None if the client disconnects."""
        parts: deque[bytes] = deque()
        size = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    taken.enter_context(self._gate.admit(bytes=len(parts[-1])))
                    size += len(parts[-1])
                    if size > self._max_body_bytes:
                        raise self._too_long(size)
                    if not message.get("more_body"):
                        return parts
        except TimeoutError:
            raise Problem(408, "body too slow", f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None

    async def _within_deadline(self, scope: Scope, body: deque[bytes], receive: Receive, send: Send) -> int:
        """Call the application, which takes the parts of the body out of the queue. Raise Problem 504 after the
        deadline."""
        begun = False

        async def replay() -> Message:
            nonlocal begun
            if begun and not body:
                return await asyncio.shield(gone)
            if begun:
                await asyncio.sleep(0)  # lets other requests run between the parts of a large form
            begun = True
            part = body.popleft() if body else b""  # removed from the queue, so that no part is in memory twice
            return {"type": "http.request", "body": part, "more_body": bool(body)}

        # Loading a bundle has no deadline.
        timeout_s = None if scope["path"].startswith("/admin/") else self._deadline_s
        gone = asyncio.ensure_future(_disconnected(receive))
        answer = asyncio.ensure_future(self._app(scope, replay, send))
        try:
            await asyncio.wait({gone, answer}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
                return 0
            if gone.done():
                return CLIENT_GONE
            raise Problem(
                504,
                "too late",
                f"the request took longer than {self._deadline_s:g} s; send fewer items, or try again later",
            )
        finally:
            gone.cancel()
            if not answer.done():
                answer.cancel()
                await asyncio.wait({answer})


def _ignore(status: int) -> None:
    pass


def _line(scope: Scope, headers: Mapping[bytes, bytes], status: int, seconds: float) -> dict[str, object]:
    """The fields of a request for the log: the client, the request and the result."""
    state: dict[str, Any] = scope["state"]
    return {
        "request_id": state["request_id"],
        "client": scope["client"][0] if scope.get("client") else "",
        "agent": headers.get(b"user-agent", b"").decode("latin-1")[:MOST_LOGGED],
        "method": scope["method"],
        "path": scope["path"][:MOST_LOGGED],
        "status": status,
        **({"reason": state["reason"]} if "reason" in state else {}),
        "ms": round(1000 * seconds, 1),
        **state.get("log", {}),
    }


async def _disconnected(receive: Receive) -> Message:
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


class JsonLines(logging.Formatter):
    """Format each record as one line with a JSON object: time, level, event, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
