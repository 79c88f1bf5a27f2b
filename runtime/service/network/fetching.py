"""Fetch pictures by URL, only from hosts that the operator named, and never from private networks.

A URL is fetched only if its host is on the list, its scheme is http or https, and all addresses of the name are public.
The connection is then made to a checked address and not to the name, so that a changed answer of the name server has no
effect. Redirects are not followed. Knows no model and decodes nothing.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from embed.inputs.images import ImageError

if TYPE_CHECKING:
    import httpcore

PORTS = {"http": 80, "https": 443}
SLOTS = 8
NAT64 = ipaddress.ip_network("64:ff9b::/96")


async def resolve_host(host: str, port: int) -> list[str]:
    """All addresses of the host. Raise OSError if it has none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether an IP address is public: not private, loopback, link-local, multicast or reserved.

    An IPv4 address inside an IPv6 one (mapped, 6to4, NAT64) is checked itself.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class Fetcher:
    """Fetches pictures from `hosts`. Each is a name, or name:port if the port is not the scheme's default."""

    def __init__(self, hosts: Collection[str], max_bytes: int, timeout_s: float) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self.slots = asyncio.Semaphore(SLOTS)  # callers hold one as long as they have a picture

    async def fetch(self, url: str) -> bytes:
        """The picture's bytes. Raise ImageError if the URL is not allowed or gives no picture."""
        host, port = self._checked(url)
        try:
            async with asyncio.timeout(self._timeout_s):
                addresses = await resolve_host(host, port)
                if not addresses or not all(map(is_public, addresses)):
                    raise ImageError("read", "host not allowed", f"{host} is not a public host")
                return await self._get(url, addresses[0])
        except TimeoutError:
            raise ImageError("read", "fetch failed", f"{host} took more than {self._timeout_s:g} s") from None
        except OSError as error:
            raise ImageError("read", "fetch failed", f"{host}: {error.strerror or error}") from None

    def _checked(self, url: str) -> tuple[str, int]:
        try:
            parts: SplitResult = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise ImageError("read", "bad url", str(error)) from None
        if parts.scheme not in PORTS or not host or not url.isascii() or not url.isprintable() or " " in url:
            raise ImageError("read", "bad url", "wanted http:// or https:// and a host, in ASCII")
        if parts.username is not None or parts.password is not None:
            raise ImageError("read", "bad url", "URLs with user names or passwords are not allowed")
        usual = PORTS[parts.scheme]
        named = host if port in (None, usual) else f"{host}:{port}"
        if named not in self._hosts:
            raise ImageError("read", "host not allowed", f"{named} is not on this service's list of hosts")
        return host, port or usual

    async def _get(self, url: str, address: str) -> bytes:
        import httpcore

        # httpcore follows no redirects, and ignores proxies in the environment.
        try:
            async with (
                httpcore.AsyncConnectionPool(network_backend=_pinned(address)) as pool,
                pool.stream("GET", url, headers={"Accept": "image/*", "User-Agent": "plaudit"}) as response,
            ):
                return await self._body(response)
        except ImageError:
            raise
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, ValueError) as error:
            raise ImageError("read", "fetch failed", f"{type(error).__name__}: {error}") from None

    async def _body(self, response: "httpcore.Response") -> bytes:
        if response.status != 200:
            raise ImageError("read", "fetch failed", f"the host answered {response.status}; wanted 200, no redirect")
        data = bytearray()
        async for chunk in response.aiter_stream():
            data += chunk
            if len(data) > self._max_bytes:
                raise ImageError("limits", "too many bytes", f"more than {self._max_bytes} bytes")
        return bytes(data)


def _pinned(address: str) -> Any:
    """A network backend for httpcore that connects to this address, even if the URL's name now has another."""
    import httpcore

    class Pinned(httpcore.AnyIOBackend):
        async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
            return await super().connect_tcp(address, port, *args, **options)

    return Pinned()
