"""`plaudit ui`: show in a browser what `plaudit run` made."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from embed.options import Range
from embed.spec import InputError
from runtime.config import RequestLimits, ServiceConfig, VotingConfig

VOTES = "votes.db"  # a file in the folder


def ui(folder: Path, /, *, port: Annotated[int, Range(0, 65_535)] = 8000, open: bool = True) -> dict[str, object]:
    """Show the result of `plaudit run` in a browser: search, rank and compare its pictures, until Ctrl-C.

    The pages can only be opened on this machine. With the extra `votes`, choices between two pictures are saved to
    votes.db in the folder, and `plaudit update` learns from them.

    Example:
        plaudit ui out

    Args:
        folder: A folder made by `plaudit run`.
        port: The port to listen on, or 0 for any free port.
        open: Do not open a browser. The address of the pages is printed.
    """
    bundle, catalogue, report = folder / "bundle", folder / "catalogue", folder / "report.html"
    if not (bundle / "bundle.json").is_file():
        raise InputError(
            f"{folder} has no bundle to show; make one with `plaudit run TABLE --images PICTURES --out {folder}`, or"
            " show another with `plaudit runtime serve BUNDLE --pages`"
        )
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
        ),
        limits=RequestLimits(),
        voting=VotingConfig(votes=votes),
    )
