"""`python -m runtime`: score pictures, index them, find similar popular ones, serve all that."""

import argparse
from collections.abc import Sequence

from embed import console
from runtime import cli_catalogue, cli_scorer, cli_service


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (see embed.console)."""
    parser = argparse.ArgumentParser(prog="python -m runtime", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    cli_scorer.add_commands(commands)
    cli_catalogue.add_commands(commands)
    cli_service.add_commands(commands)
    return console.main(parser, argv)
