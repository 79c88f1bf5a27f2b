"""Commands with every kind of argument, for tests of embed.cli.app."""

import threading
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from waiting import wait_until

from embed.cli import console
from embed.cli.signs import WATCHER
from embed.options import Internal, Option, OptionsFile, Range, comma_separated, require_valid


@dataclass(frozen=True)
class SearchConfig:
    """How to search."""

    k: Annotated[int, Option("-k"), Range(1)] = 10
    """How many hits to give."""
    kind: Literal["auto", "exact"] = "auto"
    """The kind of index."""
    max_bytes: Annotated[int | None, Option("--max-mb", unit=2**20), Range(above=0)] = None
    """The memory to take, in MiB."""
    secret: Annotated[str, Internal()] = "no option"
    """No option sets this."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class HeadConfig:
    """What a head is like."""

    dim: Annotated[int, Internal()]
    hidden: Annotated[int, Range(1)] = 128
    """The width of the hidden layer."""
    mix: Annotated[float | Literal["auto"], Range(0, 1)] = 1.0
    """The share of new weights, or auto to let validation choose it."""
    activations: bool = True
    """Leave out what stands between the layers."""

    def __post_init__(self) -> None:
        require_valid(self)


def search(
    catalogue: Path,
    images: tuple[Path, ...] = (),
    /,
    *,
    config: SearchConfig,
    like: Annotated[tuple[str, ...], Option(many=True)] = (),
    hosts: Annotated[tuple[str, ...], Option("--host")] = (),
    features: Annotated[tuple[str, ...], Option(parse=comma_separated)] = ("a",),
    weight: float = 0.5,
    port: Annotated[int, Range(0, 9)] = 8,
) -> dict[str, Any]:
    """Find what is similar.

    It prints the catalogue.

    Args:
        catalogue: The folder of
            a catalogue.
        images: Pictures.
        like: What is liked.
        hosts: A host.
        features: The features.
        weight: The weight of popularity.
        port: The port.
    """
    print("for people:", catalogue)
    return asdict(config) | {
        "images": [str(image) for image in images],
        "like": like,
        "hosts": hosts,
        "features": features,
        "weight": weight,
        "port": port,
    }


def train(*, out: Path, head: partial[HeadConfig]) -> Any:
    """Train a head."""
    return {"given": head.keywords, "whole": asdict(head(dim=3))}


def listen(
    bundle: Path,
    /,
    *,
    port: Annotated[int, Range(0, 9)] = 8,
    hosts: Annotated[tuple[str, ...], Option("--allow-host")] = (),
    max_bytes: Annotated[int | None, Option("--max-mb", unit=2**20), Range(above=0)] = None,
    hushed: bool = False,
    token_file: Path | None = None,
    options: Annotated[Path | None, OptionsFile(), Option("--config")] = None,
) -> Any:
    """Wait for requests."""
    return {"port": port, "hosts": hosts, "max_bytes": max_bytes, "hushed": hushed, "token_file": token_file}


def threads() -> dict[str, object]:
    """Work until something was said of it, where somebody watches.

    Example:
        plaudit threads
    """
    names = [one.name for one in threading.enumerate()]
    if WATCHER in names:
        wait_until(lambda: console.SIGNS.has_spoken)
    print("the result")
    return {"threads": names}
