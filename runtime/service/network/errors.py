"""Requests that get no answer but an error: what is wrong with them, and how that is said."""

import json
from collections.abc import Mapping
from typing import Literal

from starlette.responses import Response

# Metrics count by them.
Reason = Literal[
    "bad request",
    "body too long",
    "body too slow",
    "fault",
    "invalid request",
    "no room",
    "no token",
    "not ready",
    "reload failed",
    "request header fields too large",
    "service unavailable",
    "too busy",
    "too late",
    "too many items",
    "wrong type",
]


class Problem(Exception):
    """Why a request gets no answer: the HTTP status, one of few phrases, and what to do about it."""

    def __init__(self, status: int, reason: Reason, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason: Reason = reason
        self.message = message
        self.headers = dict(headers or {})

    def answer(self, request_id: str) -> Response:
        """A requests.ErrorAnswer."""
        error = {"reason": self.reason, "message": self.message}
        body = json.dumps({"error": error, "request_id": request_id})
        return Response(body, self.status, self.headers, "application/json")


def invalid(*faults: str) -> Problem:
    """The problem of a request that says something wrong; at most five faults are named."""
    return Problem(422, "invalid request", "; ".join(faults[:5]).encode("utf-8", "backslashreplace").decode())
