"""A service with pages to click through: pictures that are there, hostile names and texts, votes, scores, a report."""

import csv
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogue_fakes import make_cache, unit_vectors
from export_tiny import head_manifest, tiny_backbone, tiny_head
from hostile_texts import HOSTILE
from service_server import Running, small_picture

from embed.files import content_id
from export.config import ExportConfig
from export.head_alone import export_head_alone
from export.outputs import Outputs
from runtime.catalogue.writer import build
from runtime.config import IndexConfig, PopularityConfig, VotingConfig
from runtime.scoring.scorer import Scorer

PICTURES = 60
DUPLICATES = 3  # pictures that are their predecessor's vector again
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


def executable() -> str:
    """Where Chromium is; skips the test, or fails where browsers are required, if it is nowhere."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        how = "there is no Chromium; on Debian: apt-get install chromium"
        if os.environ.get("BROWSER_TESTS") == "required":
            pytest.fail(how)
        pytest.skip(how)
    return found


def picture_name(i: int) -> str:
    """Every third picture has a hostile name."""
    text = HOSTILE[i // 3 % len(HOSTILE)]
    return f"{i}/{text}.png" if i % 3 == 0 else f"folder/p{i}.png"


def make_site(scorer: Scorer, folder: Path) -> dict[str, Any]:
    """Options of a service: 60 pictures, whose files lie in the folder under other names than the catalogue's."""
    files = [small_picture(i) for i in range(PICTURES)]
    places = []
    for i, data in enumerate(files):
        (folder / f"{i}.png").write_bytes(data)
        places.append(str(folder / f"{i}.png"))
    vectors = unit_vectors(PICTURES, scorer.identity.dim)  # those of the tiny backbone are all alike
    for i in range(DUPLICATES):
        vectors[2 * i + 1] = vectors[2 * i]
    names, ids = [picture_name(i) for i in range(PICTURES)], [content_id(data) for data in files]
    cache = make_cache(folder / "cache", vectors, of=scorer.identity, ids=ids, uris=places, names=names)
    rng = np.random.default_rng(0)
    labels = pa.table(
        {
            "image": names,
            "count": [float(c) for c in rng.permutation(PICTURES)],
            "exposures": [200.0] * PICTURES,
            "title": [HOSTILE[i % len(HOSTILE)] if i % 2 else f"picture {i}" for i in range(PICTURES)],
            "kind": [("animals", "objects", "it's")[i % 3] for i in range(PICTURES)],
            "hostile": [HOSTILE[i % 8] for i in range(PICTURES)],
            "<img src=x onerror=window.hacked=1>": ["a"] * PICTURES,
            "__proto__": ["b"] * PICTURES,
            "year": [2000 + i % 20 for i in range(PICTURES)],
            "prompt": [f"prompt {i % 5}" for i in range(PICTURES)],
        }
    )
    index = IndexConfig("exact", 0.9)
    catalogue, _ = build(folder / "catalogue", cache, labels, PopularityConfig(), index, images_root=folder)
    pq.write_table(pa.table({"image": names, "other": rng.random(PICTURES)}), folder / "scores.parquet")
    (folder / "report.html").write_text(
        "<!doctype html><h1>How good it is</h1><script>parent.hacked=1;window.hacked=1;document.title='ran'</script>"
    )
    (folder / "instructions.txt").write_text("Choose the brighter one.\n" + HOSTILE[0])
    with open(folder / "candidates.csv", "w", newline="") as file:
        rows = [(f"{i}.png", HOSTILE[i // 4 % 8]) for i in range(48)]
        csv.writer(file).writerows([("image", "prompt"), *rows])
    manifest = head_manifest(tiny_backbone(), source=asdict(tiny_backbone().source))
    export_head_alone(folder / "beside", Outputs.of(tiny_head(seed=5), None, manifest), ExportConfig())
    voting = VotingConfig(
        votes=str(folder / "votes.db"),
        candidates=folder / "candidates.csv",
        instructions=folder / "instructions.txt",
        vote_goal=20,
        votes_per_minute=10_000,
    )
    return {
        "catalogue": catalogue.path,
        "scores": folder / "scores.parquet",
        "beside": folder / "beside",
        "report": folder / "report.html",
        "voting": voting,
        "pages": True,
        "max_queue": 1024,
    }


@contextmanager
def watched(browser: Any, base: str, size: str, **options: Any) -> Iterator[Any]:
    """A page of the browser; at its end nothing hostile ran, nothing was asked of elsewhere, and no script failed."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, base_url=base, accept_downloads=True, **options
    )
    context.set_default_timeout(20_000)
    page = context.new_page()
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
    page.add_init_script(
        "addEventListener('securitypolicyviolation', (e) => { window.violated = e.violatedDirective + e.blockedURI })"
    )
    try:
        yield page
        assert page.evaluate("[window.hacked ?? null, window.violated ?? null]") == [None, None]
        assert not wrong, wrong
        elsewhere = [url for url in asked if not url.startswith((f"{base}/", "blob:", "data:"))]
        assert asked and not elsewhere, elsewhere
    finally:
        context.close()


def base_of(running: Running) -> str:
    return str(running.client.base_url).rstrip("/")
