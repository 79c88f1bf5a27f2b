"""What is wrong with a picture."""

import json

from embed.spec import InputError


class ImageError(InputError):
    """A picture that cannot be used.

    `stage` is "read", "limits" or "decode", `reason` one of few phrases, fit for counting; the message says more.
    """

    def __init__(self, stage: str, reason: str, detail: str = "") -> None:
        super().__init__(stage, reason, detail)  # all of them, or it could not travel between processes
        self.stage = stage
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason

    def to_json(self) -> bytes:
        """The same in bytes, for `from_json`: what comes from a decoding process is never unpickled."""
        return json.dumps({"stage": self.stage, "reason": self.reason, "detail": self.detail}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "ImageError":
        return cls(**json.loads(data))
