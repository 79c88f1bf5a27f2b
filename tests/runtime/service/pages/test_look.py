"""The page that ranks a catalogue: its orders are those of numbers computed here, and it scrolls through all."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pages_site import PICTURES
from playwright.sync_api import Page, expect
from service_server import Running

from runtime.catalogue.reader import Catalogue
from runtime.scoring.scorer import Scorer


@pytest.fixture
def catalogue(site: Running) -> Catalogue:
    return Catalogue.open(Path(str(site.service.config.catalogue)))


def expect_order(page: Page, catalogue: Catalogue, rows: Any) -> None:
    """The first tiles are these rows of the catalogue."""
    ids = [str(catalogue.rows["image_id"][int(row)]) for row in rows[:4]]
    for place, id in enumerate(ids):
        expect(page.locator(f'.grid > li[data-i="{place}"] img')).to_have_attribute(
            "src", f"{base(page)}/v1/thumbnails/{id}?size=256"
        )


def base(page: Page) -> str:
    return page.url.split("/look")[0]


def test_every_ranking_is_a_click_away(page: Page, catalogue: Catalogue, site: Running) -> None:
    page.goto("/look")
    expect_order(page, catalogue, np.arange(PICTURES))
    scores = head_scores(catalogue, site)
    page.get_by_role("button", name="Highest score").click()
    expect_order(page, catalogue, np.argsort(-scores, kind="stable"))
    page.get_by_role("button", name="Undiscovered").click()
    places = np.argsort(np.argsort(scores)) - np.arange(PICTURES)[::-1]  # row i is the i-th most popular
    expect_order(page, catalogue, np.argsort(-places, kind="stable"))
    expect(page.locator(".grid .up").first).to_have_text(f"+{100 * places.max() / PICTURES:.0f} points")
    page.get_by_role("button", name="Overrated").click()
    expect_order(page, catalogue, np.argsort(places, kind="stable"))
    page.get_by_role("combobox", name="Order", exact=True).select_option("apart")
    expect_order(page, catalogue, np.argsort(-np.abs(places), kind="stable"))
    page.get_by_label("Rank by").select_option("year")
    page.get_by_role("combobox", name="Beside", exact=True).select_option("")
    page.get_by_role("combobox", name="Order", exact=True).select_option("lowest")
    expect_order(page, catalogue, np.argsort(catalogue.rows["year"].to_numpy(), kind="stable"))
    page.go_back()
    page.go_forward()
    assert "by=year" in page.url and "order=lowest" in page.url


def head_scores(catalogue: Catalogue, site: Running) -> np.ndarray:
    """(n,) what the head says of every picture under its own prompt."""
    return scores_of(site.service.room.engine.scorer, catalogue, site)


def scores_of(scorer: Scorer, catalogue: Catalogue, site: Running) -> np.ndarray:
    features = {"image_embedding": catalogue.vectors.astype(np.float32)}
    if scorer.reads_text:
        encoder = site.service.room.engine.scorer  # the other bundle is a head alone
        features["text_embedding"] = encoder.embed_prompts(catalogue.rows["prompt"].to_pylist())
    return scorer.score_vectors(features)["score"]


def test_two_scores_side_by_side_where_they_disagree_most(page: Page, catalogue: Catalogue, site: Running) -> None:
    page.goto("/look?by=table%3A+other&against=head%3A+score&order=apart")
    table = pq.read_table(Path(str(site.service.config.scores)))
    known = dict(zip(table["image"].to_pylist(), table["other"].to_pylist(), strict=True))
    other = np.array([known[name] for name in catalogue.rows["image"].to_pylist()])
    ranks = [np.argsort(np.argsort(values)) for values in (other, head_scores(catalogue, site))]
    apart = ranks[0] - ranks[1]
    for name, label in (("table: other", "other"), ("head: score", "score")):
        expect(page.locator(".grid .figures").first.get_by_title(name)).to_have_text(label)
    first = page.locator('.grid > li[data-i="0"] .figures dd').last
    expect(first).to_contain_text(f"{100 * np.abs(apart).max() / PICTURES:.0f} points")


def test_a_second_bundle_beside_the_first(page: Page, catalogue: Catalogue, site: Running) -> None:
    """What each ranks first, how alike they rank, and below where they disagree most, with both scores."""
    page.goto("/look")
    page.get_by_role("button", name="Two heads").click()
    first = head_scores(catalogue, site)
    other = scores_of(Scorer.load(Path(str(site.service.config.beside))), catalogue, site)
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (first, other)]
    expect_order(page, catalogue, np.argsort(-np.abs(ranks[0] - ranks[1]), kind="stable"))
    sides = page.get_by_role("region", name="Two measures side by side")
    expect(sides).to_contain_text(f"Rank correlation {np.corrcoef(ranks)[0, 1]:.2f}: ")
    for side, (name, values) in enumerate((("head: score", first), ("beside: score", other))):
        expect(sides.get_by_role("heading").nth(side)).to_have_text(f"First by {name}")
        best = [str(catalogue.rows["image_id"][int(row)]) for row in np.argsort(-values, kind="stable")[:8]]
        shown = sides.locator("ol").nth(side).locator("img")
        expect(shown).to_have_count(8)
        assert [str(one.get_attribute("src")).split("/")[-1].split("?")[0] for one in shown.all()] == best
        expect(page.locator(".grid .figures").first).to_contain_text(name)
    page.get_by_role("combobox", name="Beside", exact=True).select_option("")
    expect(sides).to_have_count(0)


def test_filters_groups_and_the_file(page: Page, site: Running) -> None:
    page.goto("/look")
    panel = page.locator("aside > details")
    if not panel.evaluate("one => one.open"):
        panel.locator("> summary").click()
    page.get_by_label("Condition").fill("year >= 2015 and kind = 'animals'")
    page.keyboard.press("Tab")
    expect(page.locator(".over [role=status]")).to_have_text("5 pictures")
    page.get_by_label("Few of each").select_option("kind")
    expect(page.locator(".over [role=status]")).to_have_text("1 picture")
    page.get_by_label("Condition").fill("")
    page.keyboard.press("Tab")
    expect(page.locator(".over [role=status]")).to_have_text("3 pictures")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_bytes().decode(), newline="")))
    assert sorted(row["kind"] for row in rows) == ["animals", "it's", "objects"]
    page.get_by_label("Condition").fill("nothing = 1")
    page.keyboard.press("Tab")
    expect(page.get_by_role("alert")).to_contain_text("the filter names an unknown column 'nothing'")


def test_one_goes_through_all_by_keys_and_only_what_is_in_sight_exists(page: Page, site: Running) -> None:
    """As if the catalogue were of five thousand: only parts of the ranking are asked for, and few tiles exist."""
    total, asked = 5000, []

    def many(route: Any) -> None:
        body = route.request.post_data_json
        asked.append(body["offset"])
        found = site.client.post("/v1/browse", json=body | {"offset": 0, "k": PICTURES}).json()
        hits = [found["hits"][(body["offset"] + i) % PICTURES] for i in range(min(body["k"], total - body["offset"]))]
        route.fulfill(json=found | {"total": total, "hits": hits})

    page.route("**/v1/browse", many)
    page.goto("/look")
    expect(page.locator(".over [role=status]")).to_have_text("5,000 pictures")
    page.locator(".grid .open").first.focus()
    page.keyboard.press("End")
    expect(page.locator(f'.grid > li[data-i="{total - 1}"] .open')).to_be_focused()
    assert page.locator(".grid > li").count() < 120
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator("dialog.viewer")).to_be_visible()
    page.keyboard.press("Escape")
    page.mouse.wheel(0, -1_000_000)
    expect(page.locator('.grid > li[data-i="0"]')).to_be_visible()
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.grid > li')].some((one) => Math.abs(one.dataset.i - 2500) < 60)"
    )
    expect(page.locator(".grid .awaited")).to_have_count(0)
    assert page.locator(".grid > li").count() < 120 and len(asked) < 12


def test_the_report_is_shown_and_nothing_of_it_runs(page: Page, site: Running) -> None:
    page.goto("/look")
    page.get_by_role("button", name="Evaluation").click()
    frame = page.frame_locator("iframe.report")
    expect(frame.get_by_role("heading", name="How good it is")).to_be_visible()
    assert page.locator("iframe.report").get_attribute("sandbox") == ""
    policy = site.client.get("/v1/report").headers["content-security-policy"]
    assert policy.startswith("sandbox;") and "script" not in policy
    assert page.title() != "ran"


def test_large_and_on_to_the_search(page: Page) -> None:
    page.goto("/look")
    page.locator(".grid .open").first.click()
    page.get_by_role("link", name="Search like this").click()
    expect(page.locator(".chips li.like")).to_have_count(1)
    expect(page.get_by_text("best hit")).to_be_visible()
