"""`python -m heads`: train a head on a cache, and say honestly how good it is."""

import argparse
from collections.abc import Sequence

from embed import console
from heads import (
    cli_calibrate,
    cli_evaluate,
    cli_generators,
    cli_papers,
    cli_project,
    cli_published,
    cli_sweep,
    cli_train,
    cli_unfreeze,
)

PARTS = (
    cli_train,
    cli_sweep,
    cli_evaluate,
    cli_calibrate,
    cli_generators,
    cli_published,
    cli_project,
    cli_unfreeze,
    cli_papers,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (see embed.console)."""
    parser = argparse.ArgumentParser(prog="python -m heads", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for part in PARTS:
        part.add_commands(commands)
    return console.main(parser, argv)
