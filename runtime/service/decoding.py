"""Pictures of strangers decoded in worker processes, so that a decoder that crashes or hangs costs one picture.

Each worker is a process and a thread here that hands it one picture at a time. A worker that dies or stalls is
replaced, and its picture tried once more in a fresh one, since a process may die of its neighbours' memory. Workers
answer with plain bytes that are never unpickled. Knows no model and no network.
"""

import contextlib
import json
import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from embed.inputs.images import ImageError, Limits, load_pixels
from embed.process.child import silence_libraries
from embed.spec import Preprocess

ATTEMPTS = 2
START_S = 60.0  # to start a process on a machine that is busy

Decoded = NDArray[np.uint8] | ImageError


class Decoders:
    """`count` worker processes until `close`; the processes are started at once, side by side."""

    def __init__(self, count: int, limits: Limits, stall_s: float, replaced: Callable[[], None] = lambda: None) -> None:
        self.limits = limits
        self._stall_s = stall_s
        self._replaced = replaced
        self._lock = threading.Lock()
        self._idle = [_Worker() for _ in range(count)]
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decoder")

    def submit(self, data: bytes, spec: Preprocess) -> "Future[Decoded]":
        """Pixels (h, w, 3) for the backbone, or what is wrong with the picture. Cancelled, it is not decoded."""
        return self._threads.submit(self._decode, data, spec)

    def close(self) -> None:
        """Drop what waits, finish what runs, end the processes."""
        self._threads.shutdown(cancel_futures=True)
        while self._idle:
            self._idle.pop().stop()

    def _decode(self, data: bytes, spec: Preprocess) -> Decoded:
        if len(data) > self.limits.max_bytes:  # not worth sending
            return ImageError("limits", "too many bytes", f"{len(data)}, at most {self.limits.max_bytes} allowed")
        with self._lock:
            worker = self._idle.pop()  # as many workers as threads: there is one
        try:
            for _ in range(ATTEMPTS):
                answer = worker.decode(data, spec, self.limits, self._stall_s)
                if answer is not None:
                    return answer
                worker.stop()
                self._replaced()
        finally:
            with self._lock:
                self._idle.append(worker)
        return ImageError("decode", "the decoder crashed or stalled")


class _Worker:
    """The parent's side of one process, which is started again when it is needed after `stop`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        # Spawned, not forked: the parent has threads.
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self.connection, self.process, self.greeted = connection, process, False

    def decode(self, data: bytes, spec: Preprocess, limits: Limits, stall_s: float) -> Decoded | None:
        """None where the process died or stalled."""
        try:
            if self.connection.closed:
                self.start()
            if not self.greeted:
                if not self.connection.poll(START_S):
                    return None
                self.connection.recv_bytes()
                self.greeted = True
            self.connection.send((data, spec, limits))
            if not self.connection.poll(stall_s):
                return None
            answer = self.connection.recv_bytes()
        except (EOFError, OSError):
            return None
        if answer[:1] == b"{":
            return ImageError(**json.loads(answer))
        return np.frombuffer(answer, np.uint8, offset=1).reshape(*spec.size, 3)

    def stop(self) -> None:
        if not self.connection.closed:
            self.connection.close()
            self.process.kill()
            self.process.join()
            self.process.close()


def _serve(connection: Connection) -> None:
    """The worker: a picture in, an answer out, until the parent goes away."""
    for number in (signal.SIGINT, signal.SIGHUP):  # sent to the process group, they are the parent's to handle
        signal.signal(number, signal.SIG_IGN)
    silence_libraries()
    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send_bytes(b"started")
        while True:
            data, spec, limits = connection.recv()
            try:
                pixels, _ = load_pixels(data, spec, limits)
                connection.send_bytes(b"=" + pixels.tobytes())
            except ImageError as error:
                fields = {"stage": error.stage, "reason": error.reason, "detail": error.detail}
                connection.send_bytes(json.dumps(fields).encode())
