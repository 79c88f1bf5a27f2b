"""Limit connections from strangers: their number, how long they may be silent, and the size of a request's head.

uvicorn's parser accepts a head of any length, and its time grows with the square of the length, so that one connection
could block the process. Its connections may also be silent forever. Here these are limited before anything is known of
a request.
"""

import asyncio
import ipaddress
import math
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runtime.service.network.errors import Problem, Reason

MAX_HEAD_BYTES = 1 << 16  # of a request's first line and headers
MAX_HEADERS = 100
HEAD_TIMEOUT_S = 10.0  # from opening a connection, or the first byte of a later request, to the end of the head
REST_TIMEOUT_S = 10.0  # for the rest of a body after the answer was sent
LAST_TIMEOUT_S = 5.0  # for bodies to arrive completely when the service ends
SPARE_FILES = 32  # open files that the process needs in addition to connections
LEAST_PER_ADDRESS = 4  # if the limit is lowered: some clients of one machine, and its health checks


def most_connections(wanted: int) -> int:
    """`wanted`, or fewer if this process may not open so many files, but at least 8.

    First raises this process's limit of open files, as far as the system allows.
    """
    with suppress(ImportError, OSError, ValueError):  # not on Windows
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < wanted + 256 and soft != resource.RLIM_INFINITY:
            soft = wanted + 256 if hard == resource.RLIM_INFINITY else min(hard, wanted + 256)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft != resource.RLIM_INFINITY:
            return max(8, min(wanted, soft - len(os.listdir("/proc/self/fd")) - SPARE_FILES))
    return wanted


@dataclass
class Peer:
    """The client of a connection, for all its requests, in whose state it is `peer`."""

    refused_at: float = -math.inf  # when it was last told to try again later, by the monotonic clock


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection with limits, which `bounded` sets for each server."""

    max_connections: int
    max_per_address: int
    proxies: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
    addresses: Counter[str]  # number of open connections by address

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = Peer()
        self._head_bytes = 0
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(HEAD_TIMEOUT_S, self._abort)
        self._address = self.client[0] if self.client else ""
        self.addresses[self._address] += 1
        if len(self.connections) > self.max_connections:
            self._refuse(
                503, "service unavailable", f"{self.max_connections} connections are already open; try again later"
            )
        elif self.addresses[self._address] > self.max_per_address and not self._is_proxy():
            self._refuse(
                503,
                "service unavailable",
                f"{self.max_per_address} connections from your address are already open; close some",
            )

    def _is_proxy(self) -> bool:
        """Whether the address is that of a trusted proxy, through which many clients come."""
        try:
            address = ipaddress.ip_address(self._address)
        except ValueError:  # the socket has no address
            return False
        return any(address in network for network in self.proxies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timer()
        self.addresses[self._address] -= 1
        self.addresses += Counter()  # removes addresses with a count of zero
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        while data and not self.transport.is_closing():
            if not self._in_head:
                super().data_received(data)
                return
            # Pass on at most as much of a head as is allowed; the rest follows in the next round.
            piece = data[: MAX_HEAD_BYTES - self._head_bytes + 1]
            data = data[len(piece) :]
            self._head_bytes += len(piece)
            super().data_received(piece)
            if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    431,
                    "request header fields too large",
                    f"the head of a request may have at most {MAX_HEAD_BYTES} bytes",
                )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["peer"] = self._peer
        if not self._in_head:  # a later request of the connection
            self._in_head, self._head_bytes = True, 0
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._abort)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._end_timer()
        if len(self.headers) > MAX_HEADERS:
            self._refuse(431, "request header fields too large", f"a request may have at most {MAX_HEADERS} headers")
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._end_timer()
        if not self.transport.is_closing():
            super().on_message_complete()
            if self.cycle.response_complete:  # uvicorn no longer limits how long the connection is silent
                handler = self.timeout_keep_alive_handler
                self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, handler)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Closing the connection while the client still sends could lose the answer; reading the rest costs little.
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._timer = self.loop.call_later(REST_TIMEOUT_S, self._abort)

    def shutdown(self) -> None:
        """Close the connection once its request was answered, which must arrive completely soon."""
        super().shutdown()
        if self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete:
            self._end_timer()
            self._timer = self.loop.call_later(LAST_TIMEOUT_S, self._abort)

    def _refuse(self, status: int, reason: Reason, message: str) -> None:
        """Send an answer that says why the connection ends, and close it."""
        phrase = HTTPStatus(status).phrase
        headers = {"Connection": "close", **({"Retry-After": "1"} if status == 503 else {})}
        answer = Problem(status, reason, message, headers).answer(uuid.uuid4().hex)
        head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
        self.transport.write(f"HTTP/1.1 {status} {phrase}\r\n".encode() + head + b"\r\n" + bytes(answer.body))
        self.transport.close()

    def _abort(self) -> None:
        self.transport.abort()

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounded(max_connections: int, max_per_address: int, proxies: Sequence[str] = ()) -> type[BoundedConnection]:
    """The class of connections for one server, with these limits.

    If the system allows fewer connections, an address gets fewer too, because otherwise one address could take all.
    `proxies` are addresses or networks, each of which may have as many connections as there may be in all.
    """
    most = most_connections(max_connections)
    share = max(LEAST_PER_ADDRESS, max_per_address * most // max_connections)
    bounds: dict[str, Any] = {
        "max_connections": most,
        "max_per_address": min(max_per_address, share),
        "proxies": [ipaddress.ip_network(proxy) for proxy in proxies],
        "addresses": Counter(),
    }
    return type("Connection", (BoundedConnection,), bounds)
