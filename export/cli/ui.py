"""`plaudit ui`: the pages over what `plaudit run` made."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from embed.options import Range
from embed.spec import InputError
from export.cli.whole import SCORES
from runtime.config import RequestLimits, ServiceConfig, VotingConfig

VOTES = "votes.db"  # in the folder


def ui(folder: Path, /, *, port: Annotated[int, Range(0, 65_535)] = 8000, open: bool = True) -> dict[str, object]:
    """Show what `plaudit run` made in a browser: search it, rank it, and compare its pictures, until Ctrl-C.

    The pages are for this machine alone. With the extra `votes`, choices between two pictures are written to votes.db
    in the folder, which `plaudit update` learns from.

    Example:
        plaudit ui out

    Args:
        folder: A folder made by `plaudit run`.
        port: The port to listen on, or 0 for any that is free.
        open: Do not open a browser. The address of the pages is printed.
    """
    bundle, catalogue, report = folder / "bundle", folder / "catalogue", folder / "report.html"
    if not (bundle / "bundle.json").is_file():
        raise InputError(
            f"{folder} has no bundle to show: `plaudit run TABLE --images PICTURES --out {folder}` makes one, and"
            " `plaudit runtime serve BUNDLE --pages` shows one from elsewhere"
        )
    scores = folder / SCORES
    there = (catalogue / "manifest.json").is_file()
    votes = str(folder / VOTES) if there and find_spec("sqlalchemy") else None
    from runtime.cli.serve import serve

    return serve(
        bundle,
        port=port,
        open=open,
        service=partial(
            ServiceConfig,
            pages=True,
            catalogue=catalogue if there else None,
            report=report if report.is_file() else None,
            scores=scores if there and scores.is_file() else None,
        ),
        limits=RequestLimits(),
        voting=VotingConfig(votes=votes),
    )
