"""Cases of bodies that are hard to read, or for which there is no room."""

import json
import struct
import tempfile
import zlib
from pathlib import Path

from benchmarks.attacks.service import AUTHORIZED, JSON, LARGE, Service, Skipped, picture, scoring

FORM = {**AUTHORIZED, "Content-Type": "multipart/form-data; boundary=x"}


def many_values(service: Service) -> str | None:
    bodies = [
        b'{"prompt":"a","images":[' + b"1," * 500_000 + b"1]}",
        b'{"prompt":"a","images":[' + b'"",' * 300_000 + b'""]}',
        b"{" + b",".join(b'"k%d":1' % i for i in range(100_000)) + b"}",
        b'{"images":' + b"[" * 1_000_000,
        b'{"prompt":' + b"1" * 30_000_000 + b"}",
    ]
    statuses = {service.ask("POST", "/v1/score", body, JSON)[0] for body in bodies}
    return None if statuses == {422} else f"answered {statuses}"


def odd_forms(service: Service) -> str | None:
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n'
    kinds = [
        "multipart/form-data; boundary=x; charset=undefined",
        "multipart/form-data",
        "multipart/form-data; boundary=",
    ]
    found = {service.ask("POST", "/v1/score", body, {**AUTHORIZED, "Content-Type": kind})[0] // 100 for kind in kinds}
    return None if found == {4} else f"answered with {found}"


def odd_filters(service: Service) -> str | None:
    """Filter by integers beyond 64 bits, which are compared as numbers, and by very many parentheses."""
    huge = 10**30
    wanted = {  # the status, and the number of hits
        f"count < {huge}": (200, 5),
        f"count > -{huge}": (200, 5),
        f"count > {huge}": (200, 0),
        f"width in ({huge}, -{huge}, {2**63}, {2**64})": (200, 0),
        f"width < {2**63}": (200, 5),
        f"width <= -{2**63 + 1}": (200, 0),
        f"width < 1{'0' * 1000}": (200, 5),
        "(" * 250 + "count >= 0" + ")" * 250: (422, 0),
        "(" * 250: (422, 0),
        "not " * 250 + "count >= 0": (422, 0),
    }
    wrong = {}
    for where, expected in wanted.items():
        body = json.dumps({"likes": [{"text": "a cat"}], "k": 5, "where": where}).encode()
        status, answer = service.ask("POST", "/v1/similar", body, JSON)
        found = (status, len(json.loads(answer)["hits"]) if status == 200 else 0)
        if found != expected:
            wrong[where[:40]] = found, answer[:200]
    return f"answered {wrong}" if wrong else None


def full_disk(service: Service) -> str | None:
    """Send a form whose file needs the temporary folder, which is full, and again when it is not."""
    from benchmarks.endurance import fill, small_disk

    large = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n'
    large += b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    large += picture(*LARGE) + b"\r\n--x--\r\n"
    with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder)) as room:
        if room is None:
            raise Skipped("mounting a file system takes root")
        with service.another(environment={"TMPDIR": str(room)}) as own:
            before = own.ask("POST", "/v1/score", large, FORM)[0]
            fill(room)
            status, answer = own.ask("POST", "/v1/score", large, FORM)
            others = own.score()
            (room / "filler").unlink()
            after = own.ask("POST", "/v1/score", large, FORM)[0]
    if (before, status, others, after) == (200, 507, 200, 200) and b"takes no more files" in answer:
        return None
    return f"answered {before}, then {status} {answer[:200]!r}, others {others}, then {after}"


def slow_tiff(service: Service) -> str | None:
    data = zlib.compress(bytes(16 << 21))
    tags = {256: (4, 4096), 257: (4, 16), 258: (3, 8), 259: (3, 8), 262: (3, 1), 277: (3, 1),
            322: (4, 16), 323: (4, 1 << 21), 324: (4, 8), 325: (4, len(data))}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(tags.items()))
    tiff = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    status, answer = service.ask("POST", "/v1/score", scoring(tiff, picture()), JSON)
    good = [item["ok"] for item in json.loads(answer)["items"]] if status == 200 else status
    return None if good == [False, True] else f"answered {good}"
