"""`python -m heads import`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embed.console import command, say


def add_commands(commands: Any) -> None:
    parser = command(commands, "import", import_published, "make a head of one that others published")
    parser.add_argument(
        "weights",
        metavar="FILE",
        help="aesthetic predictor, or a scorer in CLIP form (PickScore, HPSv2, Social Reward) with"
        " which the cache was made: .pth, .bin or .safetensors, tensors alone",
    )
    parser.add_argument(
        "--cache", required=True, metavar="CACHE", help="a cache of the backbone that the head was published for"
    )
    parser.add_argument("--out", required=True, metavar="HEAD", help="the folder to write the head to")


def import_published(args: argparse.Namespace) -> dict[str, Any]:
    """Write a published head as one of ours, for the backbone of a cache."""
    import pyarrow as pa

    from embed.cache.store import Cache
    from embed.files import sha256_file
    from embed.spec import InputError
    from heads.store import disk
    from heads.store.published import read_published, read_scorer

    cache = Cache.open(args.cache)
    scorer = read_scorer(args.weights, cache.identity.dim)
    if scorer and not _made_with(cache.source, Path(args.weights)):
        raise InputError(
            f"{args.weights} is a backbone of its own, and {args.cache} was not made with it (--model"
            f" {cache.source.model} --pretrained {cache.source.pretrained}); embed with --pretrained {args.weights},"
            " or with TAG@ before it"
        )
    head, config = scorer or read_published(args.weights)
    if config.dim != cache.identity.dim:
        raise InputError(
            f"{args.weights} reads vectors of {config.dim} numbers and {args.cache} has {cache.identity.dim}"
            f" ({cache.identity.model}); give a cache of the backbone that the head was published for"
        )
    manifest = {
        "head": asdict(config),
        "identity": cache.identity.to_json(),
        "source": asdict(cache.source),
        "published": {"file": Path(args.weights).name, "sha256": sha256_file(Path(args.weights))},
        "split": {"by": None, "folds": None, "test_fraction": None, "seed": 0, "hash": None},
    }
    disk.save_head(Path(args.out), head, [], pa.array([], pa.string()), manifest)
    say(args, f"{config.kind} head for vectors of {config.dim} numbers, written to {args.out}")
    if not scorer:
        say(args, f"the file does not say for which backbone: {cache.identity.model} is taken from {args.cache}")
    return {"head": str(args.out), "kind": config.kind, "model": cache.identity.model}


def _made_with(source: Any, checkpoint: Path) -> bool:
    """Whether the vectors of a cache come from this very file, wherever it lies now."""
    from embed.backbones.checkpoints import FOLDER
    from embed.files import sha256_file

    if source.model.startswith(FOLDER):
        return Path(source.model.removeprefix(FOLDER)).resolve() == checkpoint.resolve().parent
    used = Path((source.pretrained or "").rpartition("@")[2])
    return used.is_file() and (used.samefile(checkpoint) or sha256_file(used) == sha256_file(checkpoint))
