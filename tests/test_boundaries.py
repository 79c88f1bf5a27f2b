"""The import rule: which folder may import which, with lazy imports counted; that serving needs no torch; who speaks.

Data flows from embed to heads to export; runtime reads of embed what names no torch.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from paths import ROOT

PACKAGES = ("embed", "heads", "export", "runtime")
# What each folder may import, itself and the top of its own package aside. Whoever adds a row or an entry says in
# CONTRIBUTING.md what it is for.
MAY_IMPORT = {
    "embed": set(),
    "embed.process": set(),
    "embed.records": set(),
    "embed.inputs": {"embed.process"},
    "embed.backbones": set(),
    "embed.graphs": set(),
    "embed.showing": set(),
    "embed.cache": set(),
    "embed.engines": {"embed.process", "embed.inputs", "embed.backbones", "embed.graphs"},
    "embed.jobs": {"embed.process", "embed.records", "embed.inputs", "embed.engines", "embed.cache"},
    "embed.unfreeze": {
        *("embed.process", "embed.records", "embed.inputs", "embed.backbones", "embed.graphs"),
        *("embed.cache", "embed.engines", "embed.jobs"),
    },
    "heads": {"embed"},
    "heads.data": {"embed", "embed.records", "embed.cache"},
    "heads.store": {"embed", "embed.backbones", "embed.cache"},
    "heads.training": {"embed", "heads.data"},
    "heads.evaluation": {"embed", "embed.cache", "heads.data", "heads.store", "heads.training"},
    "heads.report": {
        *("embed", "embed.records", "embed.inputs", "embed.showing", "embed.cache"),
        *("heads.data", "heads.evaluation"),
    },
    "heads.tracking": {"embed"},
    "heads.api": {
        *("embed", "embed.records", "embed.inputs", "embed.cache"),
        *("heads.data", "heads.store", "heads.training", "heads.evaluation", "heads.report"),
    },
    "heads.reward": {"embed", "embed.inputs", "embed.backbones", "heads.store"},
    "heads.tuning": {
        *("embed", "embed.backbones", "embed.inputs", "embed.records"),
        *("heads.data", "heads.evaluation", "heads.report", "heads.reward", "heads.training", "heads.unfreeze"),
    },
    "heads.generating": {"embed", "embed.inputs", "heads.evaluation", "heads.reward", "heads.tuning"},
    "heads.unfreeze": {
        *("embed", "embed.backbones", "embed.cache", "embed.unfreeze"),
        *("heads.data", "heads.store", "heads.training"),
    },
    "export.graphs": {
        *("embed", "embed.backbones", "embed.graphs"),
        *("heads", "heads.evaluation", "heads.store", "runtime.scoring"),
    },
    "runtime": {"embed", "runtime.clients"},
    "runtime.clients": {"embed"},
    "runtime.scoring": {"embed", "embed.records", "embed.inputs", "embed.engines"},
    "runtime.hub": {"embed", "runtime.scoring"},
    "runtime.index": {"embed"},
    "runtime.catalogue": {"embed", "embed.inputs", "embed.showing", "runtime.index"},
    "runtime.collect": {"embed", "embed.records", "embed.inputs", "runtime.catalogue"},
    "runtime.overview": {"embed", "runtime.scoring", "runtime.catalogue"},
    "runtime.service.network": {"embed", "embed.inputs", "runtime"},
    "runtime.service.docs": set(),
    "runtime.service.pages": {"embed", "runtime", "runtime.service.network"},
    "runtime.service.answering": {
        *("embed", "embed.process", "embed.inputs", "embed.engines"),
        *("runtime.scoring", "runtime.catalogue", "runtime.service.network"),
    },
    "runtime.service.routes": {
        *("embed", "embed.inputs", "runtime.scoring", "runtime.catalogue", "runtime.overview", "runtime.collect"),
        *("runtime.service.network", "runtime.service.answering"),
    },
    "runtime.service": {
        *("embed", "embed.process", "runtime.service.network", "runtime.service.docs", "runtime.service.pages"),
        *("runtime.service.answering", "runtime.service.routes"),
    },
}
# Commands may import all of these packages.
COMMANDS = {
    "embed.cli": {"embed"},
    "heads.cli": {"embed", "heads"},
    "runtime.cli": {"embed", "runtime"},
    "export.cli": {"embed", "heads", "export", "runtime"},
    "export": {"embed", "heads", "export", "runtime"},
}
# Who prints and draws: the commands, and what they have in common. Everything else raises, logs, or takes a Progress.
SPEECH = {
    "print",
    "sys.stdout",
    "sys.stderr",
    "sys.__stdout__",
    "sys.__stderr__",
    "warnings.warn",
    "logging.basicConfig",
}
SPEECH |= {"embed.cli.console", "tqdm"}
MAY_SAY = {"embed.process.child": {"sys.stderr"}}  # decoders keep theirs for Python and leave none to C libraries
HEAVY = ("torch", "torchvision", "open_clip", "timm", "transformers")
# Block what serving must do without, as if it were not installed; then import all of runtime.
WITHOUT_TORCH = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed", name=name)

sys.meta_path.insert(0, Absent())
"""


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Every name that a file imports, inside functions too: modules, and what is taken out of them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {module(path): path for package in PACKAGES for path in files(package) if path.stem != "__init__"}
IMPORTS = {name: {used for used in imported(path) if used in MODULES} for name, path in MODULES.items()}


def folder(name: str) -> str:
    return name.rpartition(".")[0]


@pytest.mark.parametrize("name", sorted({folder(name) for name in MODULES}))
def test_folders_import_only_what_they_may(name: str) -> None:
    """A new folder fails here until the table names it."""
    package = name.partition(".")[0]
    for one in MODULES:
        if folder(one) != name or one.endswith(".__main__"):  # which only starts its package's commands
            continue
        used = {folder(other) for other in IMPORTS[one]}
        if name in COMMANDS:
            wrong = {other for other in used if other.partition(".")[0] not in COMMANDS[name]}
        else:
            wrong = used - MAY_IMPORT[name] - {name, package}
        assert not wrong, f"{one} imports {wrong}"


def test_only_commands_know_the_library_that_reads_their_options() -> None:
    assert [name for name, path in MODULES.items() if "cyclopts" in set(imported(path))] == ["embed.cli.app"]


def test_no_imports_run_in_a_circle() -> None:
    """Neither between files nor between folders."""
    between = {folder(name): set[str]() for name in MODULES}
    for name, used in IMPORTS.items():
        # A package's top is what its folders share, and `__main__` starts its commands.
        above = {folder(other) for other in used if not name.endswith(".__main__")}
        between[folder(name)] |= above - {folder(name)}
    for graph in (IMPORTS, between):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            pytest.fail(" -> ".join(error.args[1]))


def test_folders_and_files_can_be_taken_in_at_a_look() -> None:
    for path in {path.parent for package in PACKAGES for path in files(package)}:
        found = [file.name for file in path.glob("*.py")]
        assert len(found) <= 13, f"{path} holds {len(found)} Python files: make a folder of those that do one job"
    for path in MODULES.values():
        lines = len(path.read_text().splitlines())
        assert lines <= 350, f"{path} has {lines} lines: take out what is a job of its own"


def spoken(path: Path) -> set[str]:
    """What of SPEECH a file names or imports, or something inside of it."""
    nodes = ast.walk(ast.parse(path.read_text()))
    named = {ast.unparse(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute)} | set(imported(path))
    return {word for word in SPEECH for name in named if name == word or name.startswith(f"{word}.")}


def test_only_commands_speak() -> None:
    for name, path in MODULES.items():
        if not folder(name).endswith(".cli"):
            assert spoken(path) == MAY_SAY.get(name, set()), f"{name} says something: it should raise, log or step"
    assert spoken(MODULES["embed.cli.console"]) >= {"print", "sys.stdout", "sys.stderr", "tqdm"}


def test_a_backbone_is_loaded_where_commands_see_it() -> None:
    """By `load_backbone`, which is a stage (see embed.progress)."""
    for name, path in MODULES.items():
        named = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        if folder(name) != "embed.backbones":
            assert not {"starter.load_starter", "checkpoints.build"} & named, name
            assert not {"embed.backbones.starter.load_starter", "embed.backbones.checkpoints.build"} & set(
                imported(path)
            ), name


def code_lines(path: Path) -> list[str]:
    """What a module says, line by line, without indentation, imports, comments and what only closes a bracket."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in lines if re.search(r"\w", line) and not line.startswith(("#", "from ", "import "))]


def test_no_six_lines_stand_in_two_modules() -> None:
    seen: dict[tuple[str, ...], str] = {}
    for name, path in MODULES.items():
        lines = code_lines(path)
        for i in range(len(lines) - 5):
            first = seen.setdefault(tuple(lines[i : i + 6]), name)
            assert first == name, f"{first} and {name} share six lines, from {lines[i]!r} on: make them one function"


def test_what_runtime_uses_of_embed_names_no_torch() -> None:
    waiting, seen = [name for name in MODULES if name.startswith("runtime.")], set[str]()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for used in imported(MODULES[name]):
            assert used.split(".")[0] not in HEAVY, f"{name} imports {used}"
        waiting += IMPORTS[name] - seen
    assert "embed.inputs.images" in seen


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_runtime_imports_where_torch_is_not_installed() -> None:
    names = [name for name in MODULES if name.startswith("runtime.") and not name.endswith("__main__")]
    done = python(WITHOUT_TORCH + "".join(f"import {name}\n" for name in names))
    assert done.returncode == 0, done.stderr
    # The block works: what needs torch cannot be imported behind it.
    assert "torch is not installed" in python(WITHOUT_TORCH + "import heads.losses").stderr
