"""Sessions of people who signed in on a page: a signed cookie, so that browsers do not store tokens.

The cookie does not contain the token. It is signed with a key made from the given token, so it becomes invalid with the
token, and every replica that knows the token accepts the session. Cookies are accepted only if the request comes from a
page of this service.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

COOKIE = "plaudit_session"
SESSION_S = 7 * 86_400
MAX_NAME = 100  # the most characters of a person's name
SAFE = ("GET", "HEAD", "OPTIONS")  # methods that change nothing


@dataclass(frozen=True)
class Session:
    """A person who gave a token. The name is the one that they gave, and may be empty."""

    name: str
    nonce: str


class Sessions:
    """Make and read the cookies of people who have one of the tokens."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._keys = {token: hashlib.sha256(b"plaudit session\0" + token.encode()).digest() for token in tokens}

    def cookie(self, token: str, name: str, secure: bool, now: float | None = None) -> str | None:
        """The value of Set-Cookie for a right token, or None for a wrong one."""
        found = None
        for known, key in self._keys.items():  # compare with all, so that timing reveals nothing
            if hmac.compare_digest(known.encode(), token.encode("utf-8", "replace")):
                found = key
        if found is None:
            return None
        until = int((time.time() if now is None else now) + SESSION_S)
        named = base64.urlsafe_b64encode(name[:MAX_NAME].encode("utf-8", "replace")).decode()
        text = f"{until}.{secrets.token_hex(8)}.{named}"
        return self._header(f"{text}.{_signed(found, text)}", SESSION_S, secure)

    def ended(self, secure: bool) -> str:
        """The value of Set-Cookie that signs out."""
        return self._header("", 0, secure)

    def of(self, headers: Mapping[bytes, bytes], now: float | None = None) -> Session | None:
        """The session of a request, or None without a valid one."""
        try:
            cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
        except CookieError:
            return None
        text, _, signature = cookies[COOKIE].value.rpartition(".") if COOKIE in cookies else ("", "", "")
        right = [
            hmac.compare_digest(_signed(key, text), signature) for key in self._keys.values() if signature.isascii()
        ]
        if not any(right):
            return None
        until, nonce, named = text.split(".")
        if int(until) < (time.time() if now is None else now):
            return None
        try:
            return Session(base64.urlsafe_b64decode(named).decode(), nonce)
        except (binascii.Error, UnicodeDecodeError):
            return None

    @staticmethod
    def _header(value: str, age_s: int, secure: bool) -> str:
        return f"{COOKIE}={value}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Strict{'; Secure' * secure}"


def from_own_page(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether the request changes nothing, or the browser states that it comes from a page of this service.

    Browsers state it in Sec-Fetch-Site, older ones in Origin.
    """
    if method in SAFE:
        return headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin")
    if (site := headers.get(b"sec-fetch-site")) is not None:
        return site == b"same-origin"
    origin = urlsplit(headers.get(b"origin", b"").decode("latin-1")).netloc
    return origin != "" and origin == headers.get(b"host", b"").decode("latin-1")


def _signed(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode("latin-1", "replace"), hashlib.sha256).hexdigest()
