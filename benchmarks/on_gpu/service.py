"""Measure the service on loopback with clients that send a photo and a prompt each, and its engine and decoders alone.

If the packages of the extra `serve` are missing, only the engine and the decoders are measured.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict
from unittest.mock import patch

import numpy as np

from on_gpu.common import Context

if TYPE_CHECKING:
    from embed.spec import Preprocess
    from runtime.config import Precision
    from runtime.scoring.manifest import BundleManifest

ROOT = Path(__file__).resolve().parents[2]
LOAD = ROOT / "benchmarks" / "load.py"
# The command `runtime serve` without its command line, because the library for that may be missing there.
SERVE = """
import sys
from pathlib import Path
from runtime.cli.serve import serve_locally
from runtime.config import ServiceConfig
bundle, provider, precision, decoders = sys.argv[1:]
config = ServiceConfig(Path(bundle), providers=(provider,), precision=precision, decoders=int(decoders))
serve_locally(config, "127.0.0.1", 0, 0.0)
"""
PACKAGES = ("fastapi", "uvicorn", "httptools", "prometheus_client", "python_multipart", "httpcore")
PROMPTS = [f"picture number {i} of something that people like to look at" for i in range(32)]


class Answers(TypedDict):
    """The output of load.py for one process of clients."""

    requests_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    statuses: dict[str, int]


def measure(context: Context) -> dict[str, object]:
    """Return answers in time a second, p50 and p99, by precision and number of decoding processes."""
    start = time.perf_counter()
    bundle = make_bundle(context, context.precisions)
    context.say(f"the bundle was made in {time.perf_counter() - start:.0f} s")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    cores = context.workers
    found: dict[str, object] = {"photos": context.photo_sizes()}
    bars: dict[str, float] = {}
    errors = []
    for precision in context.precisions:
        try:
            engine = engine_only(context, bundle, precision)
            context.say(f"{precision}: the engine alone {engine['engine_per_s']:,.0f} a second")
            for decoders in sorted({max(2, cores // 2), *context.sized((cores,), ())}):
                name, rates = f"{precision}, {decoders} decoders", dict(engine)
                rates["decode_per_s"] = decode_only(context, bundle, decoders)
                if not missing:
                    rates |= measure_service(context, bundle, precision, decoders)
                    least = min(rates["engine_per_s"], rates["decode_per_s"])
                    rates["goodput_of_least"] = rates["goodput_per_s"] / least
                    bars[name] = rates["goodput_per_s"]
                found[name] = rates
                context.show([name, *rates], [("", *(f"{value:,.4g}" for value in rates.values()))])
        except Exception as error:  # so that the other precision is still measured
            errors.append(error)
            found[f"{precision} failed"] = str(error)
            context.say(f"{precision} failed: {error}")
    if missing:
        found["missing"] = missing
        context.say(f"the service was not measured: {', '.join(missing)} not installed")
    elif not bars:
        raise errors[0]
    return {**found, "bars": {"unit": "requests a second", "values": bars}}


def make_bundle(context: Context, precisions: "tuple[Precision, ...]") -> Path:
    """Make a bundle with a small random head."""
    import torch

    from embed.backbones.load import load_backbone
    from embed.engines import sessions
    from embed.spec import InputError
    from export import cuda
    from export.bundle_writer import export_bundle
    from export.config import ExportConfig
    from heads.config import HeadConfig
    from heads.models import build_head

    backbone = load_backbone(context.source("ViT-B-32"))
    head = build_head(HeadConfig("fusion", backbone.identity.dim)).eval()
    # Otherwise every score is zero.
    list(head.parameters())[-2].data.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    manifest = {"head": {"kind": "fusion"}, "identity": backbone.identity.to_json()}
    # Random weights say nothing about the order of pictures, so any share of flips is accepted.
    config = ExportConfig(precisions, pictures=tuple(context.jpegs()[:4]), max_flips=0.99)
    out = context.folder / "bundle"
    try:
        export_bundle(out, backbone, head, manifest, config)
    except InputError as error:
        context.say(f"the export was not checked on this device ({error}); it is checked on the CPU")
        # The CPU cannot run graphs for CUDA; those of fp16 are checked instead.
        config = replace(config, precisions=tuple(dict.fromkeys(("fp32", "fp16", *precisions))))
        with patch.object(sessions, "PREFERRED", ()), patch.object(cuda, "runs_here", lambda: False):
            written = export_bundle(out, backbone, head, manifest, config)
        widen(out, written)
    return out


def widen(bundle: Path, manifest: "BundleManifest") -> None:
    """Let the bundle serve even if the device differs from the CPU that it was checked on.

    Another section measures that difference; here it would only keep the service from starting.
    """
    from runtime.scoring.bundle import manifest_bytes

    for tolerances in manifest["reference"].values():
        tolerances |= dict.fromkeys(tolerances, 1e6)
    (bundle / "bundle.json").write_bytes(manifest_bytes(manifest))


def engine_only(context: Context, bundle: Path, precision: "Precision") -> dict[str, float]:
    """Return items a second in the service's own batches of decoded pictures and prompts, and the difference of scores
    and vectors on the device from torch on the CPU."""
    from runtime.config import SessionConfig
    from runtime.scoring.scorer import Scorer
    from runtime.service.answering.engine import Work, run_batch

    scorer = Scorer.load(bundle, SessionConfig(providers=(context.device,), precision=precision))
    off = scorer.check_reference()
    random = np.random.default_rng(0)
    size = scorer.identity.preprocess.size
    works = [Work(random.integers(0, 256, (*size, 3), np.uint8), prompt, scored=True) for prompt in PROMPTS]
    repeats = context.sized(30, 2)
    run_batch(scorer, works)
    start = time.perf_counter()
    for _ in range(repeats):
        run_batch(scorer, works)
    rate = repeats * len(works) / (time.perf_counter() - start)
    scorer.close()
    context.release()
    return {"engine_per_s": rate, "score_off_by": off["score"]}


def decode_only(context: Context, bundle: Path, decoders: int) -> float:
    """Return photos a second of this many decoding processes of the service."""
    from embed.inputs.decoding import Decoders
    from embed.inputs.images import STALL_S
    from runtime.config import RequestLimits
    from runtime.scoring.bundle import open_bundle

    preprocess = open_bundle(bundle).identity.preprocess
    photos = [path.read_bytes() for path in context.jpegs()]

    def decode(count: int, preprocess: "Preprocess") -> None:
        answers = [pool.submit(photos[i % len(photos)], preprocess) for i in range(count)]
        for answer in answers:
            if not isinstance(pixels := answer.result(), np.ndarray):
                raise RuntimeError(f"a photo could not be decoded: {pixels}")

    pool = Decoders(decoders, RequestLimits(), STALL_S)
    try:
        decode(4 * decoders, preprocess)
        count = context.sized(4000, 40)
        start = time.perf_counter()
        decode(count, preprocess)
        return count / (time.perf_counter() - start)
    finally:
        pool.close()


def measure_service(context: Context, bundle: Path, precision: "Precision", decoders: int) -> dict[str, float]:
    """Return what clients get from the service. They run in several processes, because one is too slow to load it."""
    processes, clients, seconds = context.sized((4, 16, 8.0), (1, 4, 0.5))
    with service(context, bundle, precision, decoders) as port:
        command = [sys.executable, str(LOAD), "client", str(port), "--photos", str(context.photos)]
        command += ["--clients", str(clients), "--seconds", str(seconds)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        answers: list[Answers] = [json.loads(one.communicate()[0].splitlines()[-1]) for one in running]
    refused = sum(n for one in answers for status, n in one["statuses"].items() if status != "200")
    if refused:
        context.say(f"answers that are no scores: {[one['statuses'] for one in answers]}")
    p50, p99 = ([float(one[name] or 0) for one in answers] for name in ("p50_ms", "p99_ms"))
    return {
        "clients": processes * clients,
        "goodput_per_s": sum(one["requests_per_s"] for one in answers),
        "p50_ms": float(np.median(p50)),
        "p99_ms": max(p99),  # the worst of the processes
        "refused": refused,
    }


@contextmanager
def service(context: Context, bundle: Path, precision: "Precision", decoders: int) -> Iterator[int]:
    """Run a service in a separate process until the block ends, and give its port."""
    log = context.folder / f"service-{precision}-{decoders}.log"
    command = [sys.executable, "-c", SERVE, str(bundle), context.device, precision, str(decoders)]
    with open(log, "w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()  # it prints a line when it listens, and ends if it cannot
        if "serving" not in line:
            raise RuntimeError(f"the service did not start: {log.read_text()[-3000:]}")
        yield int(line.partition(";")[0].rpartition(":")[2])
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
