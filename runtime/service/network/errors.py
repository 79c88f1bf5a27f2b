"""Errors of whole requests, and their answers."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from starlette.responses import Response

# The reasons are labels in the metrics.
Reason = Literal[
    "bad request",
    "body too long",
    "body too slow",
    "conflict",
    "fault",
    "invalid request",
    "no picture",
    "no room",
    "no valid token",
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
    """A failed request: the HTTP status, a fixed reason, and a message that says what to do."""

    def __init__(self, status: int, reason: Reason, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason: Reason = reason
        self.message = message
        self.headers = dict(headers or {})

    def answer(self, request_id: str) -> Response:
        """The answer, a requests.ErrorAnswer."""
        error = {"reason": self.reason, "message": self.message}
        body = json.dumps({"error": error, "request_id": request_id})
        return Response(body, self.status, self.headers, "application/json")


def invalid(*faults: str) -> Problem:
    """The problem for a request with invalid fields. It names at most five faults."""
    return Problem(422, "invalid request", "; ".join(faults[:5]).encode("utf-8", "backslashreplace").decode())


def without_places(text: str, known: Iterable[Path]) -> str:
    """The text with the paths of these files and folders, in any spelling, replaced by their names.

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
    """The text with absolute paths replaced by the names of the files.

    >>> without_paths("[/data/b/head.onnx] is no 'text/plain', nor at https://host/a/b")
    "[head.onnx] is no 'text/plain', nor at https://host/a/b"
    """
    return re.sub(r"""(?<![\w:/.])/(?:[^\s/'":;,()]+/)+""", "", text)
