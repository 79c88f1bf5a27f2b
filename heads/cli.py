"""`python -m heads`: train a head on a cache, and say honestly how good it is."""

import argparse
from collections.abc import Sequence

from embed import console
from heads import cli_evaluate, cli_published, cli_sweep, cli_train


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (see embed.console)."""
    parser = argparse.ArgumentParser(prog="python -m heads", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for part in (cli_train, cli_sweep, cli_evaluate, cli_published):
        part.add_commands(commands)
    return console.main(parser, argv)
