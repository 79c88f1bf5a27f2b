"""Requests that get no answer but an error: what is wrong with them, and how that is said."""

import json
from collections.abc import Mapping


class Problem(Exception):
    """Why a request gets no answer: the HTTP status, one of few phrases, and what to do about it."""

    def __init__(self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> bytes:
        """The answer in JSON, a requests.ErrorAnswer."""
        error = {"reason": self.reason, "message": self.message}
        return json.dumps({"error": error, "request_id": request_id}).encode()
