"""`python -m heads import`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embed.console import command, say


def add_commands(commands: Any) -> None:
    parser = command(commands, "import", import_published, "make a head of one that others published")
    parser.add_argument("weights", metavar="FILE", help="aesthetic predictor: .pth or .safetensors, tensors alone")
    parser.add_argument(
        "--cache", required=True, metavar="CACHE", help="a cache of the backbone that the head was published for"
    )
    parser.add_argument("--out", required=True, metavar="HEAD", help="the folder to write the head to")


def import_published(args: argparse.Namespace) -> dict[str, Any]:
    """Write a published head as one of ours, for the backbone of a cache."""
    import pyarrow as pa

    from embed.cache import Cache
    from embed.files import sha256_file
    from embed.spec import InputError
    from heads import store
    from heads.published import read_published

    cache = Cache.open(args.cache)
    head, config = read_published(args.weights)
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
    store.save_head(Path(args.out), head, [], pa.array([], pa.string()), manifest)
    say(
        args,
        f"{config.kind} head for vectors of {config.dim} numbers, written to {args.out}",
        f"the file does not say which backbone it is for: that it is {cache.identity.model} is taken from {args.cache}",
    )
    return {"head": str(args.out), "kind": config.kind, "model": cache.identity.model}
