"""One service for all tests of the pages and a browser for each module, at the sizes of a desk and of a phone."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages_site import SIZES, base_of, executable, make_site, watched
from service_server import Running, serving

from runtime.scoring.scorer import Scorer


@pytest.fixture(scope="session")
def site(bundle: Path, scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(bundle, **make_site(scorer, tmp_path_factory.mktemp("site"))) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """No longer than a module: while Playwright is at work no other test can run an event loop of its own."""
    path = executable()
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=20_000)  # of what runs beside the tests there is no saying

    with sync_playwright() as playwright:
        sandboxed = hasattr(os, "geteuid") and os.geteuid() != 0  # Chromium refuses to sandbox what root starts
        args = [] if sandboxed else ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=path, args=args)
        yield browser
        browser.close()


@pytest.fixture(params=list(SIZES))
def page(request: pytest.FixtureRequest, browser: Any, site: Running) -> Iterator[Any]:
    """A page of the site, with what may be done to it watched."""
    with watched(browser, base_of(site), request.param, permissions=["clipboard-read", "clipboard-write"]) as page:
        yield page
