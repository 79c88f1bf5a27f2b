"""The page that asks for choices, clicked and typed: what is written down is what was meant."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from service_server import Running


@pytest.fixture(autouse=True)
def person(page: Page, request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test votes under a name of its own."""
    name = re.sub(r"\W", "", request.node.name)[-60:]
    page.add_init_script(f"localStorage.setItem('plaudit voter', '{name}')")
    page.goto("/compare")
    expect(page.locator(".pair img")).to_have_count(2)
    yield name


def in_force(site: Running, person: str) -> list[tuple[str, str | None]]:
    """The person's votes that were not taken back, in their order: what was chosen, and the reason."""
    with closing(sqlite3.connect(Path(str(site.service.config.voting.votes)))) as database:
        return database.execute(
            "select v.choice, v.reason from votes v left join undos u on u.showing = v.showing and u.turn = v.turn"
            " where v.voter = ? and u.showing is null order by v.id",
            (person,),
        ).fetchall()


def voted(page: Page, count: int) -> None:
    expect(page.locator(".standing")).to_contain_text(f"{count} of 20 votes")


@pytest.mark.parametrize(
    ("key", "choice"),
    [("1", "left"), ("ArrowLeft", "left"), ("2", "right"), ("ArrowRight", "right"), ("0", "tie"), ("b", "both_bad")],
)
def test_every_key_is_its_choice_and_stands_on_a_button(
    page: Page, site: Running, person: str, key: str, choice: str
) -> None:
    printed = {"ArrowLeft": "←", "ArrowRight": "→"}.get(key, key)
    assert printed in page.locator("main kbd").all_text_contents()
    page.keyboard.press(key)
    voted(page, 1)
    assert in_force(site, person) == [(choice, None)]


def test_by_click_with_a_reason_and_taken_back(page: Page, site: Running, person: str) -> None:
    page.get_by_role("button", name="Choose the right picture").click()
    voted(page, 1)
    page.get_by_role("button", name="Left is better").click()
    voted(page, 2)
    page.get_by_role("button", name="Equally good").click()
    voted(page, 3)
    page.get_by_role("button", name="Both bad").click()
    voted(page, 4)
    page.get_by_role("button", name="Skip…").click()
    page.get_by_label("A picture is broken").check()
    page.get_by_role("button", name="Skip the pair").click()
    expect(page.locator("dialog")).to_have_count(0)
    page.keyboard.press("s")
    page.get_by_label("Another reason").fill("<b>both</b> the same")
    page.get_by_role("button", name="Skip the pair").click()
    voted(page, 6)
    first = [("right", None), ("left", None), ("tie", None), ("both_bad", None)]
    assert in_force(site, person) == [*first, ("skip", "A picture is broken"), ("skip", "<b>both</b> the same")]
    for left in (5, 4, 3):
        page.keyboard.press("u")
        voted(page, left)
    page.get_by_role("button", name="Undo").click()
    voted(page, 2)
    assert in_force(site, person) == first[:2]
    page.keyboard.press("2")
    voted(page, 3)
    assert in_force(site, person) == [*first[:2], ("right", None)]


LOADED = """() => {
    const images = [...document.querySelectorAll(".pair img")];
    return images.length === 2 && images.every((one) => one.complete && one.naturalWidth > 0);
}"""


def pair_of(page: Page) -> tuple[str, ...]:
    return tuple(page.locator(".pair img").evaluate_all("all => all.map(one => one.src)"))


def test_the_next_pair_is_there_before_the_vote_is_answered(page: Page, person: str, site: Running) -> None:
    """With the service silent the next two pairs still follow at once, their pictures loaded; the votes come later."""
    page.wait_for_load_state("networkidle")
    held: list[Any] = []
    page.route("**/v1/compare/votes", lambda route: held.append(route), times=1)
    seen = {pair_of(page)}
    for shown in (2, 3):
        page.keyboard.press("1")
        page.wait_for_function(LOADED)
        seen.add(pair_of(page))
        assert len(seen) == shown
    assert len(held) == 1 and in_force(site, person) == []
    held[0].continue_()
    voted(page, 2)
    assert in_force(site, person) == [("left", None)] * 2


def test_zoom_is_linked(page: Page, person: str, site: Running) -> None:
    page.keyboard.press("z")
    panes = page.locator(".zoom .pane img")
    expect(panes).to_have_count(2)
    assert all("size=full" in src for src in panes.evaluate_all("all => all.map(one => one.src)"))

    def views() -> list[str]:
        found: list[str] = panes.evaluate_all("all => all.map(one => one.style.transform)")
        return found

    assert views() == ["translate(0%, 0%) scale(1)"] * 2
    page.keyboard.press("+")
    page.get_by_role("button", name="Larger").click()
    expect(page.locator(".zoom output")).to_have_text("196 %")
    box = page.locator(".zoom .pane").first.bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + box["width"] / 10, middle[1])
    page.mouse.up()
    left, right = views()
    moved = re.fullmatch(r"translate\(([\d.]+)%, .*%\) scale\(1\.96\)", left)
    assert left == right and moved and float(moved[1]) == pytest.approx(10, abs=1)
    page.mouse.wheel(0, -200)
    expect(page.locator(".zoom output")).not_to_have_text("196 %")
    assert views()[0] == views()[1]
    page.keyboard.press("f")
    expect(page.locator(".zoom output")).to_have_text("100 %")
    page.keyboard.press("2")
    expect(page.locator(".zoom")).to_have_count(0)
    voted(page, 1)
    assert in_force(site, person) == [("right", None)]


def test_instructions_progress_the_name_and_what_all_votes_say(page: Page, site: Running, person: str) -> None:
    expect(page.get_by_text("Choose the brighter one.")).to_be_visible()
    expect(page.locator(".asked q")).to_be_visible()
    page.keyboard.press("1")
    voted(page, 1)
    assert page.locator("progress").get_attribute("value") == "1"
    page.get_by_role("button", name="Change").click()
    page.get_by_label("Your name").fill(f"{person[:50]} too")
    page.get_by_role("button", name="Use it").click()
    expect(page.locator(".below strong").first).to_have_text(f"{person[:50]} too")
    voted(page, 0)
    page.locator(".summary summary").click()
    expect(page.locator(".summary")).to_contain_text("the left picture is chosen")
    expect(page.locator(".summary")).to_contain_text("No head was trained from these votes yet")
    page.route(
        "**/v1/compare/summary",
        lambda route: route.fulfill(json=route.fetch().json() | {"promotions": [PROMOTED]}),
    )
    page.locator(".summary summary").click()
    page.locator(".summary summary").click()
    expect(page.locator(".history li")).to_contain_text("promoted")
    expect(page.locator(".history li")).to_contain_text(str(PROMOTED["why"]))


PROMOTED = {"at": 1.79e9, "promoted": True, "why": "<img src=x onerror=window.hacked=1> is better"}


def test_a_picture_that_cannot_be_shown_says_so(page: Page) -> None:
    page.route("**/v1/compare/pictures/**", lambda route: route.abort())
    page.reload()
    expect(page.get_by_text("This picture cannot be shown")).to_have_count(2)


def test_two_windows_of_one_person_write_one_vote_of_a_pair(page: Page, site: Running, person: str) -> None:
    other = page.context.new_page()
    other.goto("/compare")
    expect(other.locator(".pair img")).to_have_count(2)
    assert pair_of(other) == pair_of(page)
    page.keyboard.press("1")
    voted(page, 1)
    other.keyboard.press("2")
    expect(other.get_by_role("alert")).to_contain_text("You have answered this pair already")
    assert in_force(site, person) == [("left", None)]
    other.keyboard.press("0")
    voted(other, 2)
    expect(other.get_by_role("alert")).to_have_count(0)
    assert in_force(site, person) == [("left", None), ("tie", None)]


def test_a_vote_that_cannot_be_written_is_asked_for_again(page: Page, site: Running, person: str) -> None:
    shown = pair_of(page)
    refusal = {"error": {"reason": "service unavailable", "message": "the votes cannot be written now"}}
    page.route(
        "**/v1/compare/votes",
        lambda route: route.fulfill(status=503, json=refusal, headers={"Retry-After": "0"}),
    )
    page.keyboard.press("1")
    expect(page.get_by_role("alert")).to_contain_text("the votes cannot be written now")
    assert pair_of(page) == shown and in_force(site, person) == []
    page.unroute("**/v1/compare/votes")
    page.keyboard.press("2")
    voted(page, 1)
    assert in_force(site, person) == [("right", None)]


@pytest.mark.parametrize("prompt", ["w" * 10_000, "a lighthouse " * 800, "\u202eשלום עולם \u202e<b>"])
def test_a_long_prompt_leaves_room_for_the_pictures(page: Page, prompt: str) -> None:
    def longer(route: Any) -> None:
        answer = route.fetch().json()
        route.fulfill(json=answer | {"showings": [one | {"prompt": prompt} for one in answer["showings"]]})

    page.route("**/v1/compare/next", longer)
    page.reload()
    expect(page.locator(".asked q")).to_have_text(prompt.strip())
    asked, pictures = page.locator(".asked").bounding_box(), page.locator(".pair").bounding_box()
    assert asked is not None and pictures is not None and asked["height"] < 120 and pictures["height"] > 150
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
