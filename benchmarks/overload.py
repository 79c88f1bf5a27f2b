"""Load the service with more than it can do: how many requests are answered or refused, how soon, and who suffers.

    python benchmarks/overload.py --photos ../shared/data/photos [--only rate|crowd|trouble] [--quick]

Each part starts `python -m runtime serve` at int8 with the bundle and the pictures of serve.py; load.py loads it from a
separate process.

    rate          twice the rate that 64 clients have just reached, in an open loop for --seconds, with the photos and
                  with JPEGs of 12 megapixels: answers by status, those within the deadline as a share of the capacity,
                  how long both health routes take meanwhile, how soon a single request is as quick as before, and the
                  memory of all processes
    crowd         how long a client with single pictures waits beside five who send 60 pictures again and again
    trouble       decoders are killed and stopped under 16 clients: no request may fail because of that

The last line of stdout is one JSON document.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from load import BOUNDARY, form
from serve import LOAD, Server, large_pictures, machine, make_bundle

CROWD, CROWD_PICTURES = 5, 60


def measure_rate(bundle: Path, photos: Path, seconds: float) -> dict[str, Any]:
    """Load the service with twice its capacity."""
    with Server("plaudit", bundle, "int8") as server:
        pictures = ["--photos", str(photos)]
        idle = server.load(*pictures, "--clients", "1", "--seconds", "3")
        capacity = server.load(*pictures, "--clients", "64", "--seconds", str(max(10, seconds / 4)))
        before = memory_bytes(server.process.pid)
        rate = 2 * capacity["requests_per_s"]
        options = [*pictures, "--rate", str(rate), "--seconds", str(seconds)]
        client = start(server, "client", *options, "--normal-ms", str(2 * idle["p50_ms"]))
        health = start(server, "health", "--seconds", str(seconds))
        memory = []
        while client.poll() is None:
            memory.append(memory_bytes(server.process.pid))
            time.sleep(0.5)
        overload, healthy = result(client), result(health)
        third = len(memory) // 3
        return {
            "idle_p50_ms": idle["p50_ms"],
            "capacity_per_s": capacity["requests_per_s"],
            "capacity_statuses": capacity["statuses"],
            "offered_per_s": rate,
            "goodput": round(overload["in_time_per_s"] / capacity["requests_per_s"], 3),
            "statuses": overload["statuses"],
            "answered_p50_ms": overload["p50_ms"],
            "answered_p99_ms": overload["p99_ms"],
            "recovered_s": overload["recovered_s"],
            "health": healthy,
            "memory_mb": {
                "idle": before >> 20,
                "first third": statistics.mean(memory[:third]) // 2**20,
                "last third": statistics.mean(memory[-third:]) // 2**20,
            },
        }


def start(server: Server, *command: str) -> "subprocess.Popen[str]":
    """Start load.py in a separate process beside the service."""
    name, *options = command
    return subprocess.Popen(
        [sys.executable, str(LOAD), name, str(server.port), *options], stdout=subprocess.PIPE, text=True
    )


def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Return what it prints at the end."""
    lines = process.communicate()[0].splitlines()
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def ask(port: int, pictures: list[bytes]) -> tuple[int, float]:
    """Return the status of a request of one client, and the seconds that it took."""
    first, *others = pictures
    _, head, tail = b"", *form("a cat", first)[::2]
    part = b'\r\n--%s\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n' % BOUNDARY.encode()
    body = head.partition(b"\r\n\r\n")[2] + first + b"".join(part + picture for picture in others) + tail
    start = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/v1/score", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
        return connection.getresponse().status, time.monotonic() - start
    finally:
        connection.close()


def measure_crowd(bundle: Path, photos: Path, seconds: float) -> dict[str, Any]:
    """Return how long a client with single pictures waits, alone and beside the crowd."""
    pictures = [path.read_bytes() for path in sorted(photos.iterdir())]
    over = threading.Event()
    crowd: list[int] = []

    def send(many: list[bytes]) -> None:
        while not over.is_set():
            status, _ = ask(server.port, many)
            crowd.append(status)
            if status != 200:
                time.sleep(1)

    def single(for_s: float) -> list[tuple[int, float]]:
        end, found = time.monotonic() + for_s, []
        while time.monotonic() < end:
            found.append(ask(server.port, pictures[:1]))
        return found

    with Server("plaudit", bundle, "int8", "--max-queue", "512", "--deadline", "60") as server:
        alone = single(3)
        many = [pictures[i * CROWD_PICTURES % 80 :][:CROWD_PICTURES] for i in range(CROWD)]
        threads = [threading.Thread(target=send, args=(one,)) for one in many]
        for thread in threads:
            thread.start()
        time.sleep(1)
        beside = single(seconds)
        over.set()
        for thread in threads:
            thread.join()
    return {
        "alone_p50_s": round(statistics.median(s for _, s in alone), 3),
        "beside_p50_s": round(statistics.median(s for _, s in beside), 3),
        "beside_statuses": counted([status for status, _ in beside]),
        "crowd_statuses": counted(crowd),
    }


def measure_trouble(bundle: Path, photos: Path, seconds: float) -> dict[str, Any]:
    """Return statuses under load while decoders are killed and stopped, one or all."""
    found: dict[str, Any] = {}
    with Server("plaudit", bundle, "int8") as server:
        for name, number, every in (
            ("one killed", signal.SIGKILL, False),
            ("all killed", signal.SIGKILL, True),
            ("one stopped", signal.SIGSTOP, False),
            ("all stopped", signal.SIGSTOP, True),
        ):
            options = ("--photos", str(photos), "--clients", "16", "--seconds", str(seconds))
            client = start(server, "client", *options)
            time.sleep(seconds / 2)
            decoders = children(server.process.pid)
            for pid in decoders if every else decoders[:1]:
                os.kill(pid, number)
            found[name] = result(client)["statuses"]
    return found


def counted(values: list[int]) -> dict[str, int]:
    return {str(value): values.count(value) for value in sorted(set(values))}


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process and its children, with shared pages counted once."""
    total = 0
    for process in (pid, *children(pid)):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--work", type=Path, default=Path("benchmark-serve"), help="where the bundle is kept")
    parser.add_argument("--only", choices=("rate", "crowd", "trouble"))
    parser.add_argument("--seconds", type=float, default=120, help="seconds of each overload (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="20 seconds of each")
    args = parser.parse_args()
    seconds = 20 if args.quick else args.seconds
    args.work.mkdir(parents=True, exist_ok=True)
    bundle = make_bundle(args.work, args.photos)
    kinds = {"small": args.photos, "large": large_pictures(args.work / "large", args.photos)}
    found: dict[str, Any] = {"machine": machine()}
    if args.only in (None, "rate"):
        for name, photos in kinds.items():
            found[f"rate, {name}"] = measure_rate(bundle, photos, seconds)
    if args.only in (None, "crowd"):
        found["crowd"] = measure_crowd(bundle, args.photos, seconds / 2)
    if args.only in (None, "trouble"):
        found["trouble"] = measure_trouble(bundle, args.photos, min(20, seconds))
    for name, values in found.items():
        print(f"{name}:", *(f"  {key}: {value}" for key, value in values.items()), sep="\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
