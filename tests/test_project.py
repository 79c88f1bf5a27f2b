"""What stands around the code agrees with it: version, licence, templates, workflows and hooks."""

import re
import socket
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def targets(text: str) -> set[str]:
    return set(re.findall(r"\bmake ([a-z-]+)", text))


def test_version_and_licence_are_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == version("plaudit")
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == PROJECT["version"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_templates_can_be_filled_in(path: Path) -> None:
    template = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert set(template) == {"blank_issues_enabled"}
        return
    assert template["name"] and template["description"]
    ids = [part["id"] for part in template["body"]]
    assert len(ids) == len(set(ids)) and all(part["attributes"]["label"] for part in template["body"])


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_run_what_there_is(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert "run" in step or "uses" in step
            assert all(f"\n{target}:" in MAKEFILE for target in targets(step.get("run", "")))
            if step.get("run", "").startswith("."):
                assert (ROOT / step["run"]).stat().st_mode & 0o111
    assert workflow["permissions"] == {"contents": "read"}


def test_hooks_run_what_make_check_runs() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]:
        program = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert f"$(BIN)/{program}" in MAKEFILE
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-format", "ruff", "mypy"]


def test_a_test_that_asks_the_network_for_a_name_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"asked the network for 'example\.org'"):
        socket.getaddrinfo("example.org", 80)
    assert socket.getaddrinfo("127.0.0.1", 80) and socket.getaddrinfo("localhost", 80)
