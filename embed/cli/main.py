"""`python -m embed`: turn pictures and prompts into a cache of vectors, and look into one."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embed import console
from embed.engines.choice import PRECISIONS, RUNNERS, Wanted
from embed.inputs.images import Limits
from embed.spec import Source
from embed.wording import NOUN


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (see embed.console)."""
    parser = argparse.ArgumentParser(prog="python -m embed", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_cache(commands)
    console.command(commands, "backbones", backbones, "list the backbones that can be used")
    inspecting = console.command(commands, "inspect", inspect, "show what a cache holds, and what failed")
    inspecting.add_argument("cache", type=Path)
    verifying = console.command(commands, "verify", verify, "check a cache's files, and embed a sample of it again")
    verifying.add_argument("cache", type=Path)
    verifying.add_argument(
        "tables", nargs="*", metavar="TABLE", help="where its pictures come from, to compare them too"
    )
    add_table_options(verifying)
    verifying.add_argument("--sample", type=int, default=64, help="pictures, and prompts, to compare (%(default)s)")
    verifying.add_argument("--min-cosine", type=float, default=0.999, help="to fp32 (%(default)s)")
    merging = console.command(commands, "merge", merge, "make one cache of several")
    merging.add_argument("caches", nargs="+", type=Path, metavar="CACHE")
    merging.add_argument("--out", type=Path, required=True, help="a new cache, or one to add to")
    refreshing = console.command(
        commands, "refresh", refresh, "a cache's vectors under a tuned backbone, no picture read"
    )
    refreshing.add_argument("cache", type=Path)
    refreshing.add_argument("--tuned", type=Path, required=True, help="a folder made by `python -m heads unfreeze`")
    refreshing.add_argument("--out", type=Path, required=True, metavar="CACHE", help="the new cache")
    refreshing.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; an absent one is an error")
    return console.main(parser, argv)


def add_cache(commands: Any) -> None:
    parser = console.command(commands, "cache", make_cache, "embed the pictures and prompts of tables, once")
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="a table, a folder of pictures, or webdataset tars")
    parser.add_argument("--model", required=True, help="a name that `backbones` lists, or any of open_clip's")
    parser.add_argument("--pretrained", help="a tag of open_clip's, or a checkpoint file")
    parser.add_argument("--out", type=Path, required=True, metavar="CACHE", help="a new cache, or one to add to")
    add_table_options(parser)
    parser.add_argument("--features", default="projected", help="projected, or projected,pooled (%(default)s)")
    parser.add_argument("--engine", default="auto", choices=("auto", *RUNNERS, "ray"), help="what computes")
    parser.add_argument("--precision", default="auto", choices=("auto", *PRECISIONS), help="of the computation")
    parser.add_argument("--min-cosine", type=float, default=0.999, help="to fp32, for auto (%(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; an absent one is an error")
    parser.add_argument("--batch-size", type=int, help="pictures or prompts at a time (32 on a CPU, else 256)")
    parser.add_argument("--workers", type=int, help="processes that decode (one for each core)")
    parser.add_argument("--ray-address", help="of the cluster, for --engine ray; one of this machine alone else")
    parser.add_argument("--ray-actors", type=int, default=2, help="that encode side by side (%(default)s)")
    parser.add_argument("--num-gpus", type=float, default=0, help="of each actor (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads of the onnx engine (one for each core)")
    parser.add_argument("--boundary", metavar="MODE", help="also keep what unfreezing by this mode is trained from")
    parser.add_argument("--boundary-dtype", default="float16", help="float16, bfloat16, int8, float32 (%(default)s)")
    parser.add_argument("--max-gb", type=float, default=100.0, help="that --boundary may add (%(default)g)")
    parser.add_argument("--rehash", action="store_true", help="read pictures again whose size and time are unchanged")
    parser.add_argument("--ignore-exif", action="store_true", help="take pictures as stored, as open_clip does")
    parser.add_argument("--max-pixels", type=int, default=Limits.max_pixels, help="of one picture (%(default)s)")
    parser.add_argument("--max-bytes", type=int, default=Limits.max_bytes, help="of one picture's file (%(default)s)")


def add_table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images-root", help="folder or URL where relative paths start; the table's own folder else")
    parser.add_argument("--format", help="the tables' format, where their columns do not tell")
    parser.add_argument("--columns", help="other names of columns, as ours=theirs,...")
    parser.add_argument(
        "--machine-cache", type=Path, help="folder of exported graphs ($PLAUDIT_CACHE, ~/.cache/plaudit)"
    )


def make_cache(args: argparse.Namespace) -> dict[str, Any]:
    from embed.jobs.build import BuildConfig, build_cache
    from embed.modes import parse_mode
    from embed.records.formats import parse_columns

    config = BuildConfig(
        tables=tuple(args.tables),
        out=args.out,
        source=Source(args.model, args.pretrained),
        format=args.format,
        images_root=args.images_root,
        columns=parse_columns(args.columns),
        wanted=Wanted(
            "auto" if args.engine == "ray" else args.engine, args.precision, args.device, args.min_cosine, args.threads
        ),
        features=tuple(args.features.split(",")),
        ignore_exif=args.ignore_exif,
        limits=Limits(args.max_bytes, args.max_pixels),
        workers=args.workers,
        batch_size=args.batch_size,
        rehash=args.rehash,
        ray=args.engine == "ray",
        ray_address=args.ray_address,
        ray_actors=args.ray_actors,
        num_gpus=args.num_gpus,
        machine_cache=args.machine_cache,
    )
    mode = parse_mode(args.boundary) if args.boundary else None
    result = build_cache(config, console.progress)
    header = ["", "embedded", "per second", "known", "failed", "cut short", "in the cache"]
    keys = ("embedded", "per_s", "known", "failed", "truncated", "in_cache")
    rows = [[NOUN[side], *(f"{result[side][key]:,.0f}" for key in keys)] for side in NOUN]
    console.say(args, *console.table(header, rows))
    if result["images"]["failed"]:
        console.say(args, f"what failed, and why: python -m embed inspect {args.out}")
    if mode is not None:
        from embed.unfreeze.fill import BoundaryConfig, extend_cache

        boundary = BoundaryConfig(mode, args.boundary_dtype, args.max_gb)
        result["boundary"] = extend_cache(config, boundary, console.progress)
        for side, found in result["boundary"].items():
            if found["missing"]:
                console.warn(f"{found['missing']} {NOUN[side]} of the cache lack activations: not in these tables")
    return result


def backbones(args: argparse.Namespace) -> dict[str, Any]:
    from embed.backbones.load import available_backbones

    found = available_backbones()
    header = ["model", "size", "dim", "here", "pretrained"]
    rows = [
        [one.model, f"{one.image_size[0]}x{one.image_size[1]}", one.dim, "yes" * one.offline, " ".join(one.pretrained)]
        for one in found
    ]
    console.say(args, *console.table(header, rows))
    return {"backbones": [asdict(one) for one in found]}


def inspect(args: argparse.Namespace) -> dict[str, Any]:
    from embed.cache.store import Cache
    from embed.jobs.verify import inspect_cache

    result = inspect_cache(Cache.open(args.cache))
    lines = [f"{name:15} {value}" for name, value in result["identity"].items() if name != "preprocess"]
    lines += [f"{name:15} {value}" for name, value in result["identity"]["preprocess"].items()]
    lines += [f"{'made by':15} {NOUN[side]}: {engine}" for side, engine in result["engines"]]
    lines += [f"{name:15} {result[name]:,}" for name in ("images", "names", "prompts", "failures")]
    for name, entry in result["boundary"].items():
        least = (entry.get("certificate") or {}).get("cosine_min", 1.0)
        lines.append(f"{'boundary':15} {name}: cosine of what it gives to fp32 at least {least:.6f}")
    console.say(args, *lines)
    if result["failures"]:
        rows = [(f"{row['stage']}: {row['reason']}", f"{row['count']:,}", row["example"]) for row in result["reasons"]]
        console.say(args, "", *console.table(["failed", "pictures", "such as"], rows))
    return result


def verify(args: argparse.Namespace) -> dict[str, Any]:
    from embed.cache.store import Cache
    from embed.engines.machine import machine_cache
    from embed.engines.towers import Towers
    from embed.jobs.verify import verify_cache
    from embed.records.formats import parse_columns, read_records

    cache = Cache.open(args.cache)
    columns = parse_columns(args.columns)
    tables = [read_records(table, args.format, args.images_root, columns) for table in args.tables]
    root = args.machine_cache or machine_cache()
    towers = Towers(cache.source, root, ["projected"], cache.identity.preprocess.ignore_exif)
    result = verify_cache(
        cache, tables, towers, Limits(), size=args.sample, min_cosine=args.min_cosine, progress=console.progress
    )
    console.say(args, f"{result['files']} files are as they were written")
    for side, noun in NOUN.items():
        compared, least = result[side]["compared"], result[side]["cosine_min"]
        if compared:
            console.say(args, f"{compared} {noun} embedded again: cosine to the stored vectors at least {least:.6f}")
    if cache.count("images") and not result["images"]["compared"]:
        console.say(args, "no pictures were compared: name the tables that they come from to do so")
    return result


def merge(args: argparse.Namespace) -> dict[str, Any]:
    from embed.jobs.merge import merge_caches

    result = merge_caches(args.caches, args.out, console.progress)
    console.say(args, f"{args.out}: {result['images']:,} pictures, {result['prompts']:,} prompts")
    return result


def refresh(args: argparse.Namespace) -> dict[str, Any]:
    from embed.devices import resolve_device
    from embed.unfreeze.refresh import refresh_cache

    result = refresh_cache(args.cache, args.tuned, args.out, resolve_device(args.device), console.progress)
    console.say(args, f"{args.out}: {result['images']:,} pictures, {result['prompts']:,} prompts")
    return result
