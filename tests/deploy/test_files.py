"""deploy/, compose and the Dockerfiles name only what there is: options, metrics, labels, paths and ports."""

import configparser
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from paths import ROOT
from prometheus_client import Metric
from service_server import TOKEN, serving

from embed.cli.arguments import arguments_of
from runtime.cli.serve import TOKEN_VARIABLE, serve
from runtime.service.network.errors import Reason

DEPLOY = ROOT / "deploy"
YAML = sorted([ROOT / "compose.yaml", *DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.yaml")])
PORT = next(argument.default for argument in arguments_of(serve) if argument.name == "--port")
# What a metric of each type is called in expressions.
SUFFIXES = {
    "counter": ["_total"],
    "gauge": [""],
    "histogram": ["_bucket", "_sum", "_count"],
    "info": ["_info"],
}


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def expressions() -> list[str]:
    """All PromQL that is written here."""
    rules = [rule for group in documents(DEPLOY / "alerts.yml")[0]["groups"] for rule in group["rules"]]
    panels = json.loads((DEPLOY / "dashboard.json").read_text())["panels"]
    (rule,) = documents(DEPLOY / "kubernetes" / "adapter-values.yaml")[0]["rules"]["custom"]
    targets = [target["expr"] for panel in panels for target in panel["targets"]]
    return [*(rule["expr"] for rule in rules), *targets, rule["seriesQuery"], rule["metricsQuery"]]


def deployment() -> dict[str, Any]:
    return next(one for one in documents(DEPLOY / "kubernetes" / "plaudit.yaml") if one["kind"] == "Deployment")


def container() -> dict[str, Any]:
    (found,) = deployment()["spec"]["template"]["spec"]["containers"]
    return found


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / "plaudit.service")
    return parser["Service"]


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Where the service is started, and how."""
    for name in ("Dockerfile", "Dockerfile.cuda"):
        (line,) = re.findall(r"^ENTRYPOINT (.*)", (ROOT / name).read_text(), re.MULTILINE)
        yield name, json.loads(line)
    for path in (ROOT / "compose.yaml", DEPLOY / "compose.catalogue.yaml"):
        yield path.name, documents(path)[0]["services"]["plaudit"]["command"]
    yield "plaudit.yaml", container()["args"]
    yield "plaudit.service", shlex.split(unit()["ExecStart"])


@pytest.fixture(scope="module")
def metrics(bundle: Path) -> Iterator[dict[str, Metric]]:
    """Those of a service, by what they are called in expressions."""
    with serving(bundle, tokens=(TOKEN,)) as (client, service):
        client.post("/v1/score", content=b"{")
        yield {
            metric.name + suffix: metric
            for metric in service.metrics.registry.collect()
            for suffix in SUFFIXES[metric.type]
        }


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_can_be_read(path: Path) -> None:
    assert all(isinstance(document, dict) for document in documents(path))


@pytest.mark.parametrize(("where", "command"), list(command_lines()), ids=[where for where, _ in command_lines()])
def test_options_are_those_of_serve(where: str, command: list[str]) -> None:
    known = {argument.name for argument in arguments_of(serve)}
    given = {word for word in command if word.startswith("--")}
    assert given and given <= known
    if "serve" in command:
        assert command[command.index("serve") - 2 :][:2] == ["-m", "runtime"]


def test_metrics_are_those_of_the_service(metrics: dict[str, Metric]) -> None:
    named = {name for text in expressions() for name in re.findall(r"\b(?:plaudit|process)_\w+", text)}
    assert len(named) > 15 and named <= set(metrics)


def test_labels_are_those_of_the_metrics(metrics: dict[str, Metric]) -> None:
    """Which a metric shows where it has a value."""
    of_prometheus = {"job", "instance", "namespace", "pod", "le"}
    source = (ROOT / "runtime" / "service" / "network" / "metrics.py").read_text()
    known = {label for labels in re.findall(r'\[("\w+"(?:, "\w+")*)\]', source) for label in re.findall(r"\w+", labels)}
    known |= {label for metric in metrics.values() for sample in metric.samples for label in sample.labels}
    for text in expressions():
        grouped = [label.strip() for inner in re.findall(r"by \(([\w, ]+)\)", text) for label in inner.split(",")]
        matched = re.findall(r'(\w+)(?:=~?|!=)"', text)
        assert {*grouped, *matched} <= known | of_prometheus, text
        assert set(re.findall(r'reason="([^"]*)"', text)) <= set(get_args(Reason))


def test_ports_and_paths_are_those_of_the_service(bundle: Path) -> None:
    pod = container()
    assert [port["containerPort"] for port in pod["ports"]] == [PORT]
    assert deployment()["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(PORT)
    with serving(bundle) as (client, _):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert client.get(pod[probe]["httpGet"]["path"]).status_code == 200
            assert pod[probe]["httpGet"]["port"] == pod["ports"][0]["name"]
    assert unit()["ExecStart"].split("--port ")[1].split()[0] == str(PORT)
    for name in ("Dockerfile", "Dockerfile.cuda"):
        text = (ROOT / name).read_text()
        assert f"EXPOSE {PORT}\n" in text and f"127.0.0.1:{PORT}/health/ready" in text
    services = documents(ROOT / "compose.yaml")[0]["services"]
    assert services["plaudit"]["ports"] == [f"{PORT}:{PORT}"]
    (scraped,) = documents(DEPLOY / "prometheus.yml")[0]["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": [f"plaudit:{PORT}"]}]


def test_who_ends_it_waits_until_it_is_done() -> None:
    args = container()["args"]
    seconds = [float(args[args.index(name) + 1]) for name in ("--drain", "--deadline")]
    sleep = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    spec = deployment()["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > sum(seconds) + sleep + 5
    assert int(unit()["TimeoutStopSec"]) > 5 + 10 + 5


def test_what_is_mounted_is_there_and_the_token_is_the_services() -> None:
    assert [one["name"] for one in container()["env"]] == [TOKEN_VARIABLE]
    for service in documents(ROOT / "compose.yaml")[0]["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":/")[0]
            assert source.startswith("$") or (ROOT / source).is_file(), volume
    assert documents(DEPLOY / "prometheus.yml")[0]["rule_files"] == ["alerts.yml"]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_images_are_built_from_all_that_the_package_is_made_of(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    made_of = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    made_of |= {f"{module}.py" for module in project["tool"]["setuptools"]["py-modules"]}
    made_of |= {package.rstrip("*") for package in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {path for line in re.findall(r"^COPY (.*) \S+$", (ROOT / name).read_text(), re.M) for path in line.split()}
    assert copied == made_of
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let_in == made_of
