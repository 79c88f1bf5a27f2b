"""The page that searches, clicked and typed: what it shows is what the service's own search gives."""

import csv
import io
import json
from typing import Any

import pytest
from pages_site import DUPLICATES, PICTURES, picture_name
from playwright.sync_api import Page, Route, expect
from service_server import Running, base64_of, small_picture

from embed.files import content_id


def hits_of(site: Running, **asked: Any) -> list[dict[str, Any]]:
    answer = site.client.post("/v1/similar", json={"k": 48, "dedup": 0.97, "popularity_weight": 0.3, **asked})
    assert answer.status_code == 200, answer.text
    hits: list[dict[str, Any]] = answer.json()["hits"]
    return hits


def expect_hits(page: Page, hits: list[dict[str, Any]]) -> None:
    """The tiles come to show these hits in their order."""
    wanted = [hit["thumbnail"] for hit in hits]
    page.wait_for_function(SHOWN, arg=wanted)


SHOWN = """(wanted) => {
    const shown = [...document.querySelectorAll(".grid > li img")].map((one) => new URL(one.src).pathname);
    return shown.length === wanted.length && shown.every((path, i) => path === wanted[i]);
}"""


def search(page: Page, words: str) -> None:
    page.get_by_role("searchbox", name="What to search for").fill(words)
    page.keyboard.press("Enter")


def open_filters(page: Page) -> None:
    panel = page.locator("aside > details")
    if not panel.evaluate("one => one.open"):
        panel.locator("> summary").click()


def test_it_begins_with_the_most_popular(page: Page, site: Running) -> None:
    page.goto("/")
    expect(page.get_by_text("most popular of")).to_be_visible()
    popular = site.client.post("/v1/browse", json={"by": "popularity", "k": 48}).json()["hits"]
    expect_hits(page, popular)


def test_words_and_the_slider_with_both_figures_counts_and_rate_at_each_hit(page: Page, site: Running) -> None:
    page.goto("/")
    search(page, "a cat")
    expect(page.get_by_text("best hit")).to_be_visible()
    hits = hits_of(site, likes=[{"text": "a cat"}])
    expect_hits(page, hits)
    tile = page.locator(".grid > li").first
    expect(tile.locator(".similarity .figure")).to_have_text(f"{hits[0]['similarity']:.3f}")
    expect(tile.locator(".popularity .figure")).to_have_text(f"{hits[0]['percentile']:.0f} %")
    expect(tile.locator("small")).to_have_text(f"{hits[0]['count']:.0f} of 200 · {100 * hits[0]['rate']:.1f} %")
    slider = page.get_by_role("slider", name="Popularity weight")
    for weight in (0.05, 1.0):
        slider.fill(str(weight))
        expect_hits(page, hits_of(site, likes=[{"text": "a cat"}], popularity_weight=weight))
    page.get_by_role("slider", name="Least popularity").fill("60")
    expect_hits(page, hits_of(site, likes=[{"text": "a cat"}], popularity_weight=1, min_percentile=60))
    assert "popularity=1" in page.url and "least=60" in page.url


def test_what_is_being_typed_outlives_hits_that_arrive(page: Page, site: Running) -> None:
    page.goto("/")
    box = page.get_by_role("searchbox", name="What to search for")
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/v1/similar", hold)
    box.fill("a cat")
    with page.expect_request("**/v1/similar"):
        page.get_by_role("button", name="+ Like").click()
    page.get_by_role("spinbutton", name="Weight of a cat").fill("2")
    (first,) = held
    first.continue_()
    expect_hits(page, hits_of(site, likes=[{"text": "a cat"}]))
    page.keyboard.press("Tab")
    page.wait_for_function("() => location.search.includes('like=text%3A2%3Aa+cat')")


def test_likes_and_dislikes_with_weights_stand_in_the_address(page: Page, site: Running) -> None:
    page.goto("/")
    box = page.get_by_role("searchbox", name="What to search for")
    box.fill("a cat")
    page.get_by_role("button", name="+ Like").click()
    box.fill("a dog")
    page.get_by_role("button", name="− Dislike").click()
    expect(page.locator(".chips li")).to_have_count(2)
    page.get_by_role("spinbutton", name="Weight of a cat").fill("2")
    page.keyboard.press("Tab")
    wanted = hits_of(site, likes=[{"text": "a cat", "weight": 2}], dislikes=[{"text": "a dog"}])
    expect_hits(page, wanted)
    page.reload()
    expect_hits(page, wanted)
    expect(page.locator(".chips li.dislike .label")).to_have_text("a dog")
    page.get_by_role("button", name="a dog is disliked").click()
    expect_hits(page, hits_of(site, likes=[{"text": "a cat", "weight": 2}, {"text": "a dog"}]))
    page.get_by_role("button", name="Remove a dog").click()
    expect_hits(page, hits_of(site, likes=[{"text": "a cat", "weight": 2}]))
    page.go_back()
    expect(page.locator(".chips li")).to_have_count(2)


DROP = """async ([kind, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
    const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true })
                                  : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
    document.body.dispatchEvent(event);
}"""


@pytest.mark.parametrize("how", ["chosen", "drop", "paste"])
def test_by_a_picture(page: Page, site: Running, how: str) -> None:
    picture = small_picture(100)
    page.goto("/")
    expect(page.locator(".grid > li").first).to_be_visible()
    if how == "chosen":
        page.locator("input[type=file]").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture})
    else:
        page.evaluate(DROP, [how, list(picture)])
    expect(page.locator(".chips li")).to_have_count(1)
    expect(page.get_by_text("best hit")).to_be_visible()
    expect_hits(page, hits_of(site, likes=[{"image": base64_of(picture)}]))


def test_a_dropped_or_pasted_picture_of_the_catalogue_does_not_find_itself(page: Page, site: Running) -> None:
    def finds_itself(picture: bytes) -> bool:
        vector = site.client.post("/v1/embed", json={"images": [base64_of(picture)]}).json()["images"][0]["embedding"]
        return content_id(picture) in {hit["id"] for hit in hits_of(site, likes=[{"vector": vector}])}

    picture = next(picture for picture in map(small_picture, range(PICTURES)) if finds_itself(picture))
    page.goto("/")
    expect(page.locator(".grid > li").first).to_be_visible()
    for how in ("drop", "paste"):
        page.evaluate(DROP, [how, list(picture)])
        expect(page.locator(".chips li")).to_have_count(1)
        found = hits_of(site, likes=[{"image": base64_of(picture)}])
        assert content_id(picture) not in {hit["id"] for hit in found}
        expect_hits(page, found)
        page.get_by_role("button", name="Remove dropped.png").click()
        expect(page.get_by_text("most popular of")).to_be_visible()


def test_what_is_no_picture_and_a_link_that_is_not_allowed_are_refused_in_words(page: Page) -> None:
    page.goto("/")
    broken = {"name": "b.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.locator("input[type=file]").set_input_files(broken)
    expect(page.get_by_role("alert")).to_contain_text("The picture cannot be used")
    page.get_by_role("button", name="Remove b.png").click()
    search(page, "https://pictures.example/a.png")
    expect(page.get_by_role("alert")).to_contain_text("not on this service's list of hosts")
    expect(page.locator(".chips li .label")).to_have_text("https://pictures.example/a.png")


def test_filters_with_the_columns_that_there_are(page: Page, site: Running) -> None:
    page.goto("/?q=a+cat")
    open_filters(page)
    group = page.locator(".filters details", has=page.locator("summary", has_text="kind"))
    group.locator("summary").click()
    group.get_by_text("it's").click()
    expect_hits(page, hits_of(site, likes=[{"text": "a cat"}], where="kind = 'it''s'"))
    years = page.locator(".filters details", has=page.locator("summary", has_text="year"))
    years.locator("summary").click()
    page.get_by_label("year from").fill("2010")
    page.keyboard.press("Tab")
    expect_hits(page, hits_of(site, likes=[{"text": "a cat"}], where="kind = 'it''s' and year >= 2010"))
    page.get_by_label("Condition").fill("year >")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("alert")).to_contain_text("the filter")
    page.get_by_label("Condition").fill("year > 3000")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Nothing was found")).to_be_visible()
    page.get_by_role("button", name="Clear all filters").click()
    expect_hits(page, hits_of(site, likes=[{"text": "a cat"}]))
    page.get_by_label("Few of each").select_option("kind")
    expect_hits(page, hits_of(site, likes=[{"text": "a cat"}], group_by="kind", per_group=1))


def test_near_duplicates_and_dissimilar_pictures_are_left_out(page: Page, site: Running) -> None:
    page.goto("/?q=a+cat")
    expect_hits(page, hits_of(site, likes=[{"text": "a cat"}]))
    page.get_by_label("Hide near-duplicates").uncheck()
    every = hits_of(site, likes=[{"text": "a cat"}], dedup=None)
    fewer = hits_of(site, likes=[{"text": "a cat"}], k=PICTURES)
    assert len(fewer) == PICTURES - DUPLICATES
    expect_hits(page, every)
    page.get_by_label("Similarity").select_option("90")
    few = hits_of(site, likes=[{"text": "a cat"}], dedup=None, min_similarity_percentile=90)
    assert len(few) == PICTURES // 10
    expect_hits(page, few)


def test_more_and_less_like_a_hit(page: Page, site: Running) -> None:
    page.goto("/?q=a+cat")
    first = hits_of(site, likes=[{"text": "a cat"}])[0]
    page.get_by_role("button", name="More like ").first.click()
    more = hits_of(site, likes=[{"text": "a cat"}, {"id": first["id"]}])
    expect_hits(page, more)
    page.get_by_role("button", name="Less like ").first.click()
    expect_hits(page, hits_of(site, likes=[{"text": "a cat"}, {"id": first["id"]}], dislikes=[{"id": more[0]["id"]}]))


def test_all_by_keys(page: Page, site: Running) -> None:
    page.goto("/?q=a+cat")
    hits = hits_of(site, likes=[{"text": "a cat"}])
    expect_hits(page, hits)
    page.keyboard.press("/")
    box = page.get_by_role("searchbox", name="What to search for")
    expect(box).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    tiles = page.locator(".grid .open")
    expect(tiles.nth(0)).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("c")
    expect(page.locator(".said.shown")).to_contain_text("clipboard")
    assert page.evaluate("navigator.clipboard.readText()") == hits[1]["key"]
    page.keyboard.press("Enter")
    large = page.locator("dialog.viewer figure img")
    expect(large).to_have_attribute("src", large_of(page, hits[1]))
    page.keyboard.press("ArrowRight")
    expect(large).to_have_attribute("src", large_of(page, hits[2]))
    page.get_by_role("button", name="Copy id").click()
    expect(page.locator("dialog .said.shown")).to_contain_text("id is on the clipboard")
    assert page.evaluate("navigator.clipboard.readText()") == hits[2]["id"]
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("m")
    expect(page.locator(".chips li.like")).to_have_count(1)


def large_of(page: Page, hit: dict[str, Any]) -> str:
    return page.url.split("/?")[0] + hit["thumbnail"] + "?size=2048"


def test_hits_as_files(page: Page, site: Running) -> None:
    page.goto("/?q=a+cat")
    hits = hits_of(site, likes=[{"text": "a cat"}])
    expect_hits(page, hits)
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON").click()
    found = json.loads(download.value.path().read_text())
    assert [hit["key"] for hit in found] == [hit["key"] for hit in hits]
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_bytes().decode(), newline="")))
    assert [row["id"] for row in rows] == [hit["id"] for hit in hits]
    assert {row["key"] for row in rows} == {picture_name(i) for i in range(PICTURES)} & {row["key"] for row in rows}
    cells = [value for row in rows for value in row.values()]
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells), "a spreadsheet would take it for a formula"


def test_no_cell_of_a_file_is_a_formula(page: Page) -> None:
    """A spreadsheet shows each value as it is, behind an apostrophe where it would compute it."""
    page.goto("/")
    texts = [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "＝1+1",
        "a=1",
        'say "hi", or not',
        "two\nlines",
        " =1",
    ]
    hits = [{"key": text, "id": "i", "metadata": {text: text, "n": -1.5, "list": [1, "a"]}} for text in texts]
    written = page.evaluate(CSV, hits)
    rows = list(csv.reader(io.StringIO(written, newline="")))
    formulas = texts[:8]
    expected = [f"'{text}" if text in formulas else text for text in texts]
    assert [row[0] for row in rows[1:]] == expected
    assert [name for name in rows[0] if name not in ("key", "id", "n", "list")] == expected
    assert {row[rows[0].index("n")] for row in rows[1:]} == {"-1.5"}, "a number stays one"
    assert {row[rows[0].index("list")] for row in rows[1:]} == {'[1,"a"]'}


CSV = "async (hits) => (await import(new URL('pages/words.js', document.baseURI))).csv(hits)"


def test_without_the_service_it_says_so(page: Page, site: Running) -> None:
    page.goto("/")
    expect(page.locator(".grid > li").first).to_be_visible()
    page.route("**/v1/**", lambda route: route.abort())
    search(page, "never asked before")
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
    page.unroute("**/v1/**")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("best hit")).to_be_visible()
