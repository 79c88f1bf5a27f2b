"""The page at /docs: all of the API, and nothing from elsewhere."""

import json
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from service_server import Running

from runtime.catalogue.reader import Catalogue
from runtime.service.docs.page import FOLDER, page_of

HOSTILE = '"><script>alert(1)</script>'


@pytest.fixture(scope="module")
def options(catalogue: Catalogue) -> dict[str, Any]:
    return {"catalogue": catalogue.path}


@pytest.fixture
def client(running: Running) -> httpx.Client:
    return running.client


class Page(HTMLParser):
    """What stands in a page: sections with their text, forms, and the addresses that a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.forms: list[dict[str, str | None]] = []
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.ids: set[str] = set()
        self.scripts: list[str | None] = []
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        assert "style" not in given and not any(name.startswith("on") for name in given), "the policy forbids these"
        self.ids.add(given.get("id") or "")
        if tag == "section":
            self._section = given.get("id") or "shapes"
        if tag == "form":
            self.forms.append(given)
        if tag == "script":
            self.scripts.append(given.get("src"))
        self.loaded += [value for name, value in attributes if name == "src" or (tag == "link" and name == "href")]  # type: ignore[misc]
        self.linked += [str(given["href"]) for _ in [0] if tag == "a"]

    def handle_data(self, data: str) -> None:
        self.sections[self._section] = self.sections.get(self._section, "") + data


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, by_method in document["paths"].items():
        for method, operation in by_method.items():
            yield method, path, operation


def test_every_route_has_its_fields_an_example_its_answers_and_a_form(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    page = Page(client.get("/docs").text)
    shapes = document["components"]["schemas"]
    assert len(page.forms) == sum(1 for _ in operations(document)) >= 10
    for method, path, operation in operations(document):
        (text,) = (
            text
            for text in page.sections.values()
            if text.startswith(method.upper() + f" {path}{operation['description']}")
        )
        assert operation["description"] in text
        assert {"data-method": method.upper(), "data-path": path}.items() <= {
            **next(form for form in page.forms if form["data-path"] == path)
        }.items()
        for status, answer in operation["responses"].items():
            assert status in text and answer["description"] in text
        for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
            schema = body["schema"]
            schema = shapes[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
            assert media_type in text and all(name in text for name in schema["properties"])
            if "examples" in schema:
                assert json.dumps(schema["examples"][0], indent=2) in text
        assert all(one["name"] in text for one in operation.get("parameters", []))
    assert all(name in page.sections["shapes"] for name in shapes)
    similar = page.sections["post-v1-similar"]
    assert similar.count("a blended score is similarity") == 2 and "at least 1; at most 1,000" in similar
    assert "1,000.0" not in similar, "in JSON and in forms alike"
    assert all(link[1:] in page.ids for link in page.linked if link.startswith("#"))


def test_nothing_is_loaded_from_elsewhere_and_no_script_but_ours_runs(client: httpx.Client) -> None:
    answer = client.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    page = Page(answer.text)
    assert sorted(page.loaded) == ["docs/docs.css", "docs/docs.js"] and page.scripts == ["docs/docs.js"]
    for name, media_type in (("docs.css", "text/css"), ("docs.js", "text/javascript")):
        file = client.get(f"/docs/{name}")
        assert file.text == (FOLDER / name).read_text() and file.headers["content-type"].startswith(media_type)
        assert not re.search(r"https?://|innerHTML|eval\(|Storage|cookie", file.text)
    assert client.get("/redoc").status_code == 404


def test_the_bare_address_leads_to_it(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.is_redirect and answer.headers["location"] == "docs" and client.head("/").is_redirect
    assert client.get("/", follow_redirects=True).url.path == "/docs"


def test_what_the_description_says_is_no_html() -> None:
    field = {"type": "string", "description": HOSTILE, "default": HOSTILE}
    document = {
        "info": {"title": HOSTILE, "version": HOSTILE, "description": HOSTILE},
        "components": {"schemas": {"A": {"description": HOSTILE, "properties": {HOSTILE: field}}}},
        "paths": {
            f"/{HOSTILE}": {
                "post": {
                    "description": HOSTILE,
                    "parameters": [{"name": HOSTILE, "in": "query", "schema": field}],
                    "requestBody": {"content": {HOSTILE: {"schema": {"properties": {HOSTILE: field}}}}},
                    "responses": {HOSTILE: {"description": HOSTILE, "content": {HOSTILE: {}}}},
                }
            }
        },
    }
    text = page_of(document)
    assert HOSTILE not in text and HOSTILE in unescape(text)
    assert Page(text).scripts == ["docs/docs.js"]
