"""Bytes by URI: local paths, fsspec's memory file system, and a web server on this machine."""

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, unquote

import fsspec
import pytest

from embed.addresses import join
from embed.inputs.fetch import local_stat, read_bytes
from embed.spec import InputError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a b%20é.jpg"
    path.write_bytes(b"0123456789")
    return path


PAGES = {
    "plain": b"<html><body>Sign in</body></html>",
    "usual": b"\xef\xbb\xbf\n <!DOCTYPE html>\n<title>Gone</title>",
    "remarks": b"<!-- proxy --> <!-- 2 -->\n<HEAD>",
    "strict": b'<?xml version="1.0"?>\n<!doctype HTML PUBLIC "-//W3C//DTD XHTML 1.0">',
    "many": b"<!---->" * 500 + b"<svg>",
}


class Handler(BaseHTTPRequestHandler):
    """/pieces sends its ten bytes in two writes, /short fewer than it promises, /endless never stops.

    /moved/CODE/TO sends elsewhere, /circle to itself, /page/NAME answers with a page of PAGES; all
    else answers with its own path.
    """

    protocol_version = "HTTP/1.0"
    requests: ClassVar[list[str]] = []

    def answer(self, data: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        parts = self.path.split("/", 3)
        if parts[1] == "moved":
            return self.answer(b"", int(parts[2]), Location=unquote(parts[3]))
        if parts[1] == "circle":
            return self.answer(b"", 302, Location="/circle")
        if parts[1] == "page":
            return self.answer(PAGES[parts[2]])
        if self.path not in ("/pieces", "/short", "/endless", "/missing"):
            return self.answer(self.path.encode())
        self.send_response(404 if self.path == "/missing" else 200)
        if self.path != "/endless":
            self.send_header("Content-Length", "0" if self.path == "/missing" else "10")
        self.end_headers()
        if self.path in ("/pieces", "/short"):
            self.wfile.write(b"01234")
            self.wfile.flush()
        if self.path == "/pieces":
            self.wfile.write(b"56789")
        while self.path == "/endless":
            try:
                self.wfile.write(b"x" * 65_536)
            except OSError:
                break

    def log_message(self, format: str, *args: object) -> None:
        pass

    do_HEAD = do_GET


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_local_files_by_path_and_uri(picture: Path) -> None:
    for uri in (str(picture), picture.as_uri(), picture.as_uri().replace("file://", "file://localhost")):
        assert read_bytes(uri) == b"0123456789"
        assert local_stat(uri) == (10, picture.stat().st_mtime_ns)
    assert "%2520" in picture.as_uri()  # so that the percent encoding has been undone exactly once


def test_the_limit_is_the_largest_length_allowed(picture: Path) -> None:
    assert read_bytes(str(picture), max_bytes=10) == b"0123456789"
    with pytest.raises(OSError, match=r"has 10 bytes; the limit is 9"):
        read_bytes(str(picture), max_bytes=9)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_bytes(str(tmp_path / "pipe"))
    with pytest.raises(IsADirectoryError):
        read_bytes(str(tmp_path))
    # A file that lies about its length is read up to the limit only.
    with pytest.raises(OSError, match="not a regular file"):
        read_bytes("/dev/zero", max_bytes=100)


def test_missing_files(tmp_path: Path) -> None:
    missing = str(tmp_path / "no.jpg")
    assert local_stat(missing) is None
    with pytest.raises(FileNotFoundError):
        read_bytes(missing)
    with pytest.raises(FileNotFoundError):
        read_bytes("memory://no/such.jpg")


def test_fsspec_file_systems() -> None:
    fsspec.filesystem("memory").pipe("/bucket/x.jpg", b"0123456789")
    assert read_bytes("memory://bucket/x.jpg") == b"0123456789"
    assert local_stat("memory://bucket/x.jpg") is None
    with pytest.raises(OSError, match=r"the limit is 9"):
        read_bytes("memory://bucket/x.jpg", max_bytes=9)


def test_the_web(server: str) -> None:
    assert read_bytes(f"{server}/pieces") == b"0123456789"
    with pytest.raises(OSError, match=r"has more bytes than the limit of 9"):
        read_bytes(f"{server}/pieces", max_bytes=9)
    with pytest.raises(OSError, match=r"has more bytes than the limit of 100,000"):
        read_bytes(f"{server}/endless", max_bytes=100_000)
    with pytest.raises(FileNotFoundError):
        read_bytes(f"{server}/missing")
    for uri in (f"{server}/short", "http://127.0.0.1:9/closed.jpg"):
        with pytest.raises(OSError, match=uri):
            read_bytes(uri)


def test_one_request_is_enough(server: str) -> None:
    Handler.requests.clear()
    read_bytes(f"{server}/pieces")
    assert Handler.requests == ["GET /pieces"]


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("/a%2Fb.png?X-Amz-Signature=a%2Fb+c%3D%41&e=%7E", "/a%2Fb.png?X-Amz-Signature=a%2Fb+c%3D%41&e=%7E"),
        ("/a b/100%.png?x=1%zz", "/a%20b/100%25.png?x=1%25zz"),
        ("/b\u00e4r.png", "/b%C3%A4r.png"),
        ("/a.png#part", "/a.png"),
    ],
)
def test_addresses_are_sent_as_they_are_as_far_as_they_may_be(server: str, address: str, sent: str) -> None:
    assert read_bytes(server + address) == sent.encode()


def test_names_under_a_web_address_are_those_of_the_files(server: str) -> None:
    for name in ("a#1.png", "%41.png", "100%.png", "a?b=c.png", "\u00e4 b/c.png"):
        address = join(f"{server}/pictures/?sig=a%2Fb", name)
        path, _, query = read_bytes(address).decode().partition("?")
        assert (unquote(path), query) == (f"/pictures/{name}", "sig=a%2Fb")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: str, code: int) -> None:
    assert read_bytes(f"{server}/moved/{code}/%2Fpieces") == b"0123456789"
    assert read_bytes(f"{server}/moved/{code}/{quote(server, safe='')}%2Fa.png") == b"/a.png"


def test_redirects_to_what_is_no_web_address_and_in_circles_are_not(server: str, picture: Path) -> None:
    for target in (picture.as_uri(), "ftp://127.0.0.1/a.png", "/circle"):
        with pytest.raises(OSError, match=f"cannot read {server}.*Redirect"):
            read_bytes(f"{server}/moved/302/{quote(target, safe='')}")


def test_web_pages_are_no_pictures(server: str) -> None:
    for name in PAGES.keys() - {"many"}:
        with pytest.raises(OSError, match=f"{name}: the address answered with a web page, not a picture"):
            read_bytes(f"{server}/page/{name}")
    assert read_bytes(f"{server}/page/many") == PAGES["many"]


def test_an_answer_that_there_is_nothing_says_so(server: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{server}/missing: the address answered 404, not found"):
        read_bytes(f"{server}/missing")


def test_an_address_that_never_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed.inputs.fetch.HTTP_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}/a.png"
        with pytest.raises(OSError, match=f"cannot read {uri}: .*Timeout"):
            read_bytes(uri)


def test_a_scheme_nobody_can_read_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot read nosuch:// addresses"):
        read_bytes("nosuch://bucket/x.jpg")

    def not_installed(scheme: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", not_installed)
    with pytest.raises(InputError, match="Install s3fs"):
        read_bytes("s3://bucket/x.jpg")
