"""The state of a running service: its processes, engine and counters.

Knows no route.
"""

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from importlib.metadata import version

from starlette.requests import Request

from embed.engines.sessions import resolve_providers
from embed.inputs.decoding import Decoders
from embed.inputs.images import ImageError
from embed.ort import require_onnxruntime
from embed.spec import InputError
from embed.wording import one_line
from runtime.config import ServiceConfig
from runtime.scoring.graphs import BATCH
from runtime.scoring.scorer import Scorer
from runtime.service.answering.engine import Engine, EngineRoom, Sizes
from runtime.service.network.errors import without_paths, without_places
from runtime.service.network.fetching import Fetcher
from runtime.service.network.front import Gate, log, request_id_now
from runtime.service.network.metrics import Metrics, Stage
from runtime.service.network.tracing import Tracing, provider_from_environment
from runtime.service.network.turns import BYTE_S, Job, Turns

READY_S = 5.0  # how long a successful check of readiness is valid
LOOK_S = 0.01  # time between two checks for work that it must wait for


def sizes(config: ServiceConfig, cores: int) -> Sizes:
    """The sizes from the configuration, with good defaults for the rest.

    On a CPU, runs of more than a few items are not faster. Threads of one run wait for each other at every operator,
    and the core of one may be busy with decoding, so several runs of few threads each lose less time than one run of
    many threads. But a single run uses all cores; otherwise the first client of a quiet hour would wait for one core
    while the others are idle.
    """
    available = require_onnxruntime().get_available_providers()
    if resolve_providers(config.providers, available)[0][0] != "CPUExecutionProvider":
        threads = config.threads or cores
        return Sizes(config.max_batch or BATCH, config.streams or 1, threads, threads)
    streams = config.streams or max(1, cores // (config.threads or min(4, (cores + 1) // 2)))
    threads = config.threads or max(1, cores // streams)
    return Sizes(config.max_batch or 8, streams, threads, config.threads or cores)


class Service:
    """Everything that exists as long as the process: decoders, the current engine, counters."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self._use = sizes(config, os.cpu_count() or 1)
        # Enough items under way that no decoder and no stream is idle, and if batches are quick enough for a whole
        # batch.
        decoding, streams = config.decoders + 1, self._use.streams
        least, most = decoding + 2 * streams, decoding + (streams + 1) * self._use.max_batch
        self.turns = Turns(decoding, least, max(least, most), config.deadline_s)
        self.gate = Gate(config.max_queue, config.max_pending_bytes, self.turns.busy)
        # Half of the deadline, so that a host that hangs fails its item and not the whole request.
        self.fetcher = Fetcher(config.url_hosts, config.limits.max_bytes, config.deadline_s / 2)
        # A picture that takes longer fails alone, so that the others of its request still have time.
        stall_s = config.deadline_s / 3
        self.tracing = Tracing(provider_from_environment())
        self.decoders = Decoders(config.decoders, config.limits, stall_s, self._decoder_lost)
        try:
            self.room = EngineRoom(self._load)
        except BaseException:
            self.decoders.close()
            raise
        self.closers: list[Callable[[], None]] = []  # close what routes hold; called in a thread at the end
        self._draining = False
        self._proven_at = -math.inf
        self._proof: asyncio.Future[None] | None = None
        self._proving_since = -math.inf
        self._failure: Exception | None = None  # of the last check of readiness
        self.metrics.watch("items_under_way", "Items between arrival and answer", lambda: self.gate.items)
        self.metrics.watch("waiting_items", "Items that wait for their turn", lambda: len(self.turns))
        self.metrics.watch("batch_queue", "Items that wait for the session", lambda: len(self.room.engine.batcher))
        self.metrics.watch("pending_bytes", "Bytes of bodies under way", lambda: self.gate.bytes)
        versions = {"version": version("plaudit"), "onnxruntime": require_onnxruntime().__version__}
        self.metrics.inform("build", "What serves", lambda: versions)
        self.metrics.inform("bundle", "The bundle and catalogue that are served", lambda: self.room.engine.names_itself)
        gone = "Items whose client was gone, for the current engine"
        self.metrics.watch("dropped_items", gone, lambda: self.room.engine.batcher.dropped)

    @property
    def model(self) -> str:
        """The bundle's name for clients: that of its folder, which stays the same if a link is pointed to another
        bundle."""
        return os.path.basename(os.path.abspath(self.config.bundle))

    @property
    def started(self) -> dict[str, object]:
        """What the log says when the service starts, so that one can later see what was running."""
        use = {"streams": self._use.streams, "threads": self._use.threads, "decoders": self.config.decoders}
        return {"version": version("plaudit"), **self.room.engine.in_force, **use, "tokens": len(self.config.tokens)}

    def told(self, error: Exception) -> str:
        """The text of an error for clients, without the paths of bundle and catalogue on this machine."""
        known = [path for path in (self.config.bundle, self.config.catalogue) if path is not None]
        if isinstance(error, OSError) and error.filename:
            return f"{os.path.basename(str(error.filename))}: {error.strerror}"
        text = without_places(one_line(error), known)
        return text if isinstance(error, InputError) else without_paths(text)

    def _load(self) -> Engine:
        config, use = self.config, self._use
        scorer = Scorer.load(config.bundle, replace(config, threads=use.threads), config.limits)
        catalogue = None
        if config.catalogue is not None:
            from runtime.catalogue.reader import Catalogue

            catalogue = Catalogue.open(config.catalogue)
        observe = self.metrics.observe_batch
        return Engine(scorer, catalogue, self.decoders, self.fetcher, self.turns, use, observe, self._stage)

    @asynccontextmanager
    async def work(self, request: Request, items: int, size_bytes: int) -> AsyncIterator[tuple[Engine, Job]]:
        """The current engine and turns for a request's items, whose pictures have `size_bytes` in total.

        Raise Problem 429 if that is too much.
        """
        with self.gate.admit(items=items):
            async with self.room.use() as engine:
                cost_s = items * engine.item_s + size_bytes * BYTE_S
                with self.turns.admit(request.state.caller, items, cost_s) as job:
                    yield engine, job

    def _decoder_lost(self) -> None:
        self.metrics.decoders_replaced.inc()
        log.warning("a decoder died or stalled", extra={"fields": {"request_id": request_id_now.get()}})

    @contextmanager
    def _stage(self, name: Stage) -> Iterator[None]:
        """Measure the block as a stage of one item, and make it a span in the request's trace."""
        with self.tracing.span(name), self.metrics.stage_s.labels(name).time():
            yield

    async def reload(self) -> Engine:
        """Load bundle and catalogue again. If that fails, log and raise the error, and keep the old ones."""
        try:
            engine = await self.room.reload()
        except Exception as error:
            self.metrics.reloads.labels("failed").inc()
            log.error("reload failed", extra={"fields": {"error": str(error)}})
            raise
        self._proven_at = -math.inf
        self.metrics.reloads.labels("done").inc()
        log.info("reloaded", extra={"fields": engine.in_force})
        return engine

    def drain(self) -> None:
        """Stop being ready, so that load balancers send no new work. Requests that still come are served."""
        self._draining = True
        log.info("draining", extra={"fields": {"requests": self.gate.requests}})

    async def ready(self) -> None:
        """Raise an error if this process cannot serve. A successful check is valid for READY_S.

        A check waits behind work that is under way. While there is work, the last check stays valid until the next one
        has taken longer than a deadline: callers should not wait, and a busy service is still ready.
        """
        if self._draining:
            raise RuntimeError("the service is shutting down")
        now = time.monotonic()
        if now - self._proven_at <= READY_S:
            return
        if self._proof is None or self._proof.done():
            self._proof, self._proving_since = asyncio.ensure_future(self._prove()), now
        patient = now - self._proving_since <= self.config.deadline_s
        excused = patient and self._failure is None and self._proven_at > -math.inf
        while not self._proof.done():
            if excused and not self.turns.idle:
                return
            await asyncio.wait({self._proof}, timeout=LOOK_S)
        self._proof.result()

    async def _prove(self) -> None:
        try:
            async with self.room.use() as engine:
                await engine.probe()
        except Exception as error:
            self._failure = error
            log.error("not ready", extra={"fields": {"error": one_line(error)}})
            raise
        self._failure, self._proven_at = None, time.monotonic()

    async def close(self) -> None:
        await self.room.close()
        for closer in (*self.closers, self.decoders.close):
            await asyncio.to_thread(closer)
        await asyncio.to_thread(self.tracing.close)

    def count(self, outcomes: Sequence[object]) -> dict[str, int]:
        """Count the items of an answer in the metrics, and return the fields for the log."""
        errors = [outcome for outcome in outcomes if isinstance(outcome, ImageError)]
        for error in errors:
            self.metrics.decode_errors.labels(error.stage, error.reason).inc()
        self.metrics.items.labels("error").inc(len(errors))
        self.metrics.items.labels("ok").inc(len(outcomes) - len(errors))
        return {"items": len(outcomes), "errors": len(errors)}
