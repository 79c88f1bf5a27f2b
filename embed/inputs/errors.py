"""What is wrong with a picture."""

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
    """A picture that cannot be used; `reason` is fit for counting, and the message says more."""

    def __init__(self, stage: Stage, reason: Reason, detail: str = "") -> None:
        super().__init__(stage, reason, detail)  # all of them, or it could not travel between processes
        self.stage: Stage = stage
        self.reason: Reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason

    def to_json(self) -> bytes:
        """The same in bytes, for `from_json`: what comes from a decoding process is never unpickled."""
        return json.dumps({"stage": self.stage, "reason": self.reason, "detail": self.detail}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "ImageError":
        """Raise ValueError for what is none: the process that says it may be in a stranger's hands."""
        said: dict[str, Any] = read_object(data)
        require_failure(said)
        return cls(**said)


def read_object(data: bytes) -> dict[str, object]:
    """An object of JSON; raise ValueError for anything else."""
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def require_failure(said: dict[str, object]) -> None:
    """Raise ValueError unless it says a stage, a reason and a detail, and nothing else."""
    known = {"stage": get_args(Stage), "reason": get_args(Reason), "detail": [said.get("detail")]}
    if set(said) != set(known) or not isinstance(said["detail"], str) or any(said[n] not in known[n] for n in known):
        raise ValueError(f"no failure of a picture: {str(said)[:200]}")
