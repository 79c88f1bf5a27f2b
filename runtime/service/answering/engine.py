"""Answer requests with a loaded bundle: pictures are decoded in processes, run in batches, and answered one by one.

An engine is a loaded version of the bundle, with the catalogue if the service has one. `EngineRoom` holds the current
engine and replaces it without dropping a request: requests that began with the old one end with it. Knows no HTTP.
"""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from embed.arrays import Float32s
from embed.files import content_id
from embed.inputs.decoding import Decoders
from embed.inputs.errors import BLAMED
from embed.inputs.images import ImageError
from embed.process.allocator import release_freed_memory
from embed.process.workers import NoProcess
from embed.spec import require_same_identity
from runtime.scoring.scorer import Scorer
from runtime.scoring.sources import SOURCE, of_source
from runtime.service.answering.batching import Batcher, Observe
from runtime.service.answering.requests import Picture, UrlPicture
from runtime.service.network.fetching import Fetcher
from runtime.service.network.metrics import Stage
from runtime.service.network.turns import Job, Turns

if TYPE_CHECKING:
    from runtime.catalogue.reader import Catalogue


Found = TypeVar("Found")


@dataclass(frozen=True)
class Work:
    """One item of a batch: a picture, a prompt or both, and whether to score it."""

    pixels: NDArray[np.uint8] | None = None
    prompt: str | None = None
    scored: bool = False
    source: NDArray[np.uint8] | None = None  # pixels of the source picture
    source_embedding: Float32s | None = None  # or the vector (d,) of the source picture


Outcome = dict[str, Any]  # vectors (d,) and the head's outputs, by name


@dataclass(frozen=True)
class Sizes:
    """How the session is used: items in a run, runs at the same time, threads of a run, and threads of a single run."""

    max_batch: int
    streams: int
    threads: int
    lone_threads: int


def run_batch(scorer: Scorer, works: Sequence[Work], threads: int | None = None) -> list[Outcome]:
    """The vectors and, if wanted, the head's outputs of each work, in as few runs as possible."""
    outcomes: list[Outcome] = [{} for _ in works]
    texts = [i for i, work in enumerate(works) if work.prompt is not None]
    text_embeddings = scorer.begin_prompts([str(works[i].prompt) for i in texts])
    pictures = {i: work.pixels for i, work in enumerate(works) if work.pixels is not None}
    sources = {i: work.source for i, work in enumerate(works) if work.source is not None}
    if pictures:
        both = [*pictures.values(), *sources.values()]
        for name, rows in scorer.encode_pixels(both, threads).items():
            for i, row in zip(pictures, rows, strict=False):
                outcomes[i][name] = row
            if name == "image_embedding":
                for i, row in zip(sources, rows[len(pictures) :], strict=True):
                    outcomes[i][SOURCE] = row
    if scorer.reads_source:
        none = np.zeros(scorer.identity.dim, np.float32)
        for work, outcome in zip(works, outcomes, strict=True):
            outcome.setdefault(SOURCE, none if work.source_embedding is None else work.source_embedding)
    for i, row in zip(texts, text_embeddings(), strict=True):
        outcomes[i]["text_embedding"] = row
    scored = [i for i, work in enumerate(works) if work.scored]
    if scored:
        features = {name: np.stack([outcomes[i][name] for i in scored]) for name in scorer.inputs}
        for name, values in scorer.score_vectors(features).items():
            for i, value in zip(scored, values, strict=True):
                outcomes[i][name] = float(value)
    return outcomes


class Engine:
    """A bundle that is loaded and checked by its own reference. It may be made in any thread, and is used from one
    event loop."""

    def __init__(
        self,
        scorer: Scorer,
        catalogue: "Catalogue | None",
        decoders: Decoders,
        fetcher: Fetcher,
        turns: Turns,
        use: Sizes,
        observe: Observe,
        stage: Callable[[Stage], AbstractContextManager[None]],
    ) -> None:
        if catalogue is not None:
            names = f"the catalogue {catalogue.path}", f"the bundle {scorer.bundle.path}"
            require_same_identity(catalogue.identity, names[0], scorer.identity, names[1])
        scorer.bundle.require_towers()
        self.scorer = scorer
        self.catalogue = catalogue
        scorer.check_reference()  # also opens every session
        with np.load(io.BytesIO(scorer.bundle.read("reference.npz")), allow_pickle=False) as reference:
            prompts = list(map(str, reference["prompts"])) if scorer.reads_text else [None] * len(reference["pixels"])
            sources = reference[SOURCE] if scorer.reads_source else [None] * len(prompts)
            self._reference = [
                Work(pixels, prompt, scored=True, source_embedding=source)
                for pixels, prompt, source in zip(reference["pixels"], prompts, sources, strict=True)
            ]
            self._reference_scores: Float32s = reference["score"]
        self._tolerance = scorer.bundle.manifest["reference"][scorer.precision]["score"]
        self._decoders = decoders
        self._fetcher = fetcher
        self.turns = turns
        self._stage = stage  # measures the stages of an item
        run_batch(scorer, self._reference, use.lone_threads)  # also opens the session for single runs
        scorer.release_weights()
        release_freed_memory()
        start = time.monotonic()
        run_batch(scorer, self._reference, use.lone_threads)
        self.item_s = (time.monotonic() - start) / len(self._reference)  # seconds of a run for each of its items

        def run(works: Sequence[Work]) -> list[Outcome]:
            return run_batch(scorer, works, use.lone_threads if self.batcher.lone else None)

        self.batcher: Batcher[Work, Outcome] = Batcher(run, use.max_batch, observe, use.streams)
        self._searches = ThreadPoolExecutor(2, thread_name_prefix="search")
        self.loaded_at = time.time()
        self.users = 0

    @property
    def has_text_tower(self) -> bool:
        """Whether prompts can be encoded."""
        return self.scorer.bundle.has_text_tower

    @property
    def names_itself(self) -> dict[str, str]:
        """The fields of every answer that tell its origin."""
        return {"bundle": self.scorer.bundle.digest, "precision": self.scorer.precision}

    @property
    def in_force(self) -> dict[str, object]:
        """What the log says about this engine: `names_itself`, the catalogue's version and its number of pictures."""
        if self.catalogue is None:
            return {**self.names_itself}
        return {**self.names_itself, "catalogue": self.catalogue.manifest["version"], "pictures": len(self.catalogue)}

    async def decoded(self, answer: "Future[Found | ImageError]") -> Found | ImageError:
        """The result of a decoder for a picture, or the picture's error."""
        with self._stage("decode"):
            try:
                return await asyncio.wrap_future(answer)
            except (
                NoProcess
            ) as error:  # processes are killed as they start, perhaps for lack of memory; a later one may succeed
                return ImageError("decode", BLAMED, str(error))

    async def _pixels(self, data: bytes) -> NDArray[np.uint8] | ImageError:
        """The pixels of a picture for the backbone, or its error."""
        spec, scale = self.scorer.identity.preprocess, self.scorer.bundle.scale
        return await self.decoded(self._decoders.submit(data, spec, scale))

    async def _batched(self, work: Work) -> Outcome:
        with self._stage("batch"):
            return await self.batcher.submit(work)

    async def score(
        self,
        job: Job,
        prompts: Sequence[str | None],
        pictures: Sequence[Picture],
        sources: Sequence[Picture | None] = (),
    ) -> list[dict[str, float] | ImageError]:
        """The outputs of the heads for each picture under its prompt, by their names in the graphs, or the picture's
        error."""
        found, names = await self.describe(job, prompts, pictures, sources), self.scorer.outputs
        return [one if isinstance(one, ImageError) else {name: one[name] for name in names} for one in found]

    async def describe(
        self,
        job: Job,
        prompts: Sequence[str | None],
        pictures: Sequence[Picture],
        sources: Sequence[Picture | None] = (),
    ) -> list[Outcome | ImageError]:
        """The same, with the vectors by name."""
        read = prompts if self.scorer.reads_text else [None] * len(pictures)
        each = zip(pictures, read, sources or [None] * len(pictures), strict=True)
        return await asyncio.gather(
            *(self._run(job, picture, prompt, scored=True, source=source) for picture, prompt, source in each)
        )

    async def embed_images(self, job: Job, pictures: Sequence[Picture]) -> list[Float32s | ImageError]:
        """The unit vector (d,) of each picture, or its error."""
        found = await asyncio.gather(*(self._run(job, picture) for picture in pictures))
        return [one if isinstance(one, ImageError) else one["image_embedding"] for one in found]

    async def embed_named(self, job: Job, picture: Picture) -> tuple[Float32s, str] | ImageError:
        """The picture's unit vector (d,) and the id of its content, or its error."""
        async with self.contents(picture) as (data,):
            assert data is not None
            (outcome,) = await self.embed_images(job, [data])
            if isinstance(outcome, ImageError):
                return outcome
            assert isinstance(data, bytes)
            return outcome, content_id(data)

    async def embed_prompts(self, job: Job, prompts: Sequence[str]) -> list[Float32s]:
        """The unit vector (d,) of each prompt."""
        outcomes = await asyncio.gather(*(self._run_prompt(job, prompt) for prompt in prompts))
        return [outcome["text_embedding"] for outcome in outcomes]

    async def _run(
        self,
        job: Job,
        picture: Picture,
        prompt: str | None = None,
        scored: bool = False,
        source: Picture | None = None,
    ) -> Outcome | ImageError:
        async with self.contents(picture, source) as (data, made_from):
            if isinstance(data, ImageError):
                return data
            if isinstance(made_from, ImageError):
                return of_source(made_from)
            assert data is not None
            async with self.turns.turn(job) as decoded:
                pixels = await self._pixels(data)
                if isinstance(pixels, ImageError):
                    return pixels
                of = None if made_from is None else await self._pixels(made_from)
                if isinstance(of, ImageError):
                    return of_source(of)
                decoded()
                return await self._batched(Work(pixels, prompt, scored, of))

    @asynccontextmanager
    async def contents(self, *pictures: Picture | None) -> AsyncIterator[list[bytes | ImageError | None]]:
        """Yield the bytes of each picture, fetched if it is a URL, or its error; None for None.

        Fetched pictures take memory that was not reserved when the request arrived, so only few requests fetch at a
        time.
        """
        linked = any(isinstance(picture, UrlPicture) for picture in pictures)
        async with self._fetcher.slots if linked else nullcontext():
            yield [await self._fetched(picture) for picture in pictures]

    async def _fetched(self, picture: Picture | None) -> bytes | ImageError | None:
        if not isinstance(picture, UrlPicture):
            return picture
        try:
            with self._stage("fetch"):
                return await self._fetcher.fetch(picture.url)
        except ImageError as error:
            return error

    async def _run_prompt(self, job: Job, prompt: str) -> Outcome:
        async with self.turns.turn(job) as decoded:
            decoded()
            return await self._batched(Work(prompt=prompt))

    async def search(self, search: Callable[[], Found]) -> Found:
        """Run `search` in a thread, and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._searches, search)

    async def probe(self) -> float:
        """Run the reference through the real session now, and return the largest difference of its scores from those at
        export.

        Raise RuntimeError if it is beyond the bundle's tolerance, or if a decoder process fails.
        """
        found = await self.batcher.run_alone(self._reference)
        difference = float(np.abs([one["score"] for one in found] - self._reference_scores).max())
        if not difference <= self._tolerance:
            raise RuntimeError(f"scores of the reference are off by {difference:.2e}, more than {self._tolerance:.2e}")
        red_pixel = b"P6 1 1 255\n\xff\x00\x00"
        decoded = await asyncio.wrap_future(self._decoders.submit(red_pixel, self.scorer.identity.preprocess))
        if isinstance(decoded, ImageError):
            raise RuntimeError(f"a decoder process gave: {decoded}")
        return difference

    async def close(self) -> None:
        """Finish waiting items, end the threads and free the memory."""
        await self.batcher.close()
        self._searches.shutdown(wait=False)
        self.scorer.close()  # now, since `run` and this engine refer to each other and are collected late
        await asyncio.to_thread(release_freed_memory)


class EngineRoom:
    """The current engine, and the function that loads the next."""

    def __init__(self, load: Callable[[], Engine]) -> None:
        self._load = load
        self.engine = load()
        self._reloading: asyncio.Task[Engine] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Engine]:
        """The current engine, which stays open until the end of the block."""
        engine = self.engine
        engine.users += 1
        try:
            yield engine
        finally:
            engine.users -= 1
            if engine is not self.engine and not engine.users:
                # In its own task, because this one may be cancelled at each await if its client disconnects.
                retiring = asyncio.create_task(engine.close())
                self._retiring.add(retiring)
                retiring.add_done_callback(self._retiring.discard)

    async def reload(self) -> Engine:
        """Load the bundle and the catalogue again and switch to them. If that fails, raise the error and keep the old
        ones.

        Calls during a reload wait for the same one, since two at a time would take the memory of both.
        """
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload())
        return await asyncio.shield(self._reloading)

    async def _reload(self) -> Engine:
        new = await asyncio.to_thread(self._load)
        old, self.engine = self.engine, new
        if not old.users:
            await old.close()
        return new

    async def close(self) -> None:
        await asyncio.gather(*self._retiring, self.engine.close())
