"""`python -m heads project`."""

import argparse
from pathlib import Path
from typing import Any

from embed.console import command, progress, say


def add_commands(commands: Any) -> None:
    """Add this module's command to those of `python -m heads`."""
    parser = command(commands, "project", project, "move a cache into a cosine head's own space, to be indexed there")
    parser.add_argument("head", type=Path, metavar="HEAD", help="a cosine head")
    parser.add_argument("--cache", required=True, metavar="CACHE", help="the cache whose vectors to move")
    parser.add_argument("--out", type=Path, required=True, metavar="CACHE", help="the new cache")


def project(args: argparse.Namespace) -> dict[str, Any]:
    """Write the cache that `runtime index` takes with a bundle of `export onnx --space`."""
    from embed.cache.store import Cache
    from embed.spec import Identity
    from heads.store.disk import load_head
    from heads.store.project import project_cache, require_cosine

    loaded, manifest = load_head(args.head)
    head, cache = require_cosine(loaded, str(args.head)), Cache.open(args.cache)
    identity = project_cache(cache, head, Identity.from_json(manifest["identity"]), args.out, progress)
    say(args, f"{args.out}: the {cache.count('images'):,} pictures of {args.cache} in the space of {args.head}")
    return {"cache": str(args.out), "identity": identity.to_json()}
