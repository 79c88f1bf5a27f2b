"""Pictures by URL: only from hosts on the list, never from inside the network, whatever the name server says."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from embed.inputs.images import ImageError
from runtime.service.network import fetching
from runtime.service.network.fetching import Fetcher, is_public, resolve_host


@pytest.mark.parametrize("address", ["8.8.8.8", "151.101.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"),
        *("224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00:1::"),
        *("64:ff9b:1::7f00:1", "not an address", ""),
    ],
)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


class Pictures(BaseHTTPRequestHandler):
    done = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/picture")
            self.end_headers()
        elif self.path == "/slow":
            self.done.wait()
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(1000):
                    self.wfile.write(bytes(1000))
            except OSError:
                pass
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"picture of {self.headers['Host']}".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    Pictures.done.set()
    server.shutdown()
    thread.join()
    server.server_close()


async def loopback(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


def fetch(fetcher: Fetcher, url: str) -> bytes:
    return asyncio.run(fetcher.fetch(url))


@pytest.fixture
def allowing(port: int, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    """Fetches from pictures.example, which is this machine."""
    monkeypatch.setattr(fetching, "resolve_host", loopback)
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    return Fetcher([f"pictures.example:{port}"], 10_000, 60.0)


def test_fetches_by_the_name_from_the_address_that_was_checked(port: int, allowing: Fetcher) -> None:
    host = f"pictures.example:{port}"
    assert fetch(allowing, f"http://{host}/picture") == f"picture of {host}".encode()
    assert fetch(allowing, f"HTTP://PICTURES.example:{port}/picture").startswith(b"picture of ")


@pytest.mark.parametrize(
    ("path", "timeout_s", "reason", "detail"),
    [
        ("/redirect", 60.0, "fetch failed", "302"),
        ("/endless", 60.0, "too many bytes", "10000"),
        ("/slow", 0.5, "fetch failed", "took more than 0.5 s"),
    ],
)
def test_redirects_floods_and_silence_are_errors(
    port: int, allowing: Fetcher, path: str, timeout_s: float, reason: str, detail: str
) -> None:
    allowing._timeout_s = timeout_s
    with pytest.raises(ImageError) as caught:
        fetch(allowing, f"http://pictures.example:{port}{path}")
    assert caught.value.reason == reason and detail in caught.value.detail


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://other.example/a.png", "host not allowed"),
        ("http://pictures.example:81/a.png", "host not allowed"),
        ("http://pictures.example.evil.example/a.png", "host not allowed"),
        ("http://evil.example#@pictures.example/a.png", "host not allowed"),
        ("http://user:word@pictures.example/a.png", "bad url"),
        ("http://pictures.example@evil.example/", "bad url"),
        ("file:///etc/passwd", "bad url"),
        ("ftp://pictures.example/a.png", "bad url"),
        ("http:///a.png", "bad url"),
        ("http://pictures.example:99999/", "bad url"),
        ("http://[::1/", "bad url"),
        ("http://pictures.example/a\r\nHost: evil", "bad url"),
        ("", "bad url"),
    ],
)
def test_urls_that_are_not_even_looked_up(url: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(host: str, port: int) -> list[str]:
        raise AssertionError(f"{host} was looked up")

    monkeypatch.setattr(fetching, "resolve_host", never)
    with pytest.raises(ImageError) as caught:
        fetch(Fetcher(["pictures.example"], 100, 60.0), url)
    assert caught.value.reason == reason


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:10.0.0.1"], []])
def test_one_private_address_refuses_the_host(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return addresses

    monkeypatch.setattr(fetching, "resolve_host", resolve)
    with pytest.raises(ImageError, match="not a public host"):
        fetch(Fetcher(["pictures.example"], 100, 60.0), "http://pictures.example/a.png")


def test_a_listed_name_of_this_machine_is_refused_all_the_same(port: int) -> None:
    fetcher = Fetcher([f"localhost:{port}"], 100, 60.0)
    with pytest.raises(ImageError, match="not a public host"):
        fetch(fetcher, f"http://localhost:{port}/picture")


def test_resolve_gives_every_address_once() -> None:
    found = asyncio.run(resolve_host("127.0.0.1", 80))
    assert found == ["127.0.0.1"]
