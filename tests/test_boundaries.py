"""The import rule: data flows from embed to heads to export, and serving needs no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"embed": {"embed"}, "heads": {"embed", "heads"}, "runtime": {"embed", "runtime"}}
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


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_they_may(package: str) -> None:
    ours = {"embed", "heads", "export", "runtime"}
    for path in modules(package):
        used = {name.split(".")[0] for name in imports(path)} & ours
        assert used <= MAY_IMPORT[package], f"{path} imports {used - MAY_IMPORT[package]}"


def test_what_runtime_uses_of_embed_names_no_torch() -> None:
    waiting, seen = modules("runtime"), set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in imports(path):
            assert name.split(".")[0] not in HEAVY, f"{path} imports {name}"
            file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            if file.is_file() and file not in seen:
                waiting.append(file)
    assert ROOT / "embed" / "images.py" in seen


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_runtime_imports_where_torch_is_not_installed() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules("runtime")]
    wanted = "".join(f"import {name}\n" for name in names if not name.endswith("__main__"))
    done = python(WITHOUT_TORCH + wanted)
    assert done.returncode == 0, done.stderr
    # The block works: what needs torch cannot be imported behind it.
    assert "torch is not installed" in python(WITHOUT_TORCH + "import heads.losses").stderr
