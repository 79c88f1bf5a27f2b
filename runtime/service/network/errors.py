"""Requests that get no answer but an error: what is wrong with them, and how that is said."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from starlette.responses import Response

# Metrics count by them.
Reason = Literal[
    "bad request",
    "body too long",
    "body too slow",
    "conflict",
    "fault",
    "invalid request",
    "no picture",
    "no room",
    "no token",
    "not invited",
    "not ready",
    "other site",
    "reload failed",
    "request header fields too large",
    "service unavailable",
    "too busy",
    "too late",
    "too many items",
    "too many votes",
    "unknown id",
    "unknown model",
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


def without_places(text: str, known: Iterable[Path]) -> str:
    """The text with the names of these files and folders where it has their paths, however they are spelled.

    >>> without_places("a/b/head.onnx is no head.onnx", [Path("a/b")])
    'b/head.onnx is no head.onnx'
    """
    for path in known:
        whole = os.path.abspath(path)
        for spelled in sorted({str(path), whole, os.path.realpath(path)}, key=len, reverse=True):
            if os.sep in spelled:
                text = text.replace(spelled, os.path.basename(whole))
    return text


def without_paths(text: str) -> str:
    """The text with the names of files where it has absolute paths.

    >>> without_paths("[/data/b/head.onnx] is no 'text/plain', nor at https://host/a/b")
    "[head.onnx] is no 'text/plain', nor at https://host/a/b"
    """
    return re.sub(r"""(?<![\w:/.])/(?:[^\s/'":;,()]+/)+""", "", text)
