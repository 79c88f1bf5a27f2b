"""The commands of `python -m embed`."""

from collections.abc import Sequence

from embed.cli.app import run

ABOUT = "Turn pictures and prompts into a cache of vectors, and inspect caches."
COMMANDS = {
    "cache": "embed.cli.cache:cache",
    "backbones": "embed.cli.backbones:backbones",
    "inspect": "embed.cli.inspect:inspect",
    "verify": "embed.cli.verify:verify",
    "adopt": "embed.cli.vectors:adopt",
    "merge": "embed.cli.vectors:merge",
    "refresh": "embed.cli.vectors:refresh",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run("embed", ABOUT, COMMANDS, argv)
