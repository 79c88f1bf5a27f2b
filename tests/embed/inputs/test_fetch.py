"""Bytes by URI: local paths, fsspec's memory file system, and a web server on this machine."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fsspec
import pytest

from embed.inputs.fetch import local_stat, read_bytes
from embed.spec import InputError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a b%20é.jpg"
    path.write_bytes(b"0123456789")
    return path


class Handler(BaseHTTPRequestHandler):
    """/pieces sends its ten bytes in two writes, /short fewer than it promises, /endless never stops."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
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


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
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
    with pytest.raises(OSError, match="no regular file"):
        read_bytes(str(tmp_path / "pipe"))
    with pytest.raises(IsADirectoryError):
        read_bytes(str(tmp_path))
    # A file that lies about its length is read up to the limit only.
    with pytest.raises(OSError, match="no regular file"):
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


def test_a_scheme_nobody_can_read_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot read nosuch:// addresses"):
        read_bytes("nosuch://bucket/x.jpg")

    def not_installed(scheme: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", not_installed)
    with pytest.raises(InputError, match="Install s3fs"):
        read_bytes("s3://bucket/x.jpg")
