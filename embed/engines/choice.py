"""Engines: which library runs a tower, at which precision and on which device, and how `auto` decides.

All candidates run the same sample of the user's own inputs. A candidate is admissible if its vectors keep a cosine of
at least `min_cosine` to those of torch in fp32, even on the worst input. Of these the one that ends the job first is
chosen. Its start counts, because importing torch takes as long as onnxruntime takes for hundreds of pictures. The
measurements are kept in the machine's cache (see embed.engines.machine) together with the exported graphs and the
tokenizer, and a run that finds them there never imports torch.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from embed.arrays import Float32s
from embed.config import Runner, Wanted
from embed.engines.runners import Inputs, Run
from embed.spec import InputError, Precision

Pair = tuple[Runner, Precision]
REFERENCE: Pair = ("torch", "fp32")  # all others are compared with this one
TRIAL_S = 20.0  # a trial of the reference stops after this time, and the certificate then rests on fewer inputs
HOPELESS = 3.0  # a candidate that is this many times slower than the best on its first batch is not tried further


@dataclass(frozen=True)
class Engine:
    """One way to run a tower, with its certificate: how close its vectors are to those of torch in fp32."""

    runner: Runner
    precision: Precision
    device: str
    rows: int = 0  # inputs measured; 0 for the reference itself, which needs no measurement
    cosine_mean: float = 1.0
    cosine_min: float = 1.0

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.runner} {self.precision} on {self.device}"


@dataclass(frozen=True)
class Trial:
    """A measured engine."""

    engine: Engine
    per_s: float
    start_s: float = 0.0  # time until the engine can run; for torch this includes its import and loading the backbone

    def expected_s(self, count: int) -> float:
        """Return the expected time for `count` inputs, in seconds."""
        return self.start_s + count / self.per_s


def admits(wanted: Wanted, engine: Engine) -> bool:
    """Whether a measured engine satisfies what was asked for."""
    return (
        wanted.runner in ("auto", engine.runner)
        and wanted.precision in ("auto", engine.precision)
        and engine.cosine_min >= wanted.min_cosine
    )


def candidates(wanted: Wanted, device: str) -> list[Pair]:
    """Return the (runner, precision) pairs to try on a device, the fastest first as far as known.

    This order lets hopeless candidates be seen sooner. Raise InputError if the wanted precision needs another device.
    """
    on_cuda = device.startswith("cuda")
    if wanted.precision == "fp16-cuda" and not on_cuda:
        raise InputError(f"--precision fp16-cuda needs a CUDA device, and the device here is {device}; ask for fp16")
    if wanted.runner != "auto" and wanted.precision != "auto":
        return [(wanted.runner, wanted.precision)]
    on_cpu = device == "cpu"
    pairs: list[Pair] = [("onnx", "int8" if on_cpu else "fp16"), ("onnx", "fp32"), ("torch", "bf16")]
    pairs += [] if on_cpu else [("torch", "fp16")]  # no CPU computes it natively
    pairs[:0] = [("onnx", "fp16-cuda")] if on_cuda else []
    pairs += [REFERENCE]
    return [
        (runner, precision)
        for runner, precision in pairs
        if wanted.runner in ("auto", runner)
        and wanted.precision in ("auto", precision)
        and (runner == "torch" or wanted.runner == "onnx" or _onnx_has(device))
    ]


def _onnx_has(device: str) -> bool:
    from embed.engines.sessions import PROVIDERS
    from embed.ort import require_onnxruntime

    try:
        return PROVIDERS.get(device.partition(":")[0]) in require_onnxruntime().get_available_providers()
    except InputError:
        return False


def choose(trials: Sequence[Trial], wanted: Wanted, count: int | None = None) -> Trial:
    """Return the admissible trial that ends `count` inputs first, or the fastest one if `count` is None.

    Raise InputError with all measurements if none is admissible.
    """
    good = [trial for trial in trials if admits(wanted, trial.engine)]
    if not good:
        measured = ", ".join(f"{trial.engine}: {trial.engine.cosine_min:.6f}" for trial in trials)
        raise InputError(
            f"no engine that was asked for keeps a cosine of {wanted.min_cosine} to fp32 (measured {measured});"
            " ask for --precision fp32, or lower --min-cosine"
        )
    return min(good, key=lambda trial: 1 / trial.per_s if count is None else trial.expected_s(count))


def _batches(inputs: Inputs, size: int) -> Iterator[Inputs]:
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]


def run_reference(run: Run, inputs: Inputs, batch_size: int) -> tuple[Float32s, float]:
    """Return the vectors of as many inputs as fit in TRIAL_S, and the rate in inputs per second."""
    run(inputs[:batch_size])
    start, vectors = time.monotonic(), []
    for batch in _batches(inputs, batch_size):
        vectors.append(run(batch)[0])
        if time.monotonic() - start > TRIAL_S:
            break
    done = np.concatenate(vectors)
    return done, len(done) / (time.monotonic() - start)


def try_engine(run: Run, engine: Engine, inputs: Inputs, reference: Float32s, batch_size: int, best: float) -> Trial:
    """Measure an engine and return it with its certificate. A hopelessly slow engine is stopped after one batch."""
    from embed.graphs.trace import certificate

    run(inputs[:batch_size])
    start, vectors = time.monotonic(), []
    for batch in _batches(inputs, batch_size):
        vectors.append(run(batch)[0])
        done, elapsed_s = sum(map(len, vectors)), time.monotonic() - start
        if done / elapsed_s * HOPELESS < best:
            break
    per_s = done / elapsed_s
    try:
        found = certificate(engine.precision, reference[:done], np.concatenate(vectors))
    except FloatingPointError:
        return Trial(replace(engine, rows=done, cosine_mean=0.0, cosine_min=0.0), per_s)
    mean, least = (math.floor(1e6 * cosine) / 1e6 for cosine in (found.cosine_mean, found.cosine_min))
    return Trial(replace(engine, rows=done, cosine_mean=mean, cosine_min=least), per_s)
