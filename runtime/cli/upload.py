"""The command `upload`: a catalogue into Milvus."""

import argparse
from pathlib import Path
from typing import Any

from embed import console


def add_commands(commands: Any) -> None:
    """Add this module's command to those of `python -m runtime`."""
    parser = console.command(commands, "upload", upload_catalogue, "make a collection of Milvus equal to a catalogue")
    parser.add_argument("catalogue", type=Path, metavar="CATALOGUE")
    parser.add_argument("uri", metavar="URI", help="of a cluster, or a file for Milvus Lite")
    parser.add_argument("--collection", default="plaudit", help="(%(default)s)")
    parser.add_argument("--index-type", default="FLAT", help="one of Milvus's; FLAT is exact (%(default)s)")


def upload_catalogue(args: argparse.Namespace) -> dict[str, Any]:
    """Upsert every picture, delete what the catalogue no longer has."""
    from runtime.catalogue.milvus import upload
    from runtime.catalogue.reader import Catalogue

    catalogue = Catalogue.open(args.catalogue)
    upload(catalogue, args.uri, args.collection, args.index_type, console.progress).close()
    console.say(args, f"{len(catalogue)} pictures in the collection {args.collection} of {args.uri}")
    return {"uri": args.uri, "collection": args.collection, "pictures": len(catalogue)}
