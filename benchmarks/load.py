"""The other side of serve.py: a client that loads a service, and the naive service that one writes first.

    python benchmarks/load.py client PORT --photos FOLDER --clients 64 --seconds 10     each client sends when answered
    python benchmarks/load.py client PORT --photos FOLDER --rate 200 --seconds 60       sends so many a second, whatever
    python benchmarks/load.py naive BUNDLE PRECISION PORT

Each request is a form with one picture and one of 1,000 prompts. The client prints one JSON document: requests
answered 200 a second, p50 and p99 of those in ms, and answers by status.
"""

import argparse
import asyncio
import io
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PROMPTS = 1000
BOUNDARY = "boundary7d3f"


def form(prompt: str, picture: bytes) -> bytes:
    """A multipart body."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{prompt}\r\n--{BOUNDARY}\r\n'
    head += 'Content-Disposition: form-data; name="images"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    return head.encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()


async def load(port: int, photos: Path, clients: int, rate: float | None, seconds: float) -> dict[str, object]:
    """Load a service; a closed loop of `clients`, or an open one at `rate` a second."""
    import aiohttp

    pictures = [path.read_bytes() for path in sorted(photos.iterdir())]
    prompts = [f"picture number {i} of something that people like to look at" for i in range(PROMPTS)]
    chance = random.Random(0)
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    url = f"http://127.0.0.1:{port}/v1/score"
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def request(measured: bool) -> None:
            body = form(chance.choice(prompts), chance.choice(pictures))
            start = time.perf_counter()
            try:
                async with session.post(url, data=body, headers=headers) as response:
                    await response.read()
                    status = str(response.status)
            except (aiohttp.ClientError, TimeoutError) as error:
                status = type(error).__name__
            if measured:
                statuses[status] += 1
                if status == "200":
                    latencies.append(1000 * (time.perf_counter() - start))

        async def client(end: float, measured: bool) -> None:
            while time.monotonic() < end:
                await request(measured)

        begin = time.monotonic()
        if rate is None:
            warm_s = min(1.0, seconds / 5)  # connections and first runs are not measured
            await asyncio.gather(*(client(begin + warm_s, False) for _ in range(clients)))
            begin = time.monotonic()
            await asyncio.gather(*(client(begin + seconds, True) for _ in range(clients)))
        else:
            tasks = []
            for i in range(int(rate * seconds)):
                if (wait_s := begin + i / rate - time.monotonic()) > 0:
                    await asyncio.sleep(wait_s)
                tasks.append(asyncio.ensure_future(request(True)))
            await asyncio.gather(*tasks)
        elapsed_s = time.monotonic() - begin
    ordered = sorted(latencies)
    return {
        "requests_per_s": round(len(latencies) / elapsed_s, 2),
        "p50_ms": round(ordered[len(ordered) // 2], 1) if ordered else None,
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 1) if ordered else None,
        "statuses": dict(statuses),
    }


def naive(bundle_path: Path, precision: str, port: int) -> None:
    """One request, one run, in FastAPI's threads; decoding and model are plaudit's own."""
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
    server = commands.add_parser("naive")
    server.add_argument("bundle", type=Path)
    server.add_argument("precision")
    server.add_argument("port", type=int)
    args = parser.parse_args()
    if args.command == "naive":
        naive(args.bundle, args.precision, args.port)
    else:
        print(json.dumps(asyncio.run(load(args.port, args.photos, args.clients, args.rate, args.seconds))))


if __name__ == "__main__":
    main()
