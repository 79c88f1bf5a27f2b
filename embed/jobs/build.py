"""`embed cache` as a function: it embeds the tables with a source and adds the vectors to the cache in a folder.

This module decides the identity, the limits, the engine of each side and how JPEGs are decoded. The manifest records
engine and decoding at the first commit, and later runs on the same cache keep them.

A table is opened once and then read from beginning to end three times, even if little of it is new:

1. to count its pictures and prompts together. Rows that are wrong are found before a model is loaded, and the totals
   decide whether engines are tried and which one is chosen;
2. to embed the pictures;
3. to embed the prompts, after all pictures, because doing both at once would need both towers in memory.

A table without prompts is not read for them. JSON is also read when it is opened, because a key may first appear in any
record. If engines are tried, the side is read once more up to its first SAMPLE new records, and so are the pictures if
ways to decode are tried. Tars are not counted, because that would mean reading the pictures; if their number decides
whether something is tried, each side is read up to TRIAL_RECORDS. A boundary (embed.unfreeze.fill) takes one more pass,
up to the last picture that it lacks.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from embed.arrays import UInt8s
from embed.cache.store import Cache, CacheWriter, DecodingEntry, Engines, ManifestFields
from embed.config import EmbeddingConfig, Limits, Wanted
from embed.devices import resolve_device
from embed.engines.choice import REFERENCE, Engine, admits, candidates
from embed.engines.device import PLACES
from embed.engines.encoders import TowerEncoder
from embed.engines.machine import machine_cache
from embed.engines.towers import SAMPLE, Towers
from embed.files import require_out
from embed.inputs.decoding import DecodePool
from embed.jobs import run
from embed.jobs.on_device import KINDS, DeviceDecoder
from embed.jobs.scaling import EXACT, choose_decoding, choose_device, kept_decoding, with_decoding
from embed.process.allocator import release_freed_memory
from embed.process.child import call_apart
from embed.progress import Progress, silent, stage
from embed.records.formats import Records, read_records
from embed.records.sources import TableSource
from embed.spec import SIDES, STARTER, InputError, Side, Source, known_fields, require_same_identity
from embed.wording import NOUN

TRIAL_PICTURES = 5_000  # with more pictures, a warning says that the starter is a small backbone

logger = logging.getLogger(__name__)

# With fewer pictures or prompts, trying the engines costs more than the fastest one saves.
TRIAL_RECORDS = 1000


@dataclass(frozen=True)
class BuildConfig(EmbeddingConfig):
    """All options of `embed cache`."""

    tables: tuple[TableSource, ...]
    out: Path
    source: Source
    wanted: Wanted = field(default_factory=Wanted)
    limits: Limits = field(default_factory=Limits)
    ray: bool = False  # pictures are decoded and encoded by a Ray cluster

    @cached_property
    def records(self) -> list[Records]:
        """The tables, which are opened once."""
        return [read_records(table, self.format, self.images_root, self.columns) for table in self.tables]


def build_cache(config: BuildConfig, progress: Progress = silent) -> dict[str, Any]:
    """Add all pictures and prompts of the tables that the cache lacks, and return what was done.

    Raise InputError if none of the pictures could be read. The cache then still has its prompts and its ledger.
    """
    require_out(config.out, "cache", overwrite=True)
    tables = config.records
    device = resolve_device(config.wanted.device)
    if config.decoding == "device":
        _require_decoding(config, device)
    if config.ray:
        from embed.jobs.ray import connect

        connect(config.ray_address)
    batch_size = config.batch_size or (32 if device == "cpu" else 256)
    towers = Towers(config.source, config.machine_cache or machine_cache(), config.features, config.ignore_exif)
    if (config.out / "manifest.json").exists():
        _require_same_cache(Cache.open(config.out), towers)
    build = _Build(config, progress, _totals(tables), device, batch_size, towers)
    if towers.needs_backbone and any(build.worth_trials.values()):
        call_apart(attrgetter("identity"), towers)  # in another process, because torch would stay in this one
    engines: dict[Side, Engine | None] = {}
    counts: dict[Side, run.Counts] = {}
    with CacheWriter(config.out, towers.identity, config.source) as writer:
        for side in SIDES:
            engines[side] = build.settle_engine(side, writer.cache())
            counts[side] = build.embed(side, engines[side], writer)
        cache = writer.cache()
    _require_some(cache, counts["images"])
    if config.source.model == STARTER and cache.count("images") > TRIAL_PICTURES:
        logger.warning(
            f"{cache.count('images'):,} pictures are more than a trial: the starter is a small backbone whose text side"
            " knows only emoji and the 1,000 classes of ImageNet; `plaudit embed backbones` lists better ones"
        )
    return {
        "cache": str(config.out),
        "device": device,
        **{side: {**count.to_json(), "in_cache": cache.count(side)} for side, count in counts.items()},
        "engines": {side: engine.to_json() for side, engine in engines.items() if engine is not None},
        "decoding": cache.decoding,
    }


@dataclass(frozen=True)
class _Build:
    """The two steps for each side: choose its engine, then embed."""

    config: BuildConfig
    progress: Progress
    totals: dict[Side, int | None]  # records of each side; None if only reading the pictures would tell
    device: str
    batch_size: int
    towers: Towers

    @cached_property
    def worth_trials(self) -> dict[Side, bool]:
        """Whether engines would be tried on a side for which nothing has been measured.

        If the user does not ask for an engine and there is little work, the reference is used without a trial.
        """
        wanted = self.config.wanted
        if candidates(wanted, self.device) == [REFERENCE]:
            return dict.fromkeys(self.totals, False)
        if (wanted.runner, wanted.precision) != ("auto", "auto"):
            return dict.fromkeys(self.totals, True)
        return self.many

    @cached_property
    def many(self) -> dict[Side, bool]:
        """Whether a side has so many records that a trial saves more time than it takes."""
        return {
            side: _at_least(TRIAL_RECORDS, side, self.config.records) if total is None else total >= TRIAL_RECORDS
            for side, total in self.totals.items()
        }

    def settle_engine(self, side: Side, cache: Cache) -> Engine | None:
        """Return the engine that made the cache, or else the best that this machine has measured, or measures now.

        Return None if there is nothing to embed.
        """
        wanted, total = self.config.wanted, self.totals[side]
        if total == 0:
            return None
        for engine in reversed(_engines(cache, side)):
            if engine.device == self.device and admits(wanted, engine):
                return engine
        found, per_s = self.towers.find(side, wanted, self.device, total), None
        if found is None and not self.worth_trials[side]:
            found = Engine(*REFERENCE, self.device)
        if found is None:
            sample = self._sample(side, cache)
            if sample is None or not len(sample):
                return None
            release_freed_memory()  # which the side before this one used
            measure, arguments = self.towers.measure, (side, sample, wanted, self.device, self.batch_size, total)
            # If this process has loaded torch anyway, no other process is needed.
            trial = measure(*arguments) if self.towers.has_backbone else call_apart(measure, *arguments)
            found, per_s = trial.engine, trial.per_s
        rate = f", {per_s:.0f} a second" if per_s else ""
        proof = f", cosine to fp32 at least {found.cosine_min:.6f} on {found.rows} of yours" if found.rows else ""
        logger.info(f"{NOUN[side]}: {found}{rate}{proof}")
        return found

    @stage("reading a sample")
    def _sample(self, side: Side, cache: Cache) -> UInt8s | list[str] | None:
        if side == "prompts":
            return run.sample_prompts(self.config.records, cache, SAMPLE)
        return run.sample_pixels(self.config.records, cache, self._pool(cache), SAMPLE)

    def settle_decoding(
        self, cache: Cache, pool: DecodePool, device: DeviceDecoder | None, encoder: TowerEncoder
    ) -> DecodingEntry:
        """Return how JPEGs are decoded: as in the cache, or else as asked for, or as a trial decides now."""
        policy, least, tables = self.config.decoding, self.config.wanted.min_cosine, self.config.records
        found = kept_decoding(cache, policy, least)
        library = None if found is None or "decoder" not in found else found.get("library", "torchvision")
        if library is not None and (device is None or device.library != library):
            found = None if policy == "device" else EXACT
        if found is None:
            found = EXACT
            if policy == "device" and device is not None:
                found = choose_device(tables, cache, pool, device, encoder, least)
            elif policy == "scaled" or self.many["images"]:
                found = choose_decoding(tables, cache, pool, encoder, policy == "scaled", least)
        if found != EXACT:
            how = f"at {found['scale']} times the size wanted" if found["scale"] else f"on {self.device}"
            proof = f"cosine to exact at least {found['cosine_min']:.6f} on {found['rows']} pictures"
            logger.info(f"{NOUN['images']}: {'large ' if found['scale'] else ''}JPEGs decoded {how}, {proof}")
        return found

    def embed(self, side: Side, engine: Engine | None, writer: CacheWriter) -> run.Counts:
        """Embed one side. `engine` and the way pictures are decoded are recorded in the manifest."""
        tables, cache = self.config.records, writer.cache()
        encoder = self._encoder({} if engine is None else {side: engine})
        fields: ManifestFields = {} if engine is None else {"engines": _with_engine(cache, side, engine)}
        if side == "prompts":
            with self.progress(self.totals[side], NOUN[side], NOUN[side]) as step:
                return run.embed_prompts(tables, writer, encoder, step=step, fields=fields)
        decoder, notes = self._decoder(cache, engine, encoder)
        if notes:
            fields["decoding"] = notes
        with self.progress(self.totals[side], NOUN[side], NOUN[side]) as step:
            rehash, at_once = self.config.rehash, 1
            if engine is not None and not self.config.ray and (engine.runner, engine.device[:4]) == ("onnx", "cuda"):
                at_once = PLACES
            return run.embed_images(
                tables, writer, encoder, decoder, rehash=rehash, at_once=at_once, step=step, fields=fields
            )

    def _encoder(self, engines: dict[Side, Engine]) -> TowerEncoder:
        if not self.config.ray:
            return TowerEncoder(self.towers, engines, self.batch_size, self.config.wanted.threads)
        from embed.jobs.ray import RayEncoder

        return RayEncoder(self.towers, engines, self.batch_size, self.config.wanted.threads)

    def _pool(self, cache: Cache) -> DecodePool:
        config = self.config
        return DecodePool(cache.identity.preprocess, config.limits, config.workers or os.cpu_count() or 1)

    def _decoder(
        self, cache: Cache, engine: Engine | None, encoder: TowerEncoder
    ) -> tuple[run.Decoder, list[DecodingEntry]]:
        """Return what decodes pictures, and the manifest's entries about it."""
        config, pool = self.config, self._pool(cache)
        if engine is None:
            return pool, cache.decoding
        if config.ray:  # the encoder of Ray is given vectors instead of pixels
            encoder = TowerEncoder(self.towers, {"images": engine}, self.batch_size, config.wanted.threads)
        device = None
        if not config.ray and self.device.partition(":")[0] in KINDS:  # Ray's actors cannot decode on a device
            readers = config.workers or os.cpu_count() or 1
            device = DeviceDecoder(pool, cache.identity.preprocess, config.limits, self.device, readers)
        entry = self.settle_decoding(cache, pool, device, encoder)
        pool.scale = entry["scale"]
        notes = with_decoding(cache, entry)
        if not config.ray:
            return device if device is not None and "decoder" in entry else pool, notes
        from embed.jobs.ray import RayDecoder

        pool.close()
        decoder = RayDecoder(
            self.towers,
            engine,
            config.limits,
            batch_size=self.batch_size,
            actors=config.ray_actors,
            workers=config.workers or 1,
            num_gpus=config.num_gpus,
            scale=entry["scale"],
        )
        return decoder, notes


def _require_decoding(config: BuildConfig, device: str) -> None:
    """Raise InputError if the device cannot decode."""
    if config.ray or device.partition(":")[0] not in KINDS:
        where = "in a Ray cluster" if config.ray else f"on {device}"
        raise InputError(
            f"--decoding device needs CUDA, and this job embeds {where}; ask for --decoding exact or scaled"
        )


def _require_some(cache: Cache, pictures: run.Counts) -> None:
    """Raise InputError that shows one of the failures if all pictures of a run failed."""
    if pictures.failed and not pictures.embedded and not pictures.known:
        last = cache.failures().slice(len(cache.failures()) - 1).to_pylist()[0]
        detail = f" ({last['detail']})" if last["detail"] else ""
        raise InputError(
            f"none of the {pictures.failed:,} pictures could be embedded; the last, {last['key']}, failed with"
            f" {last['stage']}: {last['reason']}{detail}. Check the table and --images-root; all failures are listed by"
            f" plaudit embed inspect {cache.path}"
        )


def _require_same_cache(cache: Cache, towers: Towers) -> None:
    """Raise InputError if the cache has another backbone or other features: all rows of a cache must be alike."""
    if cache.source != towers.source and towers.needs_backbone:
        call_apart(attrgetter("identity"), towers)
    if not towers.needs_backbone:  # otherwise the writer compares, once the backbone is loaded
        require_same_identity(cache.identity, f"the cache {cache.path}", towers.identity, "the backbone asked for")
    features = towers.features
    held = tuple(name for name, folder in run.FEATURE_FOLDERS.items() if cache.files("images", folder))
    if held and held != tuple(features):
        raise InputError(
            f"{cache.path} holds the features {','.join(held)}, not {','.join(features)};"
            f" say --features {','.join(held)}, or choose another --out"
        )


def _engines(cache: Cache, side: Side) -> list[Engine]:
    """Return the engines that made a cache's vectors, the latest last."""
    return [Engine(**known_fields(Engine, entry)) for entry in cache.manifest.get("engines", {}).get(side, [])]


def _with_engine(cache: Cache, side: Side, engine: Engine) -> Engines:
    used = [other for other in _engines(cache, side) if other != engine]
    return {**cache.manifest.get("engines", {}), side: [other.to_json() for other in [*used, engine]]}


@stage("counting pictures and prompts")
def _totals(tables: Sequence[Records]) -> dict[Side, int | None]:
    counts = [records.counts() for records in tables]
    by_side = {side: [count[side] for count in counts] for side in SIDES}
    return {side: None if None in found else sum(filter(None, found)) for side, found in by_side.items()}


def _at_least(count: int, side: Side, tables: Sequence[Records]) -> bool:
    """Whether the tables hold at least that many pictures or prompts. Reading stops when that is known."""
    for records in tables:
        for batch in records.images() if side == "images" else records.prompts():
            count -= len(batch)
            if count <= 0:
                return True
    return count <= 0
