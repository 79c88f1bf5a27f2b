"""Who signs in, who is kept out, and that everybody can use the pages: contrast, names and labels by axe-core."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from pages_site import base_of, watched
from playwright.sync_api import Page, expect
from service_server import TOKEN, Running, serving

from runtime.catalogue.reader import Catalogue
from runtime.service.network.sessions import COOKIE, SESSION_S, Sessions, from_own_page

PATHS = ["/?q=a+cat&dislike=text:1:a+dog", "/compare", "/look?by=head%3A+score&against=beside%3A+score&order=apart"]


@pytest.fixture(scope="module")
def guarded(bundle: Path, catalogue: Catalogue) -> Iterator[Running]:
    with serving(bundle, catalogue=catalogue.path, pages=True, tokens=(TOKEN, "another")) as running:
        yield running


@pytest.fixture
def anyone(guarded: Running) -> Iterator[httpx.Client]:
    """A client without a token."""
    with httpx.Client(base_url=guarded.client.base_url, trust_env=False, timeout=60) as client:
        yield client


def signed_in(anyone: httpx.Client, **headers: str) -> httpx.Response:
    own = {"Origin": str(anyone.base_url).rstrip("/"), **headers}
    return anyone.post("/sign-in", data={"token": TOKEN, "name": "Ann", "to": "look?by=year"}, headers=own)


def test_the_cookie_is_no_token_and_no_script_reads_it(anyone: httpx.Client) -> None:
    assert anyone.get("/v1/catalogue").status_code == 401
    answer = signed_in(anyone)
    assert answer.status_code == 303 and answer.headers["location"] == "./look?by=year"
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/", f"Max-Age={SESSION_S}"))
    assert TOKEN not in cookie and "Secure" not in cookie
    assert anyone.get("/v1/catalogue").status_code == 200
    own = {"Sec-Fetch-Site": "same-origin"}
    assert anyone.post("/v1/browse", json={"by": "popularity"}, headers=own).status_code == 200
    assert anyone.post("/admin/reload", headers=own).status_code == 401, "the cookie is for the pages alone"
    out = anyone.post("/sign-out", headers=own)
    assert out.status_code == 303 and f'{COOKIE}=""' in out.headers["set-cookie"].replace(
        f"{COOKIE}=;", f'{COOKIE}="";'
    )
    assert anyone.get("/v1/catalogue").status_code == 401
    assert "Secure" in signed_in(anyone, **{"X-Forwarded-Proto": "https"}).headers["set-cookie"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {},
    ],
)
def test_pages_of_other_sites_do_nothing_in_the_name_of_who_is_signed_in(
    anyone: httpx.Client, headers: dict[str, str]
) -> None:
    signed_in(anyone)
    answer = anyone.post("/v1/browse", json={"by": "popularity"}, headers=headers)
    assert answer.status_code == 403 and answer.json()["error"]["reason"] == "other site"
    assert anyone.post("/sign-out", headers=headers).status_code == 403
    foreign = anyone.post("/sign-in", data={"token": TOKEN}, headers=headers)
    assert foreign.status_code == 403 and "set-cookie" not in foreign.headers


def test_a_wrong_token_is_refused_and_what_was_sent_is_no_html(anyone: httpx.Client) -> None:
    own = {"Sec-Fetch-Site": "same-origin"}
    hostile = '"><script>alert(1)</script>'
    answer = anyone.post("/sign-in", data={"token": hostile, "to": hostile}, headers=own)
    assert answer.status_code == 401 and "That is not the token" in answer.text and "<script" not in answer.text
    assert "set-cookie" not in answer.headers
    for to in ("//evil.example", "https://evil.example", "/\\evil.example", "look\nx", "javascript:alert(1)", "../x"):
        answer = anyone.post("/sign-in", data={"token": TOKEN, "to": to}, headers=own)
        assert answer.headers["location"] == "./"
    assert anyone.post("/sign-in", data={"token": TOKEN, "name": "n" * 101}, headers=own).status_code == 422


def test_a_session_ends_with_its_time_and_its_token() -> None:
    sessions = Sessions([TOKEN, "another"])
    given = sessions.cookie("another", "Zoë <b>", secure=False, now=1000.0)
    assert given is not None and sessions.cookie("wrong", "", secure=False) is None
    value = given.partition(";")[0]
    headers = {b"cookie": f"a=b; {value}".encode()}
    found = sessions.of(headers, now=1001.0)
    assert found is not None and found.name == "Zoë <b>"
    assert sessions.of(headers, now=1000.0 + SESSION_S + 1) is None
    assert Sessions([TOKEN]).of(headers, now=1001.0) is None, "its token is no longer one"
    text = value.partition("=")[2]
    for i, letter in enumerate(text):
        changed = text[:i] + ("1" if letter != "1" else "2") + text[i + 1 :]
        assert sessions.of({b"cookie": f"{COOKIE}={changed}".encode()}, now=1001.0) is None
    for broken in (b"", b"\xff", b"...", COOKIE.encode() + b"=\xe9.x", COOKIE.encode() + b"=1.2.3.4"):
        assert sessions.of({b"cookie": broken}) is None
    assert Sessions([]).of(headers) is None


def test_what_changes_nothing_may_be_asked_from_the_address_bar() -> None:
    assert from_own_page("GET", {b"sec-fetch-site": b"none"}) and from_own_page("GET", {})
    assert not from_own_page("GET", {b"sec-fetch-site": b"cross-site"})
    assert from_own_page("POST", {b"origin": b"http://a.example:8000", b"host": b"a.example:8000"})
    assert not from_own_page("POST", {b"origin": b"http://a.example:9000", b"host": b"a.example:8000"})


def test_signing_in_leads_back_to_where_one_was(browser: Any, guarded: Running) -> None:
    with watched(browser, base_of(guarded), "phone") as page:
        page.goto("/?q=a+cat&popularity=0.5")
        expect(page.get_by_role("button", name="Sign in")).to_be_visible()
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("That is not the token")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        expect(page.get_by_text("best hit")).to_be_visible()
        assert page.url.endswith("/?q=a+cat&popularity=0.5")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("button", name="Sign in")).to_be_visible()


def test_axe_finds_nothing_serious(page: Page) -> None:
    """Light at a desk and dark on a phone: the colours are the same at both sizes."""
    from axe_playwright_python.sync_playwright import Axe

    at_desk = page.viewport_size == {"width": 1280, "height": 800}
    page.emulate_media(color_scheme="light" if at_desk else "dark")
    for path in PATHS:
        page.goto(path)
        expect(page.locator(".grid > li img, .pair img").first).to_be_visible()
        if path == "/compare":
            page.locator(".summary summary").click()
            expect(page.locator(".summary table")).to_be_visible()
        elif not page.locator("aside > details").evaluate("one => one.open"):
            page.locator("aside > details > summary").click()
        assert serious(Axe().run(page)) == []
        page.locator(".grid .open").first.click() if path != "/compare" else page.keyboard.press("z")
        expect(page.locator("dialog[open]")).to_be_visible()
        assert serious(Axe().run(page)) == []
    page.evaluate("window.violated = null")  # axe itself asks for what the policy forbids


def test_axe_finds_nothing_serious_where_something_is_open_missing_or_wrong(page: Page) -> None:
    from axe_playwright_python.sync_playwright import Axe

    at_desk = page.viewport_size == {"width": 1280, "height": 800}
    page.emulate_media(color_scheme="dark" if at_desk else "light")
    nothing, wrong = (quote(json.dumps({"values": {}, "ranges": {}, "own": own})) for own in ("year > 3000", "year >"))
    for path, key, shown in (
        (f"/?q=a+cat&filters={nothing}", "", ".notice"),
        (f"/?q=a+cat&filters={wrong}", "", ".notice.fault"),
        ("/compare", "s", "dialog[open]"),
        ("/docs", "", "table"),
    ):
        page.goto(path)
        if key:
            expect(page.locator(".pair img")).to_have_count(2)
            page.keyboard.press(key)
        expect(page.locator(shown).first).to_be_visible()
        assert serious(Axe().run(page)) == [], path
    page.evaluate("window.violated = null")


def serious(results: Any) -> list[tuple[str, str]]:
    found = results.response["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]


def test_without_votes_and_without_a_catalogue_the_pages_say_so(browser: Any, bundle: Path) -> None:
    with serving(bundle, pages=True) as bare, watched(browser, base_of(bare), "phone") as page:
        for path, words in (("/", "nothing to search"), ("/look", "nothing to rank"), ("/compare", "without --votes")):
            page.goto(path)
            expect(page.get_by_role("alert")).to_contain_text(words)


def test_nothing_that_a_page_loads_is_from_elsewhere_or_runs_text(site: Running) -> None:
    for path in ("/", "/compare", "/look"):
        answer = site.client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert "require-trusted-types-for 'script'" in policy and answer.headers["x-content-type-options"] == "nosniff"
        loaded = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        assert loaded and not any(re.match("[a-z]+:|//", one) for one in loaded)
        assert not re.search(r"<script(?! type=\"module\" src=)|<style| style=| on\w+=", answer.text)
        for one in loaded:
            file = site.client.get(f"/{one}")
            assert file.status_code == 200
            again = site.client.get(f"/{one}", headers={"If-None-Match": file.headers.get("etag", "none")})
            assert again.status_code == (304 if "etag" in file.headers else 200)


def test_no_script_of_ours_makes_html_of_text() -> None:
    from runtime.service.pages.page import FOLDER

    for file in FOLDER.glob("*.js"):
        text = file.read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|https?://",
            text.replace("https?:\\/\\/", ""),
        ), file.name
