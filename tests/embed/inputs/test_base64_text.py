"""Base64 as clients send it, made by the standard library and changed as they change it."""

import base64
import textwrap

import pytest

from embed.inputs.base64_text import from_base64
from embed.inputs.errors import ImageError

DATA = [bytes(range(256)) + bytes(n) for n in range(3)] + [b"", b"\xfb", b"\xfb\xff\xbf" * 100]


@pytest.mark.parametrize("data", DATA, ids=range(len(DATA)))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_every_form_is_read(data: bytes, encode: type) -> None:
    plain = encode(data).decode()
    lines = textwrap.wrap(plain, 76)
    forms = [plain, plain.rstrip("="), "\n".join(lines) + "\n", "\r\n".join(lines), "\n  ".join(["", *lines]) + "\t"]
    heads = ["", "data:;base64,", "data:image/png;base64,", "DATA:image/svg+xml;charset=utf-8;BASE64,"]
    for head in heads:
        for form in forms:
            assert from_base64(head + form) == data, head + form


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("data:image/png,%89PNG", "'data:image/png' does not have ;base64"),
        ("data:image/png;base64", "does not have ;base64"),
        ("https://host/a.png", 'the field "url"'),
        ("AAAAA", "5 digits.*cut short"),
        ("AA AA", "' ', digit 2 counted from 0.*replaced by a space"),
        ("AAAA%2BAA", "'%', digit 4.*percent-encoded"),
        ("AA==AA==", "'=', digit 2.*two texts"),
        ("no picture!", "' ', digit 2"),
        ("AAA\u00e9", "'\u00e9', digit 3 counted from 0, is not a base64 digit$"),
        ("AAA\0", r"'\\x00', digit 3"),
        ("AAA\ud800", r"'\\ud800', digit 3"),
    ],
)
def test_what_is_none_names_its_cause(text: str, cause: str) -> None:
    with pytest.raises(ImageError, match=f"^no base64: .*{cause}") as caught:
        from_base64(text)
    assert (caught.value.stage, caught.value.reason) == ("read", "no base64")
