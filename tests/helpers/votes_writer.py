"""Votes on showings that are there, written by several threads; what was acknowledged is printed, a line each.

python votes_writer.py DATABASE THREADS < ids of showings
"""

import sys
import threading
from functools import partial
from queue import Empty, SimpleQueue

from runtime.collect.database import open_database
from runtime.collect.ledger import Vote, cast_vote


def main(where: str, threads: int) -> None:
    ids: SimpleQueue[str] = SimpleQueue()
    for line in sys.stdin:
        ids.put(line.strip())
    database = open_database(where)
    lock = threading.Lock()

    def write() -> None:
        while True:
            try:
                showing = ids.get_nowait()
            except Empty:
                return
            vote = Vote(showing, "left", None, 1.0, "", 0.0)
            database.write(partial(cast_vote, vote=vote, voter=None))
            with lock:
                print(showing, flush=True)

    writers = [threading.Thread(target=write) for _ in range(threads)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    database.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
