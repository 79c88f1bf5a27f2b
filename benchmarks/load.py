"""Used by serve.py and overload.py: a client that loads a service, and a naive service to compare with.

    python benchmarks/load.py client PORT --photos FOLDER --clients 64 --seconds 10     each client waits for its answer
    python benchmarks/load.py client PORT --photos FOLDER --rate 200 --seconds 60       sends this many a second anyway
    python benchmarks/load.py health PORT --seconds 60                                  requests health all the time
    python benchmarks/load.py naive BUNDLE PRECISION PORT

Each request is a form with one picture and one of 1,000 prompts. Clients of the closed loop wait as Retry-After says.
The client does little work, because it shares the machine with the service. It prints one JSON document: requests a
second that were answered with 200, and those within the deadline; p50 and p99 of these in ms; answers by status; and
after an open loop, how long it took until a single request was answered within --normal-ms again.
"""

import argparse
import asyncio
import io
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PROMPTS = 1000
BOUNDARY = "boundary7d3f"
TIMEOUT_S = 60.0
QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}
AFTER_S = 20.0  # how long single requests are sent after an open loop, at most


class Connection(asyncio.Protocol):
    """Sends one request at a time, in parts that are not copied, and reads status and Retry-After of the answer."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.data = bytearray()
        self.answer: asyncio.Future[tuple[int, float]] | None = None

    def ask(self, parts: list[bytes]) -> "asyncio.Future[tuple[int, float]]":
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.writelines(parts)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, body = bytes(self.data).partition(b"\r\n\r\n")
        if not found or self.answer is None or self.answer.done():
            return
        lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
        headers = {name: value.strip() for name, _, value in lines}
        if len(body) >= int(headers[b"content-length"]):
            self.data.clear()
            self.answer.set_result((int(head[9:12]), float(headers.get(b"retry-after", 0))))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionResetError("the connection was closed without an answer"))


class Client:
    """Keeps connections open and uses them again, as many as there are requests at a time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[Connection] = []

    async def ask(self, parts: list[bytes]) -> tuple[str, float]:
        """Return the status, or what went wrong, and the seconds to wait before trying again."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                self.idle = [connection for connection in self.idle if not connection.transport.is_closing()]
                if self.idle:
                    connection = self.idle.pop()
                else:
                    loop = asyncio.get_running_loop()
                    _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
                status, retry_s = await connection.ask(parts)
        except (OSError, TimeoutError) as error:
            return type(error).__name__, 0.0
        if connection.transport.get_write_buffer_size():
            connection.transport.close()  # after sending the rest, which was not waited for
        elif not connection.transport.is_closing():
            self.idle.append(connection)
        return str(status), retry_s


def form(prompt: str, picture: bytes) -> list[bytes]:
    """Return a request with a multipart body, in parts."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{prompt}\r\n--{BOUNDARY}\r\n'
    head += 'Content-Disposition: form-data; name="images"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    tail = f"\r\n--{BOUNDARY}--\r\n"
    request = (
        f"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(head) + len(picture) + len(tail)}\r\n"
    )
    request += f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    return [(request + head).encode(), picture, tail.encode()]


async def load(
    port: int, photos: Path, clients: int, rate: float | None, seconds: float, deadline_s: float, normal_ms: float
) -> dict[str, object]:
    """Load a service with a closed loop of `clients`, or an open loop of `rate` requests a second."""
    pictures = [path.read_bytes() for path in sorted(photos.iterdir())]
    prompts = [f"picture number {i} of something that people like to look at" for i in range(PROMPTS)]
    chance = random.Random(0)
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    service = Client(port)

    async def request(measured: bool = True) -> tuple[str, float]:
        start = time.perf_counter()
        status, retry_s = await service.ask(form(chance.choice(prompts), chance.choice(pictures)))
        if measured:
            statuses[status] += 1
            if status == "200":
                latencies.append(1000 * (time.perf_counter() - start))
        return status, retry_s

    async def client(end: float, measured: bool) -> None:
        while time.monotonic() < end:
            await asyncio.sleep((await request(measured))[1])

    async def lone() -> float | None:
        """Return the seconds from now until a single request is answered as quickly as without load."""
        begin = time.monotonic()
        while (start := time.monotonic()) < begin + AFTER_S:
            if (await request(False))[0] == "200" and 1000 * (time.monotonic() - start) <= normal_ms:
                return round(start - begin, 2)
            await asyncio.sleep(0.05)
        return None

    begin = time.monotonic()
    recovered_s = None
    if rate is None:
        warm_s = min(1.0, seconds / 5)  # the first connections and runs are not measured
        await asyncio.gather(*(client(begin + warm_s, False) for _ in range(clients)))
        begin = time.monotonic()
        await asyncio.gather(*(client(begin + seconds, True) for _ in range(clients)))
        elapsed_s = time.monotonic() - begin
    else:
        tasks = []
        for i in range(int(rate * seconds)):
            if (wait_s := begin + i / rate - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            tasks.append(asyncio.ensure_future(request()))
        elapsed_s = time.monotonic() - begin
        recovered_s = await lone()
        await asyncio.gather(*tasks)
    ordered = sorted(latencies)
    return {
        "requests_per_s": round(len(latencies) / elapsed_s, 2),
        "in_time_per_s": round(sum(ms <= 1000 * deadline_s for ms in latencies) / elapsed_s, 2),
        "p50_ms": round(ordered[len(ordered) // 2], 1) if ordered else None,
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 1) if ordered else None,
        "statuses": dict(statuses),
        "recovered_s": recovered_s,
    }


async def health(port: int, seconds: float) -> dict[str, object]:
    """Measure how long both health routes take, in ms, with twenty requests a second on separate connections."""
    paths = ("/health/live", "/health/ready")
    found: dict[str, list[float]] = {path: [] for path in paths}
    statuses: Counter[str] = Counter()

    async def ask(path: str) -> None:
        service, end = Client(port), time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.perf_counter()
            status, _ = await service.ask([f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()])
            found[path].append(1000 * (time.perf_counter() - start))
            statuses[status] += 1
            await asyncio.sleep(0.05)

    await asyncio.gather(*map(ask, paths))
    ms = {}
    for path, all_ms in found.items():
        ordered = sorted(all_ms)
        ms[path] = {name: round(ordered[int(q * (len(ordered) - 1))], 1) for name, q in QUANTILES.items()}
    return {"ms": ms, "statuses": dict(statuses)}


def naive(bundle_path: Path, precision: str, port: int) -> None:
    """Serve one request with one run, in FastAPI's threads; decoding and model are plaudit's own."""
    import numpy as np
    import onnxruntime
    import uvicorn
    from fastapi import FastAPI, File, Form, UploadFile
    from PIL import Image

    from embed.inputs.pixels import preprocess
    from runtime.scoring.bundle import open_bundle

    bundle = open_bundle(bundle_path)
    graph = bundle_path / bundle.graph(precision, "model").file
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    tokenizer = bundle.tokenizer()
    app = FastAPI()

    @app.get("/health/live")
    def live() -> dict[str, str]:
        return {"status": "live"}

    @app.post("/v1/score")
    def score(images: UploadFile = File(), prompt: str = Form()) -> dict[str, float]:  # noqa: B008
        pixels = preprocess(Image.open(io.BytesIO(images.file.read())), bundle.identity.preprocess)
        outputs = session.run(["score"], {"pixels": np.stack([pixels]), "tokens": tokenizer([prompt])})
        return {"score": float(outputs[0][0])}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    client = commands.add_parser("client")
    client.add_argument("port", type=int)
    client.add_argument("--photos", type=Path, required=True)
    client.add_argument("--clients", type=int, default=64)
    client.add_argument("--rate", type=float)
    client.add_argument("--seconds", type=float, default=10)
    client.add_argument("--deadline-s", type=float, default=10)
    client.add_argument("--normal-ms", type=float, default=float("inf"))
    healthy = commands.add_parser("health")
    healthy.add_argument("port", type=int)
    healthy.add_argument("--seconds", type=float, default=10)
    server = commands.add_parser("naive")
    server.add_argument("bundle", type=Path)
    server.add_argument("precision")
    server.add_argument("port", type=int)
    args = parser.parse_args()
    if args.command == "naive":
        naive(args.bundle, args.precision, args.port)
    else:
        options = vars(args)
        measure: Callable[..., Coroutine[Any, Any, dict[str, object]]] = {"client": load, "health": health}[
            options.pop("command")
        ]
        print(json.dumps(asyncio.run(measure(**options))))


if __name__ == "__main__":
    main()
