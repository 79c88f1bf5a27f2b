"""The commands of `python -m runtime`."""

from collections.abc import Sequence

from embed.cli.app import run

ABOUT = "Score pictures, index them, find similar and popular ones, and serve all of this over HTTP."
COMMANDS = {
    "score": "runtime.cli.score:score",
    "score-table": "runtime.cli.score_table:score_table",
    "best-of-n": "runtime.cli.best_of_n:best_of_n",
    "index": "runtime.cli.index:index",
    "refresh": "runtime.cli.refresh:refresh",
    "index refresh": "runtime.cli.refresh:refresh",  # an alias, since both orders of words are natural
    "similar": "runtime.cli.similar:similar",
    "upload": "runtime.cli.upload:upload",
    "push": "runtime.cli.hub:push",
    "pull": "runtime.cli.hub:pull",
    "serve": "runtime.cli.serve:serve",
    "votes": "runtime.cli.votes:votes",
    "votes export": "runtime.cli.votes:export",
    "votes invite": "runtime.cli.votes:invite",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    return run("runtime", ABOUT, COMMANDS, argv)
