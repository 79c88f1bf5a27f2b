"""Measure how much time it saves to decode large JPEGs at a reduced size, and how much it changes their vectors.

    python benchmarks/large_pictures.py --photos ../shared/data/photos [--count 500] [--distinct 128]

It makes JPEGs of 12 megapixels from photographs: enlarged, with grain, at three qualities, every fourth progressive, in
all eight EXIF orientations. Then it measures, for `exact` and each scale that `--decoding scaled` tries:

    decode    pictures a second of one process, decoding and resizing, and the ratio to exact
    vectors   lowest and mean cosine to exact vectors, and the share of pairs that a random linear score flips
    small     the rate for photographs that are too small, whose pixels at scale 2 must be equal to exact ones
    job       whole processes of `embed cache` with a known engine, ViT-B/32, and the scale chosen by certificate
    request   milliseconds of `Scorer.score` with eight pictures in memory, ViT-B/32 at int8
    memory    peak resident MiB of a process that decodes one picture of 64 megapixels, baseline and progressive

Weights: the starter's, and random ones of ViT-B/32, whose vectors change less. Ways take turns, so that changes of the
machine's load affect all. The last line of stdout is one JSON document.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder, which holds a file named like the package `embed`

from embed.arrays import cosines  # noqa: E402
from embed.cli.console import table  # noqa: E402
from embed.engines.choice import Engine  # noqa: E402
from embed.engines.machine import machine_cache  # noqa: E402
from embed.engines.towers import Towers  # noqa: E402
from embed.inputs.images import load_scaled  # noqa: E402
from embed.inputs.scaled import SCALES  # noqa: E402
from embed.spec import Preprocess, Source  # noqa: E402

MEGAPIXELS, LARGEST = 12, 64
QUALITIES = (75, 85, 92)
GRAIN = 6.0  # standard deviation of the grain, in levels
ORIENTATION = 0x0112
VIT, STARTER = Source("ViT-B-32", "random:0"), Source("starter")
SECTIONS = ("decode", "job", "request", "memory")
WAYS = (None, *SCALES)
DIRECTIONS = 100  # random linear scores
PEAK = """
import re, sys
from pathlib import Path
sys.path[0] = {root!r}
from embed.inputs.images import load_scaled
from embed.spec import Preprocess
spec = Preprocess((224, 224), "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)
data = Path({path!r}).read_bytes()
load_scaled(data, spec, scale={scale})
# Not getrusage, which includes the memory of the process before it became this program.
print(int(re.search("VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


def enlarged(photo: Path, megapixels: float, seed: int) -> Image.Image:
    """Return the photograph enlarged to about this many pixels, with grain where it has detail."""
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    size = int(image.width * factor), int(image.height * factor)
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    grain = np.random.default_rng(seed).standard_normal(pixels.shape[:2], np.float32) * GRAIN
    return Image.fromarray(np.clip(pixels + grain.astype(np.int16)[..., None], 0, 255).astype(np.uint8))


def write_pictures(photos: list[Path], folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    for i, photo in enumerate(islice(cycle(photos), count)):
        exif = Image.Exif()
        exif[ORIENTATION] = i % 8 + 1
        options: dict[str, Any] = {"quality": QUALITIES[i % 3], "progressive": i % 4 == 0, "exif": exif}
        enlarged(photo, MEGAPIXELS, i).save(folder / f"{i:04}.jpg", **options)
    return sorted(folder.iterdir())


def size_of(photo: Path) -> tuple[int, int]:
    with Image.open(photo) as opened:
        return opened.size


def decoded(paths: list[Path], spec: Preprocess) -> tuple[dict[int | None, np.ndarray], dict[int | None, float]]:
    """Return the pixels of every way, and pictures a second."""
    pixels: dict[int | None, list[np.ndarray]] = {way: [] for way in WAYS}
    spent_s = dict.fromkeys(WAYS, 0.0)
    for i, path in enumerate(paths):
        data = path.read_bytes()
        for way in WAYS[i % len(WAYS) :] + WAYS[: i % len(WAYS)]:
            start = time.perf_counter()
            pixels[way].append(load_scaled(data, spec, scale=way)[0])
            spent_s[way] += time.perf_counter() - start
    return {way: np.stack(found) for way, found in pixels.items()}, {
        way: len(paths) / elapsed_s for way, elapsed_s in spent_s.items()
    }


def moved(source: Source, pixels: dict[int | None, np.ndarray]) -> dict[int, dict[str, float]]:
    """Return, for each scale, the cosines to exact vectors and the share of flipped pairs."""
    run = Towers(source, machine_cache(), ["projected"]).runner("images", Engine("onnx", "fp32", "cpu"))
    vectors = {way: np.concatenate([run(part)[0] for part in np.array_split(p, -(-len(p) // 32))]) for way, p in
               pixels.items()}  # fmt: skip
    exact = vectors[None]
    directions = np.random.default_rng(0).standard_normal((exact.shape[1], DIRECTIONS))
    first, second = np.triu_indices(len(exact), 1)
    order = [np.sign((found @ directions)[first] - (found @ directions)[second]) for found in vectors.values()]
    return {
        scale: {
            "cosine_min": float(cosines(exact, vectors[scale]).min()),
            "cosine_mean": float(cosines(exact, vectors[scale]).mean()),
            "flips": float((order[0] != order[i]).mean()),
        }
        for i, scale in enumerate(SCALES, 1)
    }


def job_s(folder: Path, out: Path, decoding: str) -> float:
    """Return the seconds of a whole process that embeds the folder."""
    options = ["--model", VIT.model, "--pretrained", str(VIT.pretrained), "--device", "cpu", "--engine", "onnx"]
    options += ["--precision", "int8", "--decoding", decoding, "--out", str(out)]
    command = [sys.executable, "-m", "embed", "cache", str(folder), *options]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return time.monotonic() - start


def request_ms(paths: list[Path], rounds: int, folder: Path) -> dict[str, float]:
    """Return medians by way, from one bundle with different decoding."""
    from embed.backbones.load import load_backbone
    from export.bundle_writer import export_bundle
    from export.config import ExportConfig
    from heads.config import HeadConfig
    from heads.models import build_head
    from runtime.config import SessionConfig
    from runtime.scoring.bundle import open_bundle
    from runtime.scoring.scorer import Scorer

    backbone = load_backbone(VIT)
    head = build_head(HeadConfig("fusion", backbone.identity.dim)).eval()
    manifest = {"head": {"kind": "fusion"}, "identity": backbone.identity.to_json()}
    config = ExportConfig(("int8",), "scaled", pictures=tuple(paths[:8]), max_flips=0.99)
    export_bundle(folder / "bundle", backbone, head, manifest, config)
    bundle = open_bundle(folder / "bundle")
    exact = replace(bundle, manifest={**bundle.manifest, "decoding": None})
    scorers = {name: Scorer(one, SessionConfig()) for name, one in (("exact", exact), ("scaled", bundle))}
    times: dict[str, list[float]] = {name: [] for name in scorers}
    data = [path.read_bytes() for path in paths[:8]]
    for _ in range(rounds + 1):
        for name, scorer in scorers.items():
            start = time.perf_counter()
            scorer.score("a red bicycle", data)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(values[1:])) for name, values in times.items()} | {"scale": float(bundle.scale or 0)}


def peak_mib(photo: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Return the peak of a process that decodes one picture, by encoding and way."""
    image, found = enlarged(photo, LARGEST, 0), {}
    for name, progressive in (("baseline", False), ("progressive", True)):
        path = folder / f"{name}.jpg"
        image.save(path, quality=85, progressive=progressive)
        found[name] = {}
        for way in WAYS:
            code = PEAK.format(root=str(ROOT), path=str(path), scale=way)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            found[name][str(way or "exact")] = float(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--count", type=int, default=500, help="JPEGs of 12 megapixels in the job (%(default)s)")
    parser.add_argument("--distinct", type=int, default=128, help="different JPEGs, for all else (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=6, help="rounds of requests; jobs run a third as often (%(default)s)"
    )
    parser.add_argument("--sections", nargs="+", default=SECTIONS, choices=SECTIONS)
    args = parser.parse_args()
    photos = sorted(path for path in args.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    result: dict[str, Any] = {
        "processor": processor[1] if processor else platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
    }
    say(f"{result['cores']} cores of {result['processor']}; load {result['load'][0]:.2f} before")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_pictures(photos, folder / "pictures", args.distinct)
        result["megabytes"] = sum(path.stat().st_size for path in paths) / len(paths) / 1e6
        if "decode" in args.sections:
            scales(paths, photos, result)
        if "job" in args.sections:
            result["job_s"] = jobs(paths, folder, args.count, max(1, args.rounds // 3))
        if "request" in args.sections:
            result["request_ms"] = found = request_ms(paths, args.rounds, folder)
            say(f"request: {found}, {found['exact'] / found['scaled']:.2f} times")
        if "memory" in args.sections:
            result["memory_mib"] = peak_mib(photos[0], folder)
            say(f"memory: {result['memory_mib']}")
    result["load_after"] = os.getloadavg()
    print(json.dumps(result))


def scales(paths: list[Path], photos: list[Path], result: dict[str, Any]) -> None:
    """Measure rates and vectors of every scale, and that small photographs do not change."""
    spec = Towers(STARTER, machine_cache(), ["projected"]).identity.preprocess
    pixels, rates = decoded(paths, spec)
    result["decode"] = {str(way or "exact"): rate for way, rate in rates.items()}
    result["vectors"] = {"starter": moved(STARTER, pixels)}
    vit = Towers(VIT, machine_cache(), ["projected"]).identity.preprocess
    result["vectors"]["ViT-B-32"] = moved(VIT, decoded(paths, vit)[0])
    show_scales(result)
    least = 2 * SCALES[0] * min(spec.size)
    small_photos = [photo for photo in photos if min(size_of(photo)) < least]
    small, small_rates = decoded(small_photos, spec)
    result["small"] = {
        "photographs": len(small_photos),
        "equal": all(np.array_equal(small[None], small[scale]) for scale in SCALES),
        "ratio": small_rates[SCALES[0]] / small_rates[None],
    }
    say(f"small photographs: {result['small']}")


def jobs(paths: list[Path], folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Return median seconds of the job by way, on `count` files.

    Files beyond the distinct ones differ by a few bytes at their end.
    """
    (folder / "few").mkdir()
    (folder / "many").mkdir()
    for i, path in enumerate(islice(cycle(paths), count)):
        (folder / "many" / f"{i:04}.jpg").write_bytes(path.read_bytes() + i.to_bytes(4, "little"))
    for path in paths[:8]:
        (folder / "few" / path.name).symlink_to(path)
    job_s(folder / "few", folder / "warm", "exact")  # so that the one-time cost of an engine is not measured
    times: dict[str, list[float]] = {"exact": [], "scaled": []}
    for i in range(rounds):
        for decoding in times:
            times[decoding].append(job_s(folder / "many", folder / f"{decoding}{i}", decoding))
            say(f"job: {decoding}, {count} pictures, {times[decoding][-1]:.1f} s")
    found = {decoding: float(np.median(values)) for decoding, values in times.items()}
    say(f"job: {found['exact'] / found['scaled']:.2f} times")
    return found


def show_scales(result: dict[str, Any]) -> None:
    rates, rows = result["decode"], []
    for name, rate in rates.items():
        row = [name, f"{rate:.1f}", f"{rate / rates['exact']:.2f}x"]
        for found in result["vectors"].values():
            at = None if name == "exact" else found[int(name)]
            row += [f"{at['cosine_min']:.5f}", f"{at['flips']:.2%}"] if at else ["", ""]
        rows.append(row)
    header = ["scale", "per second", "speed"]
    header += [f"{model} {what}" for model in result["vectors"] for what in ("cosine", "flips")]
    say("\n".join(table(header, rows)))


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
