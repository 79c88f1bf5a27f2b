"""Engines: which library runs a tower, at which precision, on which device, and how `auto` decides.

Every candidate runs the same sample of the user's own inputs. Those whose vectors keep a cosine of at least
`min_cosine` to torch in fp32, on the worst input, are admissible; the one that ends the job first is chosen, its start
included: to import torch takes as long as onnxruntime takes for hundreds of pictures. What was measured is kept in the
machine's cache (see embed.machine), and so are exported graphs: a run that finds both never imports torch: the
tokenizer is kept beside them.
"""

import json
import logging
import math
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embed.allocator import release_freed_memory
from embed.files import write_json
from embed.machine import engine_folder, remember_identity, remembered_identity
from embed.runners import Run, cast, onnx_runner, torch_runner
from embed.spec import Identity, InputError, Source, known_fields
from embed.tokenizer import Tokenizer, kept_tokenizer

if TYPE_CHECKING:
    from embed.backbone import Backbone

RUNNERS = ("torch", "onnx")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
INPUT = {"images": "pixels", "prompts": "tokens"}
SAMPLE = 256  # inputs on which candidates are compared
TRIAL_S = 20.0  # a reference slower than this stops early: the certificate then rests on fewer inputs
HOPELESS = 3.0  # a candidate this many times slower than the best on its first batch is not tried further


@dataclass(frozen=True)
class Engine:
    """One way to run a tower, with its certificate: how near its vectors are to torch's in fp32."""

    runner: str
    precision: str
    device: str
    rows: int = 0  # inputs measured; 0 where nothing was, because this is the reference itself
    cosine_mean: float = 1.0
    cosine_min: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.runner} {self.precision} on {self.device}"


@dataclass(frozen=True)
class Trial:
    """A measured engine."""

    engine: Engine
    per_s: float
    start_s: float = 0.0  # from nothing to an engine that can run; of torch with its import and the whole backbone

    def expected_s(self, count: int) -> float:
        """For so many inputs."""
        return self.start_s + count / self.per_s


@dataclass(frozen=True)
class Wanted:
    """What the user asked for."""

    runner: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    min_cosine: float = 0.999
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("runner", RUNNERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in ("auto", *known):
                raise InputError(f"{name} {getattr(self, name)!r}; wanted auto or one of {', '.join(known)}")
        if not 0 < self.min_cosine <= 1:
            raise InputError(f"min_cosine is {self.min_cosine}; wanted more than 0 and at most 1")

    def admits(self, engine: Engine) -> bool:
        """Whether a measured engine is one of those asked for."""
        return (
            self.runner in ("auto", engine.runner)
            and self.precision in ("auto", engine.precision)
            and engine.cosine_min >= self.min_cosine
        )


def candidates(wanted: Wanted, device: str) -> list[tuple[str, str]]:
    """The (runner, precision) pairs worth trying on a device, the fp32 of torch last."""
    if wanted.runner != "auto" and wanted.precision != "auto":
        return [(wanted.runner, wanted.precision)]
    on_cpu = device == "cpu"
    pairs = [("onnx", "fp32"), ("onnx", "int8" if on_cpu else "fp16"), ("torch", "bf16")]
    pairs += [] if on_cpu else [("torch", "fp16")]  # no processor computes it natively
    pairs += [("torch", "fp32")]
    return [
        (runner, precision)
        for runner, precision in pairs
        if wanted.runner in ("auto", runner)
        and wanted.precision in ("auto", precision)
        and (runner == "torch" or wanted.runner == "onnx" or _onnx_has(device))
    ]


def _onnx_has(device: str) -> bool:
    from embed.sessions import PROVIDERS, require_onnxruntime

    try:
        return PROVIDERS.get(device.partition(":")[0]) in require_onnxruntime().get_available_providers()
    except InputError:
        return False


def resolve_device(name: str) -> str:
    """The device asked for, or the best there is for "auto"; InputError where it is not there.

    Imports torch only where there may be more than a CPU.
    """
    if name == "cpu":
        return name
    if name == "auto":
        if not (Path("/dev/nvidiactl").exists() or (sys.platform, platform.machine()) == ("darwin", "arm64")):
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used here: {str(error).partition(chr(10))[0]}") from None
    return name


def choose(trials: Sequence[Trial], wanted: Wanted, count: int | None = None) -> Trial:
    """The admissible one that ends `count` inputs first, or that is the fastest where nobody knows how many there are;
    InputError with all measurements where there is none."""
    good = [trial for trial in trials if wanted.admits(trial.engine)]
    if not good:
        measured = ", ".join(f"{trial.engine}: {trial.engine.cosine_min:.6f}" for trial in trials)
        raise InputError(
            f"no engine that was asked for keeps a cosine of {wanted.min_cosine} to fp32 (measured {measured});"
            " ask for --precision fp32, or lower --min-cosine"
        )
    return min(good, key=lambda trial: 1 / trial.per_s if count is None else trial.expected_s(count))


class Towers:
    """The two towers of a source by engine, with everything about them that this machine remembers."""

    def __init__(self, source: Source, root: Path, features: Sequence[str], ignore_exif: bool = False) -> None:
        self.source = source
        self.features = tuple(features)
        self._root = root
        self._ignore_exif = ignore_exif
        self._backbone_s = 0.0  # what loading the backbone took, torch's import included

    @cached_property
    def identity(self) -> Identity:
        """Without loading the weights, where this machine has seen them before."""
        identity = remembered_identity(self.source, self._root)
        if identity is None:
            identity = self._backbone.identity
            remember_identity(self.source, identity, self._root)
        return replace(identity, preprocess=replace(identity.preprocess, ignore_exif=self._ignore_exif))

    @cached_property
    def _backbone(self) -> "Backbone":
        start = time.monotonic()
        from embed.backbone import load_backbone

        backbone = load_backbone(self.source)
        self._backbone_s = time.monotonic() - start
        return backbone

    def tokenize(self, prompts: Sequence[str]) -> tuple[np.ndarray, int]:
        """int32 (n, c) tokens, and how many prompts were cut."""
        if (kept := self._kept_tokenizer) is not None:
            return kept(prompts), kept.count_truncated(prompts)
        return self._backbone.tokenize(prompts), self._backbone.count_truncated(prompts)

    @cached_property
    def _kept_tokenizer(self) -> Tokenizer | None:
        return kept_tokenizer(engine_folder(self.identity, self._root))

    def find(self, side: str, wanted: Wanted, device: str, count: int | None = None) -> Engine | None:
        """The engine to use for `count` inputs, where no trial is needed: the reference is asked for, or all that come
        into question were measured before."""
        if candidates(wanted, device) == [("torch", "fp32")]:
            return Engine("torch", "fp32", device)
        trials = self._trials(side, device)
        measured = {(trial.engine.runner, trial.engine.precision) for trial in trials}
        return choose(trials, wanted, count).engine if measured >= set(candidates(wanted, device)) else None

    def measure(
        self,
        side: str,
        inputs: np.ndarray,
        wanted: Wanted,
        device: str,
        batch_size: int,
        count: int | None = None,
    ) -> Trial:
        """Try the candidates on `inputs`, remember what came out, and give the one to use for `count` inputs."""
        reference, rate = _reference(self.runner(side, Engine("torch", "fp32", device)), inputs, batch_size)
        inputs = inputs[: len(reference)]
        trials = {(t.engine.runner, t.engine.precision): t for t in self._trials(side, device)}
        trials["torch", "fp32"] = Trial(Engine("torch", "fp32", device, len(inputs)), rate, self._backbone_s)
        best = rate
        for runner, precision in candidates(wanted, device):
            if (runner, precision) == ("torch", "fp32"):
                continue
            engine = Engine(runner, precision, device)
            if runner == "onnx":
                self._graph(side, precision)
            start = time.monotonic()
            run = self.runner(side, engine, wanted.threads)
            start_s = time.monotonic() - start + (self._backbone_s if runner == "torch" else 0.0)
            trial = _try(run, engine, inputs, reference, batch_size, best)
            best = max(best, trial.per_s)
            trials[runner, precision] = replace(trial, start_s=start_s)
            del run  # not beside the next one's
        write_json(self._trials_file(side, device), {"trials": [asdict(trial) for trial in trials.values()]})
        chosen = choose(list(trials.values()), wanted, count)
        if chosen.engine.runner == "onnx":
            self.__dict__.pop("_backbone", None)  # its weights are in the graph; who wants them yet loads them again
        release_freed_memory()
        return chosen

    def runner(self, side: str, engine: Engine, threads: int | None = None) -> Run:
        """uint8 pixels (n, h, w, 3) or int32 tokens (n, c) to float32 (n, d) unit vectors, one array a feature."""
        if engine.runner == "onnx":
            return onnx_runner(self._graph(side, engine.precision), INPUT[side], engine.device, threads)
        return torch_runner(self._tower(side), engine.precision, engine.device)

    def _tower(self, side: str) -> Any:
        return self._backbone.image_tower(self.features) if side == "images" else self._backbone.text_tower()

    def _name(self, side: str) -> str:
        return "-".join([side, *(self.features if side == "images" else ())])

    def _trials_file(self, side: str, device: str) -> Path:
        return engine_folder(self.identity, self._root) / f"{self._name(side)}.{device.replace(':', '')}.json"

    def _trials(self, side: str, device: str) -> list[Trial]:
        try:
            entries = json.loads(self._trials_file(side, device).read_text())["trials"]
            return [
                Trial(Engine(**known_fields(Engine, entry["engine"])), entry["per_s"], entry["start_s"])
                for entry in entries
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _graph(self, side: str, precision: str) -> Path:
        """The exported tower, made now unless this machine has it."""
        folder = engine_folder(self.identity, self._root) / f"{self._name(side)}.{precision}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            if precision == "int8":
                _quantize(self._graph(side, "fp32"), making / "model.onnx")
            else:
                self._export(side, precision, making / "model.onnx")
            release_freed_memory()
            try:
                making.rename(folder)
            except OSError:  # another process made the same meanwhile
                shutil.rmtree(making)
        return folder / "model.onnx"

    def _export(self, side: str, precision: str, path: Path) -> None:
        import onnx
        import torch

        from embed.graphs import export_tower
        from embed.vocabulary import keep_tokenizer

        example = (
            torch.zeros((2, *self.identity.preprocess.size, 3), dtype=torch.uint8)
            if side == "images"
            else torch.from_numpy(self._backbone.tokenize(["a photo of a cat", "a dog"]))
        )
        if side == "prompts":
            keep_tokenizer(engine_folder(self.identity, self._root), self._backbone.tokenizer)
        outputs = self.features if side == "images" else ("projected",)
        tower = cast(self._tower(side), precision)
        graph = export_tower(tower, {INPUT[side]: example}, outputs, {INPUT[side]: {0: "n"}})
        onnx.save_model(graph, path, save_as_external_data=True, location="model.data")


def _quantize(fp32: Path, int8: Path) -> None:
    """Weights in 8 bits, one scale a channel; activations are quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends steps that the exporter has taken, and prints whole types
    try:
        quantize_dynamic(fp32, int8, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        root.setLevel(level)


def _batches(inputs: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]


def _reference(run: Run, inputs: np.ndarray, batch_size: int) -> tuple[np.ndarray, float]:
    """Vectors of as many inputs as there is time for, and inputs per second."""
    run(inputs[:batch_size])
    start, vectors = time.monotonic(), []
    for batch in _batches(inputs, batch_size):
        vectors.append(run(batch)[0])
        if time.monotonic() - start > TRIAL_S:
            break
    done = np.concatenate(vectors)
    return done, len(done) / (time.monotonic() - start)


def _try(run: Run, engine: Engine, inputs: np.ndarray, reference: np.ndarray, batch_size: int, best: float) -> Trial:
    """The engine with its certificate; one that is hopelessly slow gets it from its first batch alone."""
    from embed.graphs import certificate

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
        return Trial(Engine(engine.runner, engine.precision, engine.device, done, 0.0, 0.0), per_s)
    mean, least = (math.floor(1e6 * cosine) / 1e6 for cosine in (found.cosine_mean, found.cosine_min))
    return Trial(Engine(engine.runner, engine.precision, engine.device, done, mean, least), per_s)
