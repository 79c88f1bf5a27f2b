"""Score pictures under prompts with a bundle, by onnxruntime and without torch.

Pictures are paths, bytes, PIL images or uint8 arrays (h, w, 3), which threads decode ahead of the session. Meanwhile
prompts are encoded, each once, and remembered. A scorer may be used by many threads. Knows no table, no network and no
catalogue.
"""

import io
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL.Image import fromarray

from embed.arrays import Array, Float32s, Floats, Ints, UInt8s, softmax
from embed.inputs.images import ImageError, Limits, load_scaled
from embed.inputs.pixels import preprocess
from embed.inputs.tokenizer import Tokenizer
from embed.spec import Identity, InputError
from runtime.config import CUDA_PRECISION, SessionConfig
from runtime.scoring.bundle import WEIGHTS_FILE, Bundle, BundleError, open_bundle
from runtime.scoring.graphs import BATCH, CUDA, Pixels, Sessions, first_provider
from runtime.scoring.outputs import Outputs
from runtime.scoring.sources import SOURCE, add_sources, for_each, reads_source
from runtime.scoring.sources import Picture as Picture

Item = TypeVar("Item")
Done = TypeVar("Done")
# Vectors of the good pictures by name, errors of the bad ones by number, and the number of all pictures.
Encoded = tuple[dict[str, Float32s], dict[int, ImageError], int]

LIMITS = Limits()
SESSION = SessionConfig()

RUN = 4  # pictures in a run, if several runs of one thread each go on at the same time
TEXT_BATCH = 64  # the most prompts in a run; such runs of one thread each go on at the same time as those of pictures
REMEMBERED_PROMPTS = 10_000


@dataclass(frozen=True)
class Scored:
    """The results for n pictures: each output (n,) float32 by name, NaN for those whose numbers are in `errors`."""

    outputs: dict[str, Float32s]
    errors: dict[int, ImageError]

    @property
    def scores(self) -> Float32s:
        """(n,) float32: the first head's scores; higher is preferred."""
        return self.outputs["score"]


class Scorer:
    """A verified bundle, ready to score."""

    def __init__(self, bundle: Bundle, session: SessionConfig = SESSION, limits: Limits = LIMITS) -> None:
        self.bundle = bundle
        on_cuda = CUDA_PRECISION in bundle.graphs and first_provider(session) == CUDA
        self.precision = bundle.precision(session.precision, on_cuda)
        self.limits = limits
        self._sessions = Sessions(bundle, self.precision, session)
        self._prompts: OrderedDict[str, Float32s] = OrderedDict()
        self._lock = threading.RLock()
        self.named = Outputs.of(bundle.manifest, bundle.graph(self.precision, "head").outputs)
        self._tokenizer = bundle.tokenizer() if bundle.tokenizer_config else None
        self._workers = session.threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="pictures")
        self._text_pool = ThreadPoolExecutor(self._workers, thread_name_prefix="prompts")

    @classmethod
    def load(cls, path: str | Path, session: SessionConfig = SESSION, limits: Limits = LIMITS) -> "Scorer":
        """Load the bundle at `path` and verify every file. Raise BundleError if it is damaged."""
        return cls(open_bundle(path, unread=(WEIGHTS_FILE,)), session, limits)

    def release_weights(self) -> None:
        """Free the memory of the weights, when all needed sessions are open with copies of their own.

        A session that is opened later reads them again, and raises BundleError if the file has changed by then.
        """
        self._sessions.release_weights()

    def close(self) -> None:
        """Free the sessions and end the threads. A closed scorer cannot be used again."""
        self._sessions.close()
        self._pool.shutdown(wait=False)
        self._text_pool.shutdown(wait=False)

    @property
    def identity(self) -> Identity:
        """The identity of the backbone. Vectors with equal identities are comparable."""
        return self.bundle.identity

    @property
    def inputs(self) -> tuple[str, ...]:
        """The vectors that the heads read (see heads.models.INPUTS)."""
        return tuple(self.bundle.manifest["head"]["inputs"])

    @property
    def outputs(self) -> tuple[str, ...]:
        """The values that the heads give for each picture, by their names in the graphs, the first head's in front."""
        return tuple(value for output in self.named.all for value in output.values.values())

    @property
    def reads_source(self) -> bool:
        """Whether a score of the heads depends on source pictures."""
        return reads_source(self.named)

    @property
    def reads_text(self) -> bool:
        """Whether a score of the heads depends on the prompt."""
        return "text_embedding" in self.inputs

    def score(self, prompt: str | Sequence[str], images: Iterable[Picture]) -> Float32s:
        """(n,) scores of n pictures under one prompt or n; higher is preferred. Raise ImageError for a bad one."""
        scored = self.score_items(prompt, images)
        for error in scored.errors.values():
            raise error
        return scored.scores

    def rank(self, prompt: str, images: Iterable[Picture]) -> Ints:
        """The pictures' numbers (n,), the preferred one first. Equal scores keep their order."""
        return np.argsort(-self.score(prompt, images), kind="stable")

    def probabilities(self, prompt: str, images: Iterable[Picture]) -> Floats:
        """(n,) the probability of each picture to be the preferred one of all: the softmax of their scores.

        It uses calibrated scores if the head has them, and otherwise raw ones as PickScore does.
        """
        scored = self.score_items(prompt, images)
        for error in scored.errors.values():
            raise error
        return softmax(scored.outputs.get("calibrated_score", scored.scores))

    def score_items(
        self, prompt: str | Sequence[str], images: Iterable[Picture], sources: Sequence[Picture | None] = ()
    ) -> Scored:
        """Like `score`, but a bad picture becomes an entry in `errors` and the others are scored. `sources` are source
        pictures: one for all, or one or None for each."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        text_embeddings = self.begin_prompts(prompts) if self.reads_text else None
        features, errors, count = self._features(images)
        if not isinstance(prompt, str) and len(prompts) != count:
            raise InputError(f"got {len(prompts)} prompts for {count} images; wanted one, or as many")
        each: Sequence[Picture | None] = for_each(sources, count, self.named)
        if self.reads_source:
            features, errors = add_sources(features, errors, each, self._features)
        good = np.array([i for i in range(count) if i not in errors], np.int64)
        if text_embeddings is not None:
            features["text_embedding"] = text_embeddings()[good if len(prompts) == count else np.zeros_like(good)]
        outputs = {}
        for name, values in self.score_vectors(features).items():
            outputs[name] = np.full(count, np.nan, np.float32)
            outputs[name][good] = values
        self.release_weights()
        return Scored(outputs, errors)

    def score_vectors(
        self, features: Mapping[str, Float32s], asked: Sequence[str] | None = None
    ) -> dict[str, Float32s]:
        """The outputs (n,) by the names in `outputs`, or only those in `asked`, from vectors (n, d) by name (see
        heads.models). Percentiles are 0 to 100. Vectors that the requested outputs do not read may be missing. Without
        source vectors, pictures have no sources.
        """
        wanted = self.named.all if asked is None else self.named.chosen(asked)
        needed = {name for output in wanted for name in output.inputs} - {SOURCE}
        rows = len(features[next(name for name in self.inputs if name in needed)])
        shapes = self.bundle.graph(self.precision, "head").inputs
        values = {
            name: features[name]
            if name in features or name in needed
            else np.zeros((rows, int(shapes[name][1][1])), np.float32)
            for name in self.inputs
        }
        given = self._sessions.run("head", values)
        found = {}
        for value, name in ((value, name) for output in wanted for value, name in output.values.items()):
            if not np.isfinite(given[name]).all():
                raise FloatingPointError(f"{name} of {self.bundle.path} at {self.precision} is not finite")
            found[name] = given[name] * 100 if value == "percentile" else given[name]
        return found

    def embed_images(self, images: Iterable[Picture]) -> Float32s:
        """(n, d) float32: unit vectors of the pictures. Raise ImageError for a bad one."""
        features, errors, _ = self._features(images)
        for error in errors.values():
            raise error
        return features["image_embedding"]

    def embed_prompts(self, prompts: Sequence[str]) -> Float32s:
        """(n, d) float32: unit vectors of the prompts."""
        return self.begin_prompts(prompts)()

    def begin_prompts(self, prompts: Sequence[str]) -> Callable[[], Float32s]:
        """Begin to encode prompts. The returned function waits, and gives the result of `embed_prompts`."""
        self.bundle.require_towers()
        found: dict[str, Float32s] = {}
        with self._lock:
            for prompt in dict.fromkeys(prompts):
                if prompt in self._prompts:
                    self._prompts.move_to_end(prompt)
                    found[prompt] = self._prompts[prompt]
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        size = min(TEXT_BATCH, max(1, -(-len(missing) // self._workers)))
        parts = [missing[start : start + size] for start in range(0, len(missing), size)]
        encoded = [self._text_pool.submit(self._encode_prompts, part) for part in parts]

        def finish() -> Float32s:
            for part, running in zip(parts, encoded, strict=True):
                found.update(zip(part, running.result(), strict=True))
            with self._lock:
                self._prompts.update((prompt, found[prompt]) for prompt in missing)
                while len(self._prompts) > REMEMBERED_PROMPTS:
                    self._prompts.popitem(last=False)
            vectors = np.array([found[prompt] for prompt in prompts], np.float32)
            return vectors.reshape(len(prompts), self.identity.dim)

        return finish

    def count_tokens(self, prompts: Sequence[str]) -> int:
        """The number of tokens that the text tower reads for all prompts together."""
        return self._encoder().count(prompts)

    def decode(self, images: Iterable[Picture]) -> Iterator[UInt8s | ImageError]:
        """Yield each picture's pixels (h, w, 3) for the backbone, or its error, in order, decoded ahead."""
        return self._ahead(self._pixels, images, 2 * BATCH)

    def _ahead(self, work: Callable[[Item], Done], items: Iterable[Item], most: int) -> Iterator[Done]:
        """Yield the pool's results of `work` for each item, in order. At most `most` results wait."""
        waiting: deque[Future[Done]] = deque()
        for item in items:
            waiting.append(self._pool.submit(work, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def check_reference(self) -> dict[str, float]:
        """The differences of this machine's scores and vectors from those recorded at export.

        Raise BundleError if a difference is beyond the bundle's tolerance.
        """
        with np.load(io.BytesIO(self.bundle.read("reference.npz")), allow_pickle=False) as file:
            reference = dict(file)
        if self.bundle.is_head_alone:
            features = {name: reference[name] for name in self.inputs}
        else:
            features = self._sessions.run("image", {"pixels": reference["pixels"]})
        if self.bundle.has_text_tower and not self.bundle.is_head_alone:
            tokens = self._encoder()(list(reference["prompts"]))
            if not np.array_equal(tokens, reference["tokens"][:, : tokens.shape[1]]):
                raise BundleError(f"{self.bundle.path}: tokenizer.json gives other tokens than at export")
            features |= self._sessions.run("text", {"tokens": tokens})
        if self.reads_source:
            features[SOURCE] = reference[SOURCE]
        features |= self.score_vectors(features)
        tolerance = self.bundle.manifest["reference"][self.precision]
        result: dict[str, float] = {"rows": len(reference["score"])}
        for name, limit in tolerance.items():
            difference = float(np.abs(features[name] - reference[name]).max())
            if not difference <= limit:
                raise BundleError(
                    f"{self.bundle.path}: on this machine {name} at {self.precision} is {difference:.2e} off the"
                    f" reference, more than {limit:.2e}; export the bundle here, or use another precision or provider"
                )
            result[name] = difference
        return result

    def encode_pixels(self, pixels: Pixels, threads: int | None = None) -> dict[str, Float32s]:
        """Vectors (n, d) by name of n decoded pictures. Another number of `threads` uses another session."""
        starts = range(0, max(1, len(pixels)), BATCH)
        batches = [self._sessions.encode(pixels[start : start + BATCH], threads) for start in starts]
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def run_whole(self, pixels: UInt8s, prompts: Sequence[str], sources: Float32s | None = None) -> dict[str, Float32s]:
        """The outputs of the graph with all parts, for pixels (n, h, w, 3), n prompts and n vectors of sources."""
        more: dict[str, Array] = {"tokens": self._encoder()(prompts)} if self.reads_text else {}
        if sources is not None:
            more[SOURCE] = sources
        return self._sessions.run("model", {"pixels": pixels, **more})

    def _features(self, images: Iterable[Picture]) -> tuple[dict[str, Float32s], dict[int, ImageError], int]:
        """Vectors of the good pictures by name, errors of the bad ones by number, and the number of all pictures."""
        self.bundle.require_towers()
        images = iter(images)
        first = list(islice(images, RUN * self._workers))
        images = chain(first, images)
        if len(first) >= self._workers and self._sessions.provider == "CPUExecutionProvider":
            # Runs of one thread are faster: threads of a run wait for each other at every operator, and for decoding.
            groups = _groups(images, min(RUN, -(-len(first) // self._workers)))
            parts = self._ahead(self._decode_and_encode, groups, 2 * self._workers)
        else:
            parts = map(self._encode, _groups(self.decode(images), BATCH))
        vectors: list[dict[str, Float32s]] = []
        errors: dict[int, ImageError] = {}
        count = 0
        for found, bad, size in parts:
            vectors.append(found)
            errors.update((count + number, error) for number, error in bad.items())
            count += size
        if not vectors:
            vectors.append(self._encode([])[0])
        return {name: np.concatenate([found[name] for found in vectors]) for name in vectors[0]}, errors, count

    def _decode_and_encode(self, images: Sequence[Picture]) -> Encoded:
        """Decode and encode in this thread, with a session that uses no other thread."""
        return self._encode([self._pixels(image) for image in images], threads=1)

    def _encode(self, decoded: Sequence[UInt8s | ImageError], threads: int | None = None) -> Encoded:
        errors = {number: found for number, found in enumerate(decoded) if isinstance(found, ImageError)}
        pixels = [found for found in decoded if not isinstance(found, ImageError)]
        return self._sessions.encode(pixels, threads), errors, len(decoded)

    def _pixels(self, picture: Picture) -> UInt8s | ImageError:
        spec = self.identity.preprocess
        try:
            if isinstance(picture, str | os.PathLike):
                with open(picture, "rb") as file:
                    picture = file.read(self.limits.max_bytes + 1)
            if isinstance(picture, bytes):
                return load_scaled(picture, spec, self.limits, self.bundle.scale)[0]
            if isinstance(picture, np.ndarray):
                if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
                    shape = f"{picture.dtype}{picture.shape}"
                    raise ImageError("read", "wrong array", f"{shape}; wanted uint8 (height, width, 3)")
                picture = fromarray(picture)
            return preprocess(picture, spec)
        except OSError as error:
            return ImageError("read", "cannot be read", error.strerror or str(error))
        except ImageError as error:
            return error

    def _encoder(self) -> Tokenizer:
        return self._tokenizer or self.bundle.tokenizer()  # the latter raises an error that says why there is none

    def _encode_prompts(self, prompts: Sequence[str]) -> Float32s:
        return self._sessions.run("text", {"tokens": self._encoder()(prompts)})["text_embedding"]


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    items = iter(items)
    while group := list(islice(items, size)):
        yield group
