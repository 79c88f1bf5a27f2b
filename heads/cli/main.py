"""`python -m heads`: train a head on a cache, and say honestly how good it is."""

import argparse
from collections.abc import Sequence

from embed import console
from heads.cli import calibrate, evaluate, generators, papers, project, published, sweep, train, unfreeze

PARTS = (
    train,
    sweep,
    evaluate,
    calibrate,
    generators,
    published,
    project,
    unfreeze,
    papers,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (see embed.console)."""
    parser = argparse.ArgumentParser(prog="python -m heads", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for part in PARTS:
        part.add_commands(commands)
    return console.main(parser, argv)
