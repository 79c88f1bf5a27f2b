"""`python -m embed cache`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from embed.cli.console import progress, reading_words, suggest, warn
from embed.config import BoundaryConfig, DeviceConfig, EmbeddingConfig, Limits, Runner, Wanted
from embed.modes import Mode, parse_mode
from embed.options import Option
from embed.spec import Source
from embed.wording import NOUN


def cache(
    tables: tuple[str, ...],
    /,
    *,
    source: Source,
    out: Path,
    config: EmbeddingConfig,
    engine: Literal["auto", Runner, "ray"] = "auto",
    device: DeviceConfig,
    wanted: partial[Wanted],
    limits: Limits,
    boundary: Annotated[Mode | None, Option(parse=parse_mode)] = None,
    activations: partial[BoundaryConfig],
) -> dict[str, object]:
    """Embed the pictures and prompts of tables; each different one is embedded once.

    Example:
        plaudit embed cache likes.csv --images-root img --model starter --out cache

    Args:
        tables: A table or a pattern of its shards, a folder of pictures or of Parquet files, or webdataset tars.
        out: The folder of the cache. An existing cache grows.
        engine: The library that computes the vectors: torch, onnx, the faster of both (auto), or ray on a cluster.
        boundary: Also keep the activations that `python -m heads unfreeze` needs for a mode such as
            visual_upper_layers.
    """
    from embed.jobs.build import BuildConfig
    from embed.jobs.embedded import embed_tables

    wish = wanted("auto" if engine == "ray" else engine, device=device.device)
    build = BuildConfig(tables, out, source, wish, limits, engine == "ray", **vars(config))
    embedded = embed_tables(build, progress)
    print(embedded)
    result = embedded.document
    if boundary is not None:
        from embed.unfreeze.fill import extend_cache

        result["boundary"] = extend_cache(build, activations(boundary), progress)
        for side, found in result["boundary"].items():
            if found["missing"]:
                warn(f"{found['missing']} {NOUN[side]} of the cache have no activations: they are not in these tables")
    labelled = (table for table, records in zip(tables, build.records, strict=True) if records.kind)
    data = ["--data", next(labelled, "TABLE"), *reading_words(config)]
    train = ["heads", "train", out, *data, "--out", out.with_name("head")]
    if boundary is not None:
        train = ["heads", "unfreeze", out, *data, "--mode", boundary.name, "--out", out.with_name("tuned")]
    suggest(["embed", "inspect", out], train)
    return result
