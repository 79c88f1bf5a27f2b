"""Hooks of mkdocs: pages made from the code for the commands of each package and for Python, and a place for pages that
the navigation does not name.

The tests read `generated()` too.
"""

import importlib
import re
from pathlib import Path
from typing import Any

import plaudit
from embed.cli import page
from embed.cli.app import load
from embed.cli.arguments import arguments_of, example_of, help_of

DOCS = Path(__file__).parent
ABOUT_PYTHON = """# Python

You can import these names with `from plaudit import ...`. They are loaded when they are first used, so that
`import plaudit` takes no time, and `Scorer`, `Catalogue` and `Client` need no torch.
"""
ABOUT_MODULES = """# Python modules

The commands call these modules. Use them in a program that needs more than [the names of plaudit](python.md). They may
change with a minor version; the CHANGELOG says so.
"""
CALLED = {
    "Embedding": ("embed.jobs.build.BuildConfig", "embed.jobs.build.build_cache", "embed.jobs.merge.merge_caches"),
    "Heads": (
        *("heads.store.disk.load_head", "heads.store.disk.load_committee"),
        *("heads.config.HeadConfig", "heads.config.TrainConfig", "heads.config.SplitConfig", "heads.config.Protocol"),
        *("heads.training.folds.Task", "heads.training.folds.train_heads", "heads.evaluation.evaluate.evaluate"),
    ),
    "Rewards": ("heads.reward.adapters",),
    "Bundles": ("export.config.ExportConfig", "export.bundle_writer.export_bundle"),
    "Catalogues": (
        *("runtime.catalogue.writer.build", "runtime.catalogue.writer.refresh", "runtime.catalogue.queries.find"),
        *("runtime.config.Wish", "runtime.config.IndexConfig", "runtime.config.PopularityConfig"),
        "runtime.catalogue.milvus.MilvusCatalogue",
    ),
    "Clients": ("runtime.client.AsyncClient",),
}


def generated() -> dict[str, str]:
    """Return the text of each generated page, by its name below reference/."""
    pages = {"commands": _of_commands("plaudit", plaudit.ABOUT, plaudit.COMMANDS) + _overview(), "python": _of_names()}
    pages["modules"] = ABOUT_MODULES + "".join(
        f"\n## {title}\n" + "".join(f"\n::: {path}\n    options: {{heading_level: 3}}\n" for path in paths)
        for title, paths in CALLED.items()
    )
    for package in plaudit.PACKAGES:
        main = importlib.import_module(f"{package}.cli.main")
        pages[package] = _of_commands(f"plaudit {package}", main.ABOUT, main.COMMANDS)
    return pages


def _of_commands(program: str, about: str, commands: dict[str, str]) -> str:
    lines = [f"# {program}", about]
    for name in page.first_names(commands):
        lines += _of_command(f"{program} {name}", commands[name])
    return "\n\n".join(lines) + "\n"


def _overview() -> str:
    """Return a row for every command of the packages, with a link to its description."""
    rows = ["\n## All commands\n", "| command | |", "|---|---|"]
    for package in plaudit.PACKAGES:
        commands: dict[str, str] = importlib.import_module(f"{package}.cli.main").COMMANDS
        rows += [
            f"| [`plaudit {package} {name}`]({package}.md#plaudit-{package}-{name})"
            f" | {_cell(page.summary(commands[name]))} |"
            for name in page.first_names(commands)
        ]
    return "\n".join(rows) + "\n"


def _of_command(name: str, path: str) -> list[str]:
    command = load(path)
    known = arguments_of(command)
    description, help = help_of(command)
    words = " ".join([name, *(page.shown(one) for one in known if one.positional), "[OPTIONS]"])
    lines = [f"## {name}", description, f"```text\n{words}\n```"]
    if example := example_of(command):
        lines += ["For example:", f"```sh\n{example}\n```"]
    rows = [f"| `{page.shown(one)}` | {_cell(page.said(one, help.get(one.place, '')))} |" for one in known]
    return [*lines, "\n".join(["| argument | |", "|---|---|", *rows])]


def _cell(text: str) -> str:
    return re.sub(r"([|<>{}*_])", r"\\\1", text)


def _of_names() -> str:
    parts = [f"::: {module}.{name}\n" for name, module in plaudit.NAMES.items()]
    return "\n".join([ABOUT_PYTHON, *parts])


def on_config(config: Any) -> Any:
    """Put pages that the navigation does not name under "More", so that a new page need not be added there."""
    placed = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    found = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    if others := [path for path in found if path not in placed]:
        config.nav.append({"More": others})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, text in generated().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace links to files of the repository by their names, because the built pages do not contain these files."""
    up = "../" * (page.file.src_uri.count("/") + 1)
    return re.sub(rf"\[([^\]]+)\]\({re.escape(up)}([^)#]+)[^)]*\)", r"\1 (`\2`)", markdown)
