"""The whole embedding job on JPEG files, and what it consists of: decoding, the copy to the device, the engine.

The job is that of `embed cache` (embed.jobs.run) with its engine loaded and warm, from listing a folder to the last
shard on disk, its decoding processes started on the way. `steady` leaves out its first quarter.
"""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from on_gpu.common import Context

if TYPE_CHECKING:
    from embed.arrays import UInt8s
    from embed.engines.encoders import TowerEncoder
    from embed.engines.towers import Towers

COUNTS = {"ViT-B-32": 8000, "ViT-L-14": 4000}  # pictures
BATCH = 256  # as embed.jobs.build has it on a GPU


def measure(context: Context) -> dict[str, object]:
    """Pictures a second by backbone and engine."""
    counts = context.sized({name: COUNTS.get(name, 2000) for name in context.models}, {"tiny": 48})
    sizes = context.photo_sizes()
    context.say(f"photos of {sizes['megapixels']:.2f} megapixels and {sizes['kilobytes']:.0f} kB")
    found: dict[str, object] = {"photos": sizes, "workers": context.workers}
    bars: dict[str, float] = {}
    for name, count in counts.items():
        models = measure_model(context, name, count)
        found[name] = models
        for engine, rates in models["engines"].items():
            bars[f"{name} {engine}"] = rates["job_per_s"]
        context.release()
    return {**found, "bars": {"unit": "pictures a second, whole job", "values": bars}}


def measure_model(context: Context, name: str, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Rates of one backbone with each engine, beside those of decoding and copying."""
    from embed.engines.choice import Engine
    from embed.engines.encoders import TowerEncoder
    from embed.engines.towers import Towers

    folder = context.pictures(count)
    towers = Towers(context.source(name), context.machine_cache, ["projected"])
    pixels = np.random.default_rng(0).integers(
        0, 256, (context.sized(BATCH, 16), *towers.identity.preprocess.size, 3), np.uint8
    )
    parts = {"decode_per_s": decode_only(towers, folder, context.workers), "copy_per_s": copy_only(context, pixels)}
    engines: dict[str, dict[str, float]] = {}
    # Graphs first: torch in fp32 moves the backbone itself to the device, and an export wants it on the CPU.
    for runner, precision in sorted(context.engines):
        engine = Engine(runner, precision, context.device)
        encoder = TowerEncoder(towers, {"images": engine}, len(pixels))
        start = time.perf_counter()
        encoder.images(pixels)
        start_s = time.perf_counter() - start
        rates = {"engine_per_s": engine_only(context, encoder, pixels), **whole_job(context, towers, encoder, folder)}
        least = min(rates["engine_per_s"], parts["decode_per_s"])
        rates |= {"job_of_least": rates["job_per_s"] / least, "start_s": start_s}
        # The share of the job's time that one after another they would take; they overlap.
        rates |= {f"{part}_share": rates["job_per_s"] / parts[f"{part}_per_s"] for part in ("decode", "copy")}
        engines[f"{runner} {precision}"] = rates
        show(context, name, count, f"{runner} {precision}", {**parts, **rates})
        del encoder
        context.release()
    return {"parts": {"all": parts}, "engines": engines}


def show(context: Context, name: str, count: int, engine: str, rates: dict[str, float]) -> None:
    """Print one engine's rates as soon as they are known."""
    names = ("decode_per_s", "copy_per_s", "engine_per_s", "steady_per_s", "job_per_s", "job_of_least", "start_s")
    title = f"{name}, {count} pictures, {engine}"
    context.show([title, *names], [("", *(f"{rates[each]:,.4g}" for each in names))])


def decode_only(towers: "Towers", folder: Path, workers: int) -> float:
    """Pictures a second that the job's processes read and decode, once they have started."""
    from embed.config import Limits
    from embed.inputs.decoding import CHUNK, Chunk, DecodePool, Picture

    files = sorted(folder.iterdir())

    def decode(paths: list[Path]) -> int:
        starts = range(0, len(paths), CHUNK)
        chunks = [Chunk([Picture(p.name, str(p)) for p in paths[start : start + CHUNK]]) for start in starts]
        done = [picture for chunk in pool.run(chunks) for picture in chunk.pictures]
        if failed := [picture.failure for picture in done if picture.failure]:
            raise RuntimeError(f"{len(failed)} pictures could not be decoded: {failed[0]}")
        return len(done)

    pool = DecodePool(towers.identity.preprocess, Limits(), workers)
    try:
        decode(files[: 2 * workers * CHUNK])
        start = time.perf_counter()
        return decode(files) / (time.perf_counter() - start)
    finally:
        pool.close()


def copy_only(context: Context, pixels: "UInt8s") -> float:
    """Pictures a second of the copy of a batch, from where decoders leave it to the device."""
    import torch

    host = torch.from_numpy(pixels)
    return len(pixels) / context.median_s(lambda: host.to(context.device, copy=True), context.sized(20, 3))


def engine_only(context: Context, encoder: "TowerEncoder", pixels: "UInt8s") -> float:
    """Pictures a second of the warm engine, from an array on the host to vectors on the host."""
    batches = context.sized(12, 2)
    encoder.images(pixels)
    start = time.perf_counter()
    for _ in range(batches):
        encoder.images(pixels)
    return batches * len(pixels) / (time.perf_counter() - start)


def whole_job(context: Context, towers: "Towers", encoder: "TowerEncoder", folder: Path) -> dict[str, float]:
    """Pictures a second of the job, and of it without its first quarter."""
    from embed.cache.store import CacheWriter
    from embed.config import Limits
    from embed.inputs.decoding import DecodePool
    from embed.jobs.run import embed_images
    from embed.records.formats import read_records

    times: list[tuple[int, float]] = [(0, time.perf_counter())]

    def step(done: int = 1, note: str = "", /) -> None:
        times.append((times[-1][0] + done, time.perf_counter()))

    out = context.folder / "cache"
    start = times[0][1]
    decoder = DecodePool(towers.identity.preprocess, Limits(), context.workers)
    with CacheWriter(out, towers.identity, towers.source) as writer:
        counts = embed_images([read_records(str(folder))], writer, encoder, decoder, step=step)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    if counts.failed or not counts.embedded:
        raise RuntimeError(f"of the pictures of the job {counts.failed} failed and {counts.embedded} were embedded")
    total, end = times[-1]
    done, since = next(one for one in times if one[0] >= total / 4)
    steady = (total - done) / (end - since) if done < total else counts.embedded / seconds
    return {"job_per_s": counts.embedded / seconds, "steady_per_s": steady}
