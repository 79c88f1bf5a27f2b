"""plaudit as one command and one import: the commands and names of its four packages that most people need.

    $ plaudit run pictures.csv --images pictures --out out     the whole path, from a table to a bundle
    $ plaudit ui out                                           show the result in a browser
    $ plaudit update --votes votes.db --cache out/cache --bundle out/bundle      a better head from people's votes
    $ plaudit runtime score out/bundle --prompt "a cat" 1.jpg  every command of the four packages

    >>> from plaudit import embed, evaluate, export, score, train
    >>> cache = embed("pictures.csv", "cache", images_root="pictures")
    >>> head = train(cache, "pictures.csv", "head")
    >>> score(export(head, "bundle"), "new_pictures", prompt="a cat")

Names are imported when they are first used, so `import plaudit` takes no time. `plaudit.embed` and `plaudit.export` are
functions; to import the packages of these names, use `import embed`.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers
    from embed.cache.store import Cache as Cache
    from embed.jobs.embedded import embed as embed
    from embed.records.formats import read_records as read_records
    from embed.spec import InputError as InputError
    from export.exported import export as export
    from heads.api.calls import evaluate as evaluate
    from heads.api.calls import train as train
    from heads.reward.module import Reward as Reward
    from heads.reward.several import Rewards as Rewards
    from runtime.catalogue.reader import Catalogue as Catalogue
    from runtime.client import Client as Client
    from runtime.config import SessionConfig as SessionConfig
    from runtime.scoring.scored import score as score
    from runtime.scoring.scorer import Scorer as Scorer

PACKAGES = ("embed", "heads", "export", "runtime")
COMMANDS = {
    "run": "export.cli.whole:whole",
    "ui": "export.cli.ui:ui",
    "update": "export.cli.update:update",
    "completion": "export.cli.completion:completion",
}
ABOUT = (
    "Learn which pictures a community likes from its choices, and serve that. `run` does all steps from a table to a"
    " bundle, and `ui` shows the result; each step is a command of one of the four packages below. `update` makes a"
    " better head from people's votes."
)
NAMES = {
    "embed": "embed.jobs.embedded",
    "train": "heads.api.calls",
    "evaluate": "heads.api.calls",
    "export": "export.exported",
    "score": "runtime.scoring.scored",
    "Cache": "embed.cache.store",
    "Catalogue": "runtime.catalogue.reader",
    "Client": "runtime.client",
    "InputError": "embed.spec",
    "Reward": "heads.reward.module",
    "Rewards": "heads.reward.several",
    "Scorer": "runtime.scoring.scorer",
    "SessionConfig": "runtime.config",
    "read_records": "embed.records.formats",
}
__all__ = [*NAMES, "main"]


def __getattr__(name: str) -> object:
    if name not in NAMES:
        raise AttributeError(f"plaudit has no {name!r}; it has {', '.join(NAMES)}")
    return getattr(importlib.import_module(NAMES[name]), name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["--version"]:
        from importlib.metadata import version

        print(f"plaudit {version('plaudit')}")
        return 0
    if words and words[0] in PACKAGES:
        code: int = importlib.import_module(f"{words[0]}.cli.main").main(words[1:])
        return code
    from embed.cli.app import run

    groups = {package: importlib.import_module(f"{package}.cli.main").COMMANDS for package in PACKAGES}
    return run("plaudit", ABOUT, COMMANDS, words, groups)


if __name__ == "__main__":
    raise SystemExit(main())
