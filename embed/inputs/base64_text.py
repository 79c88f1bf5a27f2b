"""A picture's bytes from base64, in every form in which clients send it."""

import base64
import re

from embed.inputs.errors import ImageError


def from_base64(text: str) -> bytes:
    """The bytes that `text` stands for; raise ImageError, which names the cause, if that is not base64.

    Read are both alphabets (`+/` and `-_`), with and without padding, broken into lines or not, and `data:` addresses.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or head.rpartition(";")[2].strip().lower() != "base64":
            raise _refusal(f"the address {head[:50]!r} does not say ;base64, before its data")
    elif re.match("https?:", text, re.IGNORECASE):
        raise _refusal('this is the address of a picture; it goes into the field "url"')
    digits = "".join(map(str.strip, text.split("\n"))).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        raise _refusal(_cause(digits)) from None


def _cause(digits: str) -> str:
    bad = re.search("[^A-Za-z0-9+/]", digits)
    if bad is None:
        return f"{len(digits)} digits, where 4 stand for 3 bytes: one is missing, or the text was cut short"
    hints = {
        " ": ": a + that became a space on its way, as it does in a form or an address?",
        "=": ": padding stands at the end only; are these two texts?",
        "%": ": is the text percent-encoded?",
    }
    return f"{bad[0]!r}, digit {bad.start()} from 0, is none of base64{hints.get(bad[0], '')}"


def _refusal(detail: str) -> ImageError:
    return ImageError("read", "no base64", detail)
