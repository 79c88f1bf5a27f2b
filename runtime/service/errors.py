"""Requests that get no answer but an error: what is wrong with them, and how that is said."""

import json
from collections.abc import Mapping

from starlette.responses import Response


class Problem(Exception):
    """Why a request gets no answer: the HTTP status, one of few phrases, and what to do about it."""

    def __init__(self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
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
