"""Run the service for a long time: reload it again and again, and take away what it needs.

    python benchmarks/endurance.py --photos ../shared/data/photos [--only reloads|steady|losses] [--quick]

Each part starts `python -m runtime serve` at int8 with the bundle of serve.py; load.py loads it from a separate
process.

    reloads     the bundle is reloaded 100 times under 4 clients: the memory of all processes after the last reload
                compared with that after the first two (wanted: within 10 %)
    steady      half of the load that 64 clients have just reached, in an open loop for 30 minutes: memory in the last
                tenth of that time compared with the second tenth (wanted: within 5 %), and the status of every answer
    losses      under 8 clients: a catalogue that gets new counts each second and is reloaded and searched; the
                bundle's folder removed, which a reload must report; and no space for temporary files, while JPEGs of 12
                megapixels, which need such files, are sent too: only these may get 507. The last one mounts a small
                file system, which needs root; without root it is left out, with a message

The last line of stdout is one JSON document; the exit code is 1 if one of these does not hold.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from catalogue_data import labels, made_data
from overload import memory_bytes, result, start
from pages import make_catalogue
from serve import Server, large_pictures, machine, make_bundle

ADMIN = "benchmark"
CATALOGUE = 20_000  # pictures
ROOM_BYTES = 64 << 20  # the size of the small file system, which is then filled


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """Return the status and the document of one answer."""
    import httpx

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=120) as client:
        answer = client.request(method, path, json=body, headers={"Authorization": f"Bearer {ADMIN}"})
        return answer.status_code, answer.json()


def measure_reloads(bundle: Path, photos: Path, reloads: int) -> dict[str, Any]:
    """Measure memory while there are no requests, because the old engine stays until its last one is answered."""
    with Server("plaudit", bundle, "int8", "--admin-token-file", str(admin_token(bundle))) as server:
        statuses, memory, most = Counter[int](), [], 0
        for some in (2, reloads - 2):
            load = start(server, "client", "--photos", str(photos), "--clients", "4", "--seconds", "100000")
            for _ in range(some):
                statuses[ask(server.port, "POST", "/admin/reload")[0]] += 1
                most = max(most, memory_bytes(server.process.pid))
            load.terminate()
            load.wait()
            time.sleep(5)
            memory.append(memory_bytes(server.process.pid))
    after_two, last = memory
    return {
        "reloads": dict(statuses),
        "memory_mb": {"after two": after_two >> 20, "most meanwhile": most >> 20, "last": last >> 20},
        "ratio": round(last / after_two, 3),
        "holds": set(statuses) == {200} and last <= 1.1 * after_two,
    }


def measure_steady(bundle: Path, photos: Path, seconds: float) -> dict[str, Any]:
    with Server("plaudit", bundle, "int8") as server:
        pictures = ["--photos", str(photos)]
        capacity = server.load(*pictures, "--clients", "64", "--seconds", "15")["requests_per_s"]
        client = start(server, "client", *pictures, "--rate", str(capacity / 2), "--seconds", str(seconds))
        memory = []
        while client.poll() is None:
            memory.append(memory_bytes(server.process.pid))
            time.sleep(1)
        found = result(client)
    tenth = max(1, len(memory) // 10)
    early, late = statistics.mean(memory[tenth : 2 * tenth]), statistics.mean(memory[-tenth:])
    return {
        "seconds": seconds,
        "capacity_per_s": capacity,
        "statuses": found["statuses"],
        "p99_ms": found["p99_ms"],
        "memory_mb": {"second tenth": int(early) >> 20, "last tenth": int(late) >> 20, "most": max(memory) >> 20},
        "ratio": round(late / early, 3),
        "holds": set(found["statuses"]) == {"200"} and late <= 1.05 * early,
    }


def measure_losses(bundle: Path, photos: Path, large: Path, seconds: float, work: Path) -> dict[str, Any]:
    own = work / "lost"
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(bundle, own / "bundle")
    make_catalogue(bundle, own / "catalogue", CATALOGUE)
    found: dict[str, Any] = {}
    token = str(admin_token(bundle))
    options = ("--catalogue", str(own / "catalogue"), "--admin-token-file", token)
    eight = ("--photos", str(photos), "--clients", "8", "--seconds")
    with Server("plaudit", own / "bundle", "int8", *options) as server:
        load = start(server, "client", *eight, str(seconds))
        found["a catalogue refreshed each second"] = searched(server, own / "catalogue", load) | {
            "scored": result(load)["statuses"]
        }
        load = start(server, "client", *eight, str(seconds / 2))
        shutil.move(own / "bundle", own / "elsewhere")
        status, said = ask(server.port, "POST", "/admin/reload")
        found["a bundle that is gone"] = {"reload": status, "said": said["error"]["message"]}
        found["a bundle that is gone"] |= {"scored": result(load)["statuses"]}
        shutil.move(own / "elsewhere", own / "bundle")
    with small_disk(work / "small-disk") as room:
        if room is None:
            found["no room for files"] = "not measured: mounting a file system takes root"
        else:
            os.environ["TMPDIR"] = str(room)
            with Server("plaudit", own / "bundle", "int8") as server:
                del os.environ["TMPDIR"]
                server.load(
                    "--photos", str(large), "--clients", "1", "--seconds", "2"
                )  # so that temporary files go there
                fill(room)
                load = start(server, "client", *eight, str(seconds / 2))
                heavy = server.load("--photos", str(large), "--clients", "2", "--seconds", str(seconds / 4))
                found["no room for files"] = {"large": heavy["statuses"], "scored": result(load)["statuses"]}
    cases = [case for case in found.values() if isinstance(case, dict)]
    found["holds"] = (
        all(set(case["scored"]) == {"200"} for case in cases)
        and set(found["a catalogue refreshed each second"]["found"]) == {200}
        and 400 <= status < 500
        and all(set(case.get("large", {})) <= {"200", "507"} for case in cases)
    )
    return found


def searched(server: Server, catalogue: Path, load: "subprocess.Popen[str]") -> dict[str, Any]:
    """Return statuses of searches while new counts come and the service reads them, until the load ends."""
    from runtime.catalogue.writer import refresh

    data = made_data(CATALOGUE, 512, 400)
    wish = {"likes": [{"id": "7.jpg"}], "k": 20}
    statuses, versions = Counter[int](), set()

    def search() -> None:
        while load.poll() is None:
            status, said = ask(server.port, "POST", "/v1/similar", wish)
            statuses[status] += 1
            versions.add(said["hits"][0]["count"] if status == 200 else None)

    searches = threading.Thread(target=search)
    searches.start()
    refreshes = 0
    while load.poll() is None:
        begin = time.monotonic()
        refreshes += 1
        refresh(catalogue, labels(data, refreshes))
        os.kill(server.process.pid, signal.SIGHUP)
        time.sleep(max(0.0, 1 - (time.monotonic() - begin)))
    searches.join()
    return {"refreshes": refreshes, "found": dict(statuses), "counts of the first hit": len(versions)}


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a file system of `ROOM_BYTES`, or give None if that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "benchmark", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Fill the disk to the last byte."""
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 65_536):
                pass
        except OSError:
            pass


def admin_token(bundle: Path) -> Path:
    path = bundle.parent / "admin-token"
    path.write_text(ADMIN)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--work", type=Path, default=Path("benchmark-serve"), help="where the bundle is kept")
    parser.add_argument("--only", choices=("reloads", "steady", "losses"))
    parser.add_argument("--minutes", type=float, default=30, help="minutes of steady load (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="10 reloads, and one minute of steady load")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    bundle = make_bundle(args.work, args.photos)
    large = large_pictures(args.work / "large", args.photos)
    found: dict[str, Any] = {"machine": machine()}
    if args.only in (None, "reloads"):
        found["reloads"] = measure_reloads(bundle, args.photos, 10 if args.quick else 100)
    if args.only in (None, "losses"):
        found["losses"] = measure_losses(bundle, args.photos, large, 10 if args.quick else 40, args.work)
    if args.only in (None, "steady"):
        found["steady"] = measure_steady(bundle, args.photos, 60 if args.quick else 60 * args.minutes)
    for name, values in found.items():
        print(f"{name}:", *(f"  {key}: {value}" for key, value in values.items()), sep="\n")
    print(json.dumps(found))
    return 0 if all(part.get("holds", True) for part in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
