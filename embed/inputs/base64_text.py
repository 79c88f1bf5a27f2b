"""Decode pictures from base64, in every form in which clients send it."""

import base64
import re

from embed.inputs.errors import ImageError


def from_base64(text: str) -> bytes:
    """Return the bytes that `text` encodes. Raise ImageError that names the cause if it is not base64.

    Both alphabets (`+/` and `-_`), missing padding, line breaks and `data:` addresses are accepted.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or head.rpartition(";")[2].strip().lower() != "base64":
            raise _refusal(f"the address {head[:50]!r} does not have ;base64 before its data")
    elif re.match("https?:", text, re.IGNORECASE):
        raise _refusal('this is the address of a picture; send it in the field "url"')
    digits = "".join(map(str.strip, text.split("\n"))).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise _refusal(_cause(digits)) from None


def _cause(digits: str) -> str:
    bad = re.search("[^A-Za-z0-9+/]", digits)
    if bad is None:
        return f"{len(digits)} digits, but 4 digits stand for 3 bytes: one is missing, or the text was cut short"
    hints = {
        " ": ": was a + replaced by a space, as happens in forms and addresses?",
        "=": ": padding belongs at the end; are these two texts?",
        "%": ": is the text percent-encoded?",
    }
    return f"{bad[0]!r}, digit {bad.start()} counted from 0, is not a base64 digit{hints.get(bad[0], '')}"


def _refusal(detail: str) -> ImageError:
    return ImageError("read", "no base64", detail)
