"""What is published works by itself: the wheel in an environment that holds nothing else, away from this tree.

Installs packages, so it is no part of `make test`; `make test-all` runs it.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from export_tiny import write_pictures
from paths import ROOT

from runtime.scoring.scorer import Scorer

PACKAGES = ("embed", "heads", "export", "runtime")


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as setuptools would leave what it makes in the tree, and take it for sources the next time."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("plaudit.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder / "source")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "./source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } | {"plaudit.py"}
    assert "embed/backbones/starter_bridge.safetensors" in expected
    with zipfile.ZipFile(wheel) as file:
        assert {name for name in file.namelist() if ".dist-info/" not in name} == expected


def test_it_scores_where_nothing_else_is_installed(wheel: Path, bundle: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "environment", cwd=tmp_path)
    python = tmp_path / "environment" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]", cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = "import importlib.util as u, runtime; print(runtime.__path__[0], u.find_spec('torch'))"
    installed, torch = run(python, "-c", where, cwd=elsewhere).split()
    assert Path(installed).is_relative_to(tmp_path / "environment") and torch == "None"

    pictures = write_pictures(tmp_path / "pictures", 3)
    command = (python.with_name("plaudit"), "runtime", "score", bundle, "--prompt", "a cat", "--json", *pictures)
    scores = [item["score"] for item in json.loads(run(*command, cwd=elsewhere))["scores"]]
    # The same graphs, perhaps by another release of onnxruntime: they may differ by rounding.
    assert scores == pytest.approx(Scorer.load(bundle).score("a cat", pictures).tolist(), abs=1e-5)
