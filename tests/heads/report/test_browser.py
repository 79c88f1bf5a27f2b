"""The pages of reports in a browser, at a desk and on a telephone: readable by all, and hostile names are only text."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from heads_tiny import make_cache
from hostile_texts import HOSTILE
from pages_site import SIZES, executable
from PIL import Image

from heads.cli.main import main
from heads.report.page import Picture
from heads.report.tiles import tile
from heads.report.tuned import BeforeAfter, tuned_page

PROMPTS, PICTURES = 12, 4


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An evaluation and a tuning whose prompts, names and columns are hostile; two pictures cannot be read."""
    folder = tmp_path_factory.mktemp("reports")
    prompts = [f"{HOSTILE[i % len(HOSTILE)]} {i}" for i in range(PROMPTS)]
    names = [f"{i}.png" for i in range(PROMPTS * PICTURES)]
    for i, name in enumerate(names[2:]):
        Image.new("RGB", (300, 200), (5 * i, 90, 60)).save(folder / name)
    cache = make_cache(folder / "cache", names, prompts, places=[str(folder / name) for name in names])
    liked = np.exp(4 + 6 * cache.image_embeddings()[:, 0].astype(float)).round()
    maker = [HOSTILE[i % 3] for i in range(len(names))]
    table = {"image": names, "prompt": np.repeat(prompts, PICTURES), "count": liked, "maker": maker}
    data, head, cached = (str(folder / name) for name in ("table.parquet", f"head{HOSTILE[0][:8]}", "cache"))
    pq.write_table(pa.table(table), data)
    trained = ("train", cached, "--data", data, "--split-by", "prompt", "--head", "cosine", "--epochs", "1")
    assert main([*trained, "--folds", "3", "--out", head]) == 0
    evaluated = ("evaluate", head, "--cache", cached, "--data", data, "--slice-by", "maker")
    assert main([*evaluated, "--report", str(folder / "evaluation.html")]) == 0

    shown = tile(Image.new("RGB", (300, 300), (90, 20, 60)))
    pairs = [BeforeAfter(*[Picture(shown.small, text, text, shown.full)] * 2) for text in HOSTILE[:6]]
    curves = {HOSTILE[1]: [(0.0, 1.0), (10.0, 3.0)], "judge": []}
    page = tuned_page(HOSTILE[0], HOSTILE[:2], ["", HOSTILE[3]], [[HOSTILE[4], "1"]], curves, 10, pairs, HOSTILE[5])
    (folder / "tuning.html").write_bytes(page)
    return {name: folder / f"{name}.html" for name in ("evaluation", "tuning")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # whom Chromium refuses a sandbox
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] * root)
        yield browser
        browser.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["evaluation", "tuning"])
def test_everybody_can_read_a_report_and_nothing_in_it_runs(
    reports: dict[str, Path], browser: Any, name: str, size: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    width, height = SIZES[size]
    scheme = "light" if size == "desktop" else "dark"
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, asked = context.new_page(), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(reports[name].as_uri())
    violations = Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in violations if one["impact"] in SERIOUS] == []
    assert page.evaluate("window.hacked ?? null") is None
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    # On a telephone nothing is wider than the screen, pictures can be seen, and letters of plots can be read.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(f"Math.min(...{WIDTHS})") >= 96
    assert page.evaluate(f"Math.min(...{LETTERS})") >= 10
    # It opens with pictures and a sentence.
    for opening in (".opening img", ".verdict"):
        box = page.locator(opening).first.bounding_box()
        assert box["y"] + box["height"] <= height
    # A picture opens in full, by keys too, and closes again.
    page.locator(".cards .card > button").first.focus()
    page.keyboard.press("Enter")
    full = page.locator(".full:popover-open")
    assert full.locator("img").bounding_box()["height"] > page.locator(".opening img").first.bounding_box()["height"]
    assert not [one for one in Axe().run(page).response["violations"] if one["impact"] in SERIOUS]
    page.keyboard.press("Escape")
    assert full.count() == 0
    context.close()


SERIOUS = ("serious", "critical")
WIDTHS = "[...document.querySelectorAll('img')].map((one) => one.getBoundingClientRect().width).filter((wide) => wide)"
LETTERS = """[...document.querySelectorAll('svg text')].map((one) => parseFloat(getComputedStyle(one).fontSize)
    * one.ownerSVGElement.getBoundingClientRect().width / one.ownerSVGElement.viewBox.baseVal.width)"""
