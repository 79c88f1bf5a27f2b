"""`python -m runtime`: score pictures, index them, find similar popular ones, serve all that."""

import argparse
import sys
from collections.abc import Sequence

from embed import console
from runtime.cli import catalogue, score, serve, upload

PARTS = (score, catalogue, upload, serve)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (see embed.console)."""
    parser = argparse.ArgumentParser(prog="python -m runtime", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for part in PARTS:
        part.add_commands(commands)
    argv = sys.argv[1:] if argv is None else argv
    if list(argv[:2]) == ["index", "refresh"]:  # both spellings are natural
        argv = argv[1:]
    return console.main(parser, argv)
