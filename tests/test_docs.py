"""README and docs/ say what there is: commands and options in them exist, Python runs, links lead somewhere.

A block of code is checked by its language: `sh` by the parser of each command, `python` by running it, `json` and
`toml` by reading it; `text` is what a command prints. What cannot be run has `<!-- not run: WHY -->` above it, and
Python on a page that a test of its own runs is left to that: it names the page.
"""

import importlib
import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args

import pytest
from catalogue_fakes import make_cache, make_labels
from doc_pages import (
    PAGES,
    PYPROJECT,
    ROUTES,
    Block,
    arguments,
    blocks,
    check_command,
    commands_in,
    commands_of,
    name_of,
)
from paths import ROOT
from python_tiny import tiny_model, write_likes

import plaudit
from embed.cli.app import load, read
from embed.cli.arguments import arguments_of

LANGUAGES = {"sh", "python", "js", "json", "toml", "text"}
BLOCKS = list(blocks())
CHECKED_ELSEWHERE = {
    name_of(page)
    for page in PAGES
    if any(name_of(page) in path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__))
}


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS}))
def test_every_block_is_checked_or_says_why_not(page: str) -> None:
    for block in (block for block in BLOCKS if block.page == page):
        if block.language in ("", "text"):
            known = re.findall(r"^ +(?:\$ )?((?:plaudit|python -m) (?:.*\\\n)*.*)", block.text, re.MULTILINE)
            for line in known if block.language == "" else []:
                for words in commands_in(line):
                    check_command(words)
            continue
        assert block.language in LANGUAGES, f"name the language of {block.text[:60]!r}: {sorted(LANGUAGES)}"
        if block.language == "sh":
            for words in commands_in(block.text):
                check_command(words)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)
        else:
            ran = page in RUN or page in CHECKED_ELSEWHERE or block.why_not_run
            assert ran, f"run it in a test that names {page}, or say above it why not: <!-- not run: WHY -->"
            compile(block.text, page, "exec") if block.language == "python" else None


def test_options_of_the_service_in_its_file_are_known(tmp_path: Path) -> None:
    (text,) = (block.text for block in BLOCKS if block.language == "toml")
    path = tmp_path / "serve.toml"
    path.write_text(text)
    known, _ = arguments(["runtime", "serve"])
    given = read(known, ["bundle", "--config", str(path)], "PLAUDIT_TEST_")
    assert 8000 in given.values() and len(given) == 5


@pytest.mark.parametrize("page", [name_of(page) for page in PAGES])
def test_commands_in_prose_and_tables_exist_with_their_options(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for quoted in re.findall(r"`((?:plaudit |python -m )?(?:embed|heads|export|runtime) [a-z][^`]*)`", text):
        words = quoted.replace("\n", " ").removeprefix("plaudit ").removeprefix("python -m ").split()
        known, rest = arguments(words)
        given = {word for word in rest if re.fullmatch(r"--?[a-z][\w-]*", word)}
        assert given <= {argument.name for argument in known} | {"--help"}, quoted


@pytest.mark.parametrize("page", [name_of(page) for page in PAGES])
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        path, _, anchor = link.partition("#")
        if path.startswith(("http:", "https:", "reference/", "../reference/")):
            continue  # the last two are made by docs/hooks.py, and `make docs` looks at them
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.is_file(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


def named(page: str) -> set[str]:
    """What a page names first in the rows of its tables, between backticks."""
    rows = re.findall(r"^\| ([^|]*)\|", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]*)`", row)}


def test_what_can_be_chosen_is_on_its_page() -> None:
    from embed.records.formats import FORMATS
    from heads.config import Loss
    from heads.models import HEADS

    assert {name for name in FORMATS if "-" in name or name.isalpha()} <= named("data.md")
    assert {"blend", *HEADS} <= named("training.md")
    assert all(f"`{loss}`" in (ROOT / "docs" / "training.md").read_text() for loss in get_args(Loss))
    assert set(PYPROJECT["project"]["optional-dependencies"]) <= named("install.md")
    routes = set(re.findall(r'@\w+\.(?:get|post)\(\s*"(/[^"{]*)', ROUTES))
    shown = {route for page in PAGES for route in re.findall(r"/[\w/]+", page.read_text())}
    assert {route.rstrip("/") for route in routes} <= shown


def test_every_benchmark_is_named_with_what_it_found() -> None:
    text = "".join(page.read_text() for page in PAGES)
    started_by_others = {"catalogue_data.py", "load.py", "triplet_loss.py"}
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert path.name in started_by_others or path.name in text, f"say in docs/evidence.md what {path.name} found"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec and spec.loader
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks


def test_a_page_that_has_no_place_gets_one(hooks: ModuleType) -> None:
    config = SimpleNamespace(nav=[{"Start": "index.md"}, {"Guides": [{"Install": "install.md"}]}])
    more = hooks.on_config(config).nav[-1]["More"]
    assert "faq.md" in more and "guides/platform.md" in more and not {"index.md", "install.md"} & set(more)


def test_links_out_of_the_docs_name_the_file(hooks: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/platform.md"))
    text = "[How](../../CONTRIBUTING.md#x), [Data](../data.md)"
    assert hooks.on_page_markdown(text, page, None, None) == "How (`CONTRIBUTING.md`), [Data](../data.md)"


def test_every_command_and_every_name_is_described(hooks: ModuleType) -> None:
    generated = hooks.generated()
    for package in ("plaudit", *plaudit.PACKAGES):
        page = generated["commands" if package == "plaudit" else package]
        program = "plaudit" if package == "plaudit" else f"plaudit {package}"
        shown: dict[str, str] = {}
        for name, path in commands_of(package).items():
            shown.setdefault(path, name)
        for path, name in shown.items():
            section = page.split(f"\n## {program} {name}\n")[1].split("\n## ")[0]
            for argument in arguments_of(load(path)):
                assert f"`{argument.name}" in section or f"`[{argument.name}" in section
            assert program == "plaudit" or f"`{program} {name}`" in generated["commands"]
    for name, module in plaudit.NAMES.items():
        assert f"::: {module}.{name}\n" in generated["python"]
        assert getattr(plaudit, name).__doc__


# What the blocks of Python on these pages need; the files are made by `folder`.
RUN = ("README.md", "docs/data.md", "docs/formats.md", "docs/similar.md", "docs/guides/researcher.md")


@pytest.fixture(scope="module")
def folder(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `plaudit run` has been: out/ with a bundle, a cache and a catalogue, and two pictures."""
    from runtime.catalogue.writer import build
    from runtime.config import IndexConfig, PopularityConfig, SessionConfig
    from runtime.scoring.scorer import Scorer

    folder = tmp_path_factory.mktemp("docs")
    (folder / "out").mkdir()
    (folder / "out" / "bundle").symlink_to(bundle)
    write_likes(folder)
    pictures = sorted((folder / "pictures").iterdir())[:12]
    for number in (1, 2):
        (folder / f"{number}.jpg").write_bytes(pictures[number].read_bytes())
    scorer = Scorer.load(bundle, SessionConfig(threads=1))
    cache = make_cache(folder / "out" / "cache", scorer.embed_images(pictures), of=scorer.identity)
    build(folder / "out" / "catalogue", cache, make_labels(12), PopularityConfig(), IndexConfig("exact", 0.9))
    return folder


def python_blocks() -> Iterator[Block]:
    return (block for block in BLOCKS if block.language == "python" and block.page in RUN and not block.why_not_run)


@pytest.mark.parametrize("page", RUN)
def test_the_python_of_a_page_runs(
    page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(plaudit, "embed", partial(plaudit.embed, model=tiny_model(folder)), raising=False)
    texts = [block.text for block in python_blocks() if block.page == page]
    assert texts
    for text in texts:
        found: dict[str, object] = {}
        exec(compile(text, page, "exec"), found)
        if page == "README.md":
            assert len(found["scores"]) == 2  # type: ignore[arg-type]
            assert len(capsys.readouterr().out.splitlines()) == 6
