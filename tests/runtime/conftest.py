"""What tests of the service share: pictures, what a scorer says of them, and the service that runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from catalogue_fakes import make_cache, make_labels
from service_server import Running, serving, small_picture

from embed.files import content_id
from runtime.catalogue.reader import Catalogue
from runtime.catalogue.writer import build
from runtime.config import IndexConfig, PopularityConfig, SessionConfig
from runtime.scoring.scorer import Scorer


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    return [small_picture(seed) for seed in range(6)]


@pytest.fixture(scope="session")
def scorer(bundle: Path) -> Scorer:
    return Scorer.load(bundle, SessionConfig(threads=1))


@pytest.fixture(scope="session")
def catalogue(scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Of 60 small pictures, p0.png and so on, of which no files are there."""
    folder = tmp_path_factory.mktemp("similar")
    contents = [small_picture(i) for i in range(60)]
    vectors, ids = scorer.embed_images(contents), [content_id(content) for content in contents]
    cache = make_cache(folder / "cache", vectors, of=scorer.identity, ids=ids)
    return build(folder / "catalogue", cache, make_labels(60), PopularityConfig(), IndexConfig("exact", 0.9))[0]


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    """What `running` is started with; a module that wants more has a fixture of this name."""
    return {}


@pytest.fixture(scope="module")
def running(bundle: Path, options: dict[str, Any]) -> Iterator[Running]:
    """The service with the smallest bundle, for all tests of a module."""
    with serving(bundle, **options) as running:
        yield running
