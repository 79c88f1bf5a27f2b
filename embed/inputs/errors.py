"""Errors of single pictures."""

import json
from typing import Any, Literal, get_args

from embed.spec import InputError

Stage = Literal["read", "limits", "decode"]
Reason = Literal[
    "bad url",
    "cannot be read",
    "changed since it was embedded",
    "damaged",
    "empty file",
    "fetch failed",
    "host not allowed",
    "no base64",
    "no picture",
    "no such file",
    "out of memory",
    "the decoder crashed or stalled",
    "too many bytes",
    "too many pixels",
    "too many scans",
    "too much metadata",
    "truncated",
    "unknown format",
    "unreadable",
    "unsupported encoding",
    "wrong array",
]
BLAMED: Reason = "the decoder crashed or stalled"


class ImageError(InputError):
    """A picture that cannot be used. `reason` is one of a few phrases, for counting; the message says more."""

    def __init__(self, stage: Stage, reason: Reason, detail: str = "") -> None:
        super().__init__(stage, reason, detail)  # all three, so that it can be pickled
        self.stage: Stage = stage
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason

    def to_json(self) -> bytes:
        """Return it as JSON for `from_json`. Answers of decoding processes are never unpickled."""
        return json.dumps({"stage": self.stage, "reason": self.reason, "detail": self.detail}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "ImageError":
        """Read what `to_json` wrote. Raise ValueError for anything else: the sender may have been taken over."""
        said: dict[str, Any] = read_object(data)
        require_failure(said)
        return cls(**said)


def read_object(data: bytes) -> dict[str, object]:
    """Parse a JSON object. Raise ValueError for anything else."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def require_failure(said: dict[str, object]) -> None:
    """Raise ValueError unless the object has exactly a known stage, a known reason and a detail."""
    known = {"stage": get_args(Stage), "reason": get_args(Reason), "detail": [said.get("detail")]}
    if set(said) != set(known) or not isinstance(said["detail"], str) or any(said[n] not in known[n] for n in known):
        raise ValueError(f"not a failure of a picture: {str(said)[:200]}")
