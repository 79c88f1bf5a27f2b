"""`embed cache` as a function: from tables, a source and a folder to a grown cache.

Decides what the job itself does not know: the identity, the limits, the engine of each side. The manifest records the
engine at the first commit, and later runs on that cache keep to it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embed import job
from embed.cache import EMBEDDINGS, Cache, CacheWriter
from embed.decoding import DecodePool
from embed.encoders import TowerEncoder
from embed.engines import Engine, Wanted, resolve_device
from embed.images import Limits
from embed.machine import machine_cache
from embed.records import Records, read_records
from embed.spec import InputError, Source, known_fields
from embed.towers import SAMPLE, Towers

# With fewer pictures or prompts, trying the engines costs more than the fastest one saves.
TRIAL_RECORDS = 1000

FEATURES = (("projected",), ("projected", "pooled"))


@dataclass(frozen=True)
class BuildConfig:
    """All that `embed cache` can be told."""

    tables: tuple[str, ...]
    out: Path
    source: Source
    format: str | None = None
    images_root: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    wanted: Wanted = field(default_factory=Wanted)
    features: tuple[str, ...] = ("projected",)
    ignore_exif: bool = False
    limits: Limits = field(default_factory=Limits)
    workers: int | None = None  # processes that decode; None: one for each core
    batch_size: int | None = None  # None: 32 on a CPU, 256 elsewhere
    rehash: bool = False
    ray: bool = False  # pictures are decoded and encoded by a Ray cluster
    ray_address: str | None = None  # None: one of this machine alone
    ray_actors: int = 2
    num_gpus: float = 0  # of each actor
    machine_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise InputError(f"features {','.join(self.features)}; wanted one of projected and projected,pooled")
        for name in ("workers", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; wanted at least 1")


class Reporter:
    """What a caller may want to watch; each method does nothing here."""

    def engine(self, side: str, engine: Engine, per_s: float | None) -> None:
        """The engine of a side is settled; `per_s` where it was measured just now."""

    def start(self, side: str, total: int | None) -> None:
        """Embedding of a side begins, with so many records where that is known."""

    def step(self, records: int, failures: int) -> None:
        """So many more records are done, and so many failures there are."""

    def end(self) -> None:
        """That side is done."""


def build_cache(config: BuildConfig, reporter: Reporter) -> dict[str, Any]:
    """Add every picture and prompt of the tables that the cache lacks, and say what was done."""
    tables = [read_records(table, config.format, config.images_root, config.columns) for table in config.tables]
    device = resolve_device(config.wanted.device)
    batch_size = config.batch_size or (32 if device == "cpu" else 256)
    towers = Towers(config.source, config.machine_cache or machine_cache(), config.features, config.ignore_exif)
    with CacheWriter(config.out, towers.identity, config.source) as writer:
        _require_features(writer.cache(), config.features)
        engines: dict[str, Engine] = {}
        encoder = _encoder(config, towers, engines, batch_size)
        counts = {}
        for side in EMBEDDINGS:
            cache, total = writer.cache(), _total(tables, side)
            engine = _settled_engine(side, config, cache, towers, tables, total, device, batch_size, reporter)
            fields = {}
            if engine is not None:
                engines[side] = engine
                fields = {"engines": _with_engine(cache, side, engine)}
            reporter.start(side, total)
            if side == "images":
                decoder = _ray_decoder(config, engine, batch_size) if config.ray and engine else _decoder(config, cache)
                counts[side] = job.embed_images(
                    tables, writer, encoder, decoder, rehash=config.rehash, step=reporter.step, fields=fields
                )
            else:
                counts[side] = job.embed_prompts(tables, writer, encoder, step=reporter.step, fields=fields)
            reporter.end()
        cache = writer.cache()
    return {
        "cache": str(config.out),
        "device": device,
        **{side: {**count.to_json(), "in_cache": cache.count(side)} for side, count in counts.items()},
        "engines": {side: engine.to_json() for side, engine in engines.items()},
    }


def _encoder(config: BuildConfig, towers: Towers, engines: dict[str, Engine], batch_size: int) -> TowerEncoder:
    if not config.ray:
        return TowerEncoder(towers, engines, batch_size, config.wanted.threads)
    from embed.ray_job import RayEncoder, connect

    connect(config.ray_address)
    return RayEncoder(towers, engines, batch_size, config.wanted.threads)


def _ray_decoder(config: BuildConfig, engine: Engine, batch_size: int) -> job.Decoder:
    from embed.ray_job import RayDecoder

    return RayDecoder(
        config.source,
        engine,
        config.features,
        machine_cache=config.machine_cache or machine_cache(),
        limits=config.limits,
        ignore_exif=config.ignore_exif,
        batch_size=batch_size,
        actors=config.ray_actors,
        workers=config.workers or 1,
        num_gpus=config.num_gpus,
    )


def _decoder(config: BuildConfig, cache: Cache) -> DecodePool:
    return DecodePool(cache.identity.preprocess, config.limits, config.workers or os.cpu_count() or 1)


def _require_features(cache: Cache, features: Sequence[str]) -> None:
    """InputError where the cache's shards hold other features: every row of a cache has the same ones."""
    held = tuple(name for name, folder in job.FEATURE_FOLDERS.items() if cache.files("images", folder))
    if held and held != tuple(features):
        raise InputError(
            f"{cache.path} holds the features {','.join(held)}, not {','.join(features)};"
            f" say --features {','.join(held)}, or choose another --out"
        )


def _engines(cache: Cache, side: str) -> list[Engine]:
    """What a cache's vectors were made with, the latest last."""
    return [Engine(**known_fields(Engine, entry)) for entry in cache.manifest.get("engines", {}).get(side, [])]


def _with_engine(cache: Cache, side: str, engine: Engine) -> dict[str, Any]:
    used = [other for other in _engines(cache, side) if other != engine]
    return {**cache.manifest.get("engines", {}), side: [other.to_json() for other in [*used, engine]]}


def _total(tables: Sequence[Records], side: str) -> int | None:
    counts = [records.count(side) for records in tables]
    return None if None in counts else sum(filter(None, counts))


def _at_least(count: int, side: str, tables: Sequence[Records]) -> bool:
    """Whether the tables hold that many pictures or prompts; reads no further than that."""
    for records in tables if count else ():
        for batch in records.images() if side == "images" else records.prompts():
            count -= len(batch)
            if count <= 0:
                return True
    return count <= 0


def _settled_engine(
    side: str,
    config: BuildConfig,
    cache: Cache,
    towers: Towers,
    tables: Sequence[Records],
    total: int | None,
    device: str,
    batch_size: int,
    reporter: Reporter,
) -> Engine | None:
    """The engine the cache was made with, else the best of those this machine measured before, else of a trial now.

    Without a word about engines, little work goes to the reference untried. None where there is nothing to embed.
    """
    wanted = config.wanted
    for engine in reversed(_engines(cache, side)):
        if engine.device == device and wanted.admits(engine):
            return engine
    if (found := towers.find(side, wanted, device, total)) is not None:
        reporter.engine(side, found, None)
        return found
    if (wanted.runner, wanted.precision) == ("auto", "auto") and not _at_least(TRIAL_RECORDS, side, tables):
        engine = Engine("torch", "fp32", device)
        reporter.engine(side, engine, None)
        return engine
    sample: np.ndarray | None
    if side == "images":
        # One decoder: torch is in memory, and each may need some hundred megabytes beside it.
        decoder = DecodePool(cache.identity.preprocess, config.limits, workers=1)
        sample = job.sample_pixels(tables, cache, decoder, SAMPLE)
    else:
        prompts = job.sample_prompts(tables, cache, SAMPLE)
        sample = towers.tokenize(prompts)[0] if prompts else None
    if sample is None:
        return None
    trial = towers.measure(side, sample, wanted, device, batch_size, total)
    reporter.engine(side, trial.engine, trial.per_s)
    return trial.engine
