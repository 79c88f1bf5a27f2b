"""Measure the whole embedding job on JPEG files, and its parts: decoding in processes and on the device, the copy to
the device, and the engine.

The job is that of `embed cache` (embed.jobs.run) with its engine loaded and warm. It is timed from listing a folder to
the last shard on disk; its decoding processes start in that time. `steady` leaves out its first quarter.
"""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from on_gpu.common import Context

if TYPE_CHECKING:
    from embed.arrays import UInt8s
    from embed.engines.encoders import TowerEncoder
    from embed.engines.towers import Towers
    from embed.inputs.decoding import DecodePool
    from embed.jobs.on_device import DeviceDecoder

COUNTS = {"ViT-B-32": 8000, "ViT-L-14": 4000}  # pictures
BATCH = 256  # as embed.jobs.build has it on a GPU
WAYS = ("processes", "device")  # of decoding
LEAST = {"ViT-B-32": 3000.0, "ViT-L-14": 1200.0}  # pictures a second on 16 cores; 5,000 and 2,400 are the goal


def measure(context: Context) -> dict[str, object]:
    """Return pictures a second by backbone and engine."""
    counts = context.sized({name: COUNTS.get(name, 2000) for name in context.models}, {"tiny": 48})
    sizes = context.photo_sizes()
    context.say(f"photos of {sizes['megapixels']:.2f} megapixels and {sizes['kilobytes']:.0f} kB")
    found: dict[str, object] = {"photos": sizes, "workers": context.workers}
    bars: dict[str, float] = {}
    for name, count in counts.items():
        models = measure_model(context, name, count)
        found[name] = models
        for engine, rates in models["engines"].items():
            bars |= {
                f"{name} {engine}, {way}": rates[f"{way}_job_per_s"] for way in WAYS if f"{way}_job_per_s" in rates
            }
        rates_of = {key: rate for key, rate in bars.items() if key.startswith(f"{name} ")}
        fastest = max(rates_of, key=lambda key: rates_of[key], default=None)
        if fastest and (least := context.sized(LEAST, {name: 1.0}).get(name)):
            context.want(f"the whole job of {fastest}, pictures a second", rates_of[fastest], least=least)
        context.release()
    return {**found, "bars": {"unit": "pictures a second, whole job", "values": bars}}


def measure_model(context: Context, name: str, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the rates of one backbone with each engine, and those of decoding and copying."""
    from embed.engines.choice import Engine
    from embed.engines.encoders import TowerEncoder
    from embed.engines.towers import Towers

    folder = context.pictures(count)
    towers = Towers(context.source(name), context.machine_cache, ["projected"])
    pixels = np.random.default_rng(0).integers(
        0, 256, (context.sized(BATCH, 16), *towers.identity.preprocess.size, 3), np.uint8
    )
    parts = decoding_parts(context, towers, folder) | {"copy_per_s": copy_only(context, pixels)}
    engines: dict[str, dict[str, float]] = {}
    # Graphs first, because torch in fp32 moves the backbone itself to the device, and an export needs it on the CPU.
    for runner, precision in sorted(context.engines):
        engine = Engine(runner, precision, context.device)
        encoder = TowerEncoder(towers, {"images": engine}, len(pixels))
        start = time.perf_counter()
        encoder.images(pixels)
        rates = {"start_s": time.perf_counter() - start, "engine_per_s": engine_only(context, encoder, pixels)}
        engines[f"{runner} {precision}"] = rates
        context.say(f"{name}, {runner} {precision}: the engine {rates['engine_per_s']:,.0f} a second")
        for way in WAYS:
            if f"{way}_decode_per_s" not in parts:
                continue
            rates |= {f"{way}_{key}": rate for key, rate in whole_job(context, towers, encoder, folder, way).items()}
            least = min(rates["engine_per_s"], parts[f"{way}_decode_per_s"])
            rates[f"{way}_job_of_least"] = rates[f"{way}_job_per_s"] / least
            job = {key.removeprefix(f"{way}_"): rate for key, rate in rates.items() if key.startswith(way)}
            header = [f"{name}, {count} pictures, {runner} {precision}, {way}", *job]
            context.show(header, [("", *(f"{rate:,.4g}" for rate in job.values()))])
        del encoder
        context.release()
    return {"parts": {"all": parts}, "engines": engines}


def decoding_parts(context: Context, towers: "Towers", folder: Path) -> dict[str, float]:
    """Return pictures a second with processes and with the device; for each library of the device also without reading,
    and decoding alone."""
    from embed.engines.jpegs import decode_jpegs
    from embed.engines.nvjpeg import decode, installed_library
    from embed.engines.plain import plain_jpeg
    from embed.inputs.images import Limits

    found: dict[str, float] = {}
    for way in WAYS:
        try:
            found[f"{way}_decode_per_s"] = decode_only(context, towers, folder, way)
        except RuntimeError as error:  # so that the other way is still measured
            context.say(f"decoding by {way} failed: {error}")
    if "device_decode_per_s" in found:
        files = [path.read_bytes() for path in sorted(folder.iterdir())[:32]]
        jpegs = {data: one for data in files if (one := plain_jpeg(data, Limits())) is not None}
        data, plain = [*jpegs], [*jpegs.values()]
        spec = towers.identity.preprocess
        for library in sorted({installed_library(), "torchvision"}):
            steps: dict[str, Callable[[], object]] = {
                f"{library}_compute_per_s": partial(decode_jpegs, data, plain, spec, context.device, library),
                f"{library}_per_s": partial(decode, data, context.device, library),
            }
            for key, step in steps.items():
                found[key] = len(jpegs) / context.median_s(step, context.sized(20, 2))
    context.show([*found], [[f"{rate:,.0f}" for rate in found.values()]])
    return found


def new_decoder(context: Context, towers: "Towers", way: str) -> "DecodePool | DeviceDecoder":
    """Return the decoder of a job, with its processes not yet started."""
    from embed.inputs.decoding import DecodePool
    from embed.inputs.images import Limits
    from embed.jobs.on_device import DeviceDecoder

    spec, limits = towers.identity.preprocess, Limits()
    pool = DecodePool(spec, limits, context.workers)
    return pool if way == "processes" else DeviceDecoder(pool, spec, limits, context.device, context.workers)


def decode_only(context: Context, towers: "Towers", folder: Path, way: str) -> float:
    """Return pictures a second that the job reads and decodes, once its processes have started."""
    from embed.inputs.decoding import CHUNK, Chunk, Picture

    files = sorted(folder.iterdir())

    def decode(paths: list[Path]) -> int:
        starts = range(0, len(paths), CHUNK)
        chunks = [Chunk([Picture(p.name, str(p)) for p in paths[start : start + CHUNK]]) for start in starts]
        done = [picture for chunk in decoder.run(chunks) for picture in chunk.pictures]
        if failed := [picture.failure for picture in done if picture.failure]:
            raise RuntimeError(f"{len(failed)} pictures could not be decoded: {failed[0]}")
        if way == "device" and not any(picture.scaled for picture in done):
            raise RuntimeError("the device took none of the pictures, or failed at all of them")
        return len(done)

    decoder = new_decoder(context, towers, way)
    try:
        decode(files[: 2 * context.workers * CHUNK])
        start = time.perf_counter()
        return decode(files) / (time.perf_counter() - start)
    finally:
        decoder.close()


def copy_only(context: Context, pixels: "UInt8s") -> float:
    """Return pictures a second of copying a batch from where decoders leave it to the device."""
    import torch

    host = torch.from_numpy(pixels)
    return len(pixels) / context.median_s(lambda: host.to(context.device, copy=True), context.sized(20, 3))


def engine_only(context: Context, encoder: "TowerEncoder", pixels: "UInt8s") -> float:
    """Return pictures a second of the warm engine, from an array on the host to vectors on the host."""
    batches = context.sized(12, 2)
    encoder.images(pixels)
    start = time.perf_counter()
    for _ in range(batches):
        encoder.images(pixels)
    return batches * len(pixels) / (time.perf_counter() - start)


def whole_job(context: Context, towers: "Towers", encoder: "TowerEncoder", folder: Path, way: str) -> dict[str, float]:
    """Return pictures a second of the job, with and without its first quarter."""
    from embed.cache.store import CacheWriter, ManifestFields
    from embed.jobs.run import embed_images
    from embed.jobs.scaling import EXACT
    from embed.records.formats import read_records

    times: list[tuple[int, float]] = [(0, time.perf_counter())]

    def step(done: int = 1, note: str = "", /) -> None:
        times.append((times[-1][0] + done, time.perf_counter()))

    out = context.folder / "cache"
    start = times[0][1]
    decoder, fields = new_decoder(context, towers, way), ManifestFields(decoding=[EXACT])
    with CacheWriter(out, towers.identity, towers.source) as writer:
        counts = embed_images([read_records(str(folder))], writer, encoder, decoder, step=step, fields=fields)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    if counts.failed or not counts.embedded:
        raise RuntimeError(f"of the pictures of the job {counts.failed} failed and {counts.embedded} were embedded")
    total, end = times[-1]
    done, since = next(one for one in times if one[0] >= total / 4)
    steady = (total - done) / (end - since) if done < total else counts.embedded / seconds
    return {"job_per_s": counts.embedded / seconds, "steady_per_s": steady}
