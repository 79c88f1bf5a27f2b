"""onnxruntime is imported in one place, which silences its telemetry first and says how to install it."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from embed.ort import require_onnxruntime
from embed.spec import InputError

VARIABLE = "ORT_DISABLE_TELEMETRY"
# onnxruntime reads the variable of the process, once, while it is imported.
AT_IMPORT = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("{VARIABLE}"))
sys.meta_path.insert(0, Watch())
from embed.ort import require_onnxruntime
assert "onnxruntime" not in sys.modules
quantization = require_onnxruntime("onnxruntime.quantization")
assert quantization is sys.modules["onnxruntime"].quantization
"""


def installed(monkeypatch: pytest.MonkeyPatch, **folders: Path) -> None:
    """Packages by name, each in its folder, as pip leaves them, and no others."""
    for name, folder in folders.items():
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        monkeypatch.syspath_prepend(folder)

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name.replace("-", "_") in folders:
            return importlib.metadata.distribution(name)
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("embed.ort.distribution", distribution)


@pytest.mark.parametrize("users, seen", [(None, "1"), ("0", "0")])
def test_telemetry_is_off_before_the_import_unless_the_user_decided(users: str | None, seen: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {} if users is None else {VARIABLE: users}
    done = subprocess.run([sys.executable, "-c", AT_IMPORT], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [seen]


def test_nothing_else_imports_onnxruntime() -> None:
    """But for the checkers of types, which run nothing."""
    importers = []
    for path in (
        path for package in ("embed", "heads", "export", "runtime") for path in (ROOT / package).rglob("*.py")
    ):
        tree = ast.parse(path.read_text())
        blocks = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ]
        unrun = {id(node) for block in blocks for node in ast.walk(block)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if id(node) not in unrun and any(name.split(".")[0] == "onnxruntime" for name in names):
                importers.append(path)
    assert importers == []


def test_both_packages_are_an_error_that_mends_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch, onnxruntime=tmp_path, onnxruntime_gpu=tmp_path)
    with pytest.raises(InputError, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        require_onnxruntime()


def test_packages_in_folders_of_their_own_do_not_fight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where the one of the system cannot be removed and the other lies before it on the path."""
    installed(monkeypatch, onnxruntime=tmp_path / "system", onnxruntime_gpu=tmp_path / "own")
    assert require_onnxruntime().__name__ == "onnxruntime"


def test_neither_package_is_an_error_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'plaudit\[cpu\]'"):
        require_onnxruntime()
