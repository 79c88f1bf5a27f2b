"""The command `plaudit` and what `import plaudit` offers."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

import plaudit
from embed.cli import console
from embed.cli.app import load, read
from embed.cli.arguments import arguments_of
from embed.spec import InputError
from export.cli import whole


def test_the_names_are_these_and_are_there() -> None:
    assert sorted(plaudit.__all__) == [
        *("Cache", "Catalogue", "Client", "InputError", "Reward", "Rewards", "Scorer", "SessionConfig"),
        *("embed", "evaluate", "export", "main", "read_records", "score", "train"),
    ]
    for name in plaudit.__all__:
        assert getattr(plaudit, name).__name__ == name
    with pytest.raises(AttributeError, match="plaudit has no 'Scorers'; it has embed, "):
        plaudit.Scorers  # noqa: B018


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import plaudit; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "numpy" not in done.stdout and "embed" not in done.stdout


@pytest.mark.parametrize(
    ("started", "called"), [("bin/plaudit", "plaudit heads"), ("m/__main__.py", "python -m heads")]
)
def test_a_program_is_called_as_it_was_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, started: str, called: str
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    assert plaudit.main(["heads", "train", "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {called} train CACHE")
    assert plaudit.main(["heads", "trian"]) == 2
    assert capsys.readouterr().err.startswith(f"{called}: ")


def test_it_reaches_every_package(capsys: pytest.CaptureFixture[str]) -> None:
    for package in plaudit.PACKAGES:
        assert plaudit.main([package, "--help"]) == 0
        commands = importlib.import_module(f"{package}.cli.main").COMMANDS
        assert all(name in capsys.readouterr().out for name in list(commands)[:1])
    assert plaudit.main(["--version"]) == 0 and capsys.readouterr().out.startswith("plaudit ")
    assert (
        plaudit.main(["train"]) == 2
        and "unknown command 'train'; wanted `plaudit heads train`" in capsys.readouterr().err
    )
    assert plaudit.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80 and "\nplaudit heads:\n  train, sweep, evaluate" in told


def table(folder: Path, columns: str = "image,count") -> Path:
    path = folder / "liked.csv"
    path.write_text(f"{columns}\na.png,3\nb.png,40\n")
    return path


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run."""
    found: list[list[str]] = []
    monkeypatch.setattr(whole, "run_step", found.append)
    return found


def test_the_whole_path_is_made_of_commands_that_there_are(
    tmp_path: Path, steps: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, pictures = tmp_path / "out", str(tmp_path)
    columns = "image=picture,count=likes"
    given = [str(table(tmp_path, "picture,likes")), "--images", pictures, "--out", str(out), "--columns", columns]
    assert plaudit.main(["run", *given]) == 0
    assert [step[:2] for step in steps] == [
        *(["embed", "cache"], ["heads", "train"], ["heads", "evaluate"], ["export", "onnx"], ["runtime", "index"])
    ]
    for package, command, *words in steps:
        known = arguments_of(load(importlib.import_module(f"{package}.cli.main").COMMANDS[command]))
        assert read(known, words, "PLAUDIT_TEST_")
        assert pictures in words
    assert json.loads((out / "run.json").read_text())["table"] == given[0]
    assert "plaudit runtime serve" in capsys.readouterr().out
    assert plaudit.main(["run", *given]) == 0, "a folder of its own may be gone on with"


def test_without_counts_there_is_no_catalogue(tmp_path: Path, steps: list[list[str]]) -> None:
    assert plaudit.main(["run", str(table(tmp_path, "image,rating")), "--out", str(tmp_path / "out")]) == 0
    assert [step[1] for step in steps] == ["cache", "train", "evaluate", "onnx"]


@pytest.mark.parametrize("case", ["nothing to learn", "other files", "a file"])
def test_what_is_wrong_is_said_before_the_work(
    case: str, tmp_path: Path, steps: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    path = table(tmp_path, "image,size" if case == "nothing to learn" else "image,count")
    if case == "other files":
        out.mkdir()
        (out / "thesis.tex").touch()
    elif case == "a file":
        out.touch()
    assert plaudit.main(["run", str(path), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    expected = {"nothing to learn": "no ratings, counts", "other files": "holds other files", "a file": "is a file"}
    assert expected[case] in said
    assert not steps


def test_a_step_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="`embed inspect` failed with exit code 2, for the reason printed above"):
        whole.run_step(["embed", "inspect", str(tmp_path / "nothing")])


def test_a_step_speaks_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    paused = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        paused.append(console.SIGNS.is_paused)
        return subprocess.CompletedProcess(command, 0, b"{}")

    monkeypatch.setattr(subprocess, "run", run)
    assert whole.run_step(["embed", "cache"]) == {} and paused == [True] and not console.SIGNS.is_paused


def test_a_file_named_as_a_package_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "embed.py").write_text("raise SystemExit('not this one')")
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        document = whole.run_step(["embed", "backbones"])
    finally:
        os.chdir(before)
    assert "starter" in json.dumps(document)


def test_a_wrong_path_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    commands = [
        "heads train no --data no.csv --out out",
        "heads sweep no --data no.csv --out out",
        "heads unfreeze no --data no.csv --mode visual --out out",
        "heads evaluate no --cache no --data no.csv",
        "heads compare no no --cache no --data no.csv",
        "heads calibrate no --cache no --data no.csv",
        "heads generators no --cache no --data no.csv --by model",
        "heads project no --cache no --out out",
        "heads export-checkpoint no --out out.pt",
        "heads import no.pth --cache no --out out",
        "heads tune sd --method draft --reward no --judge nor --prompts no.txt --out out",
        "embed refresh no --tuned no --out out",
        "export onnx no --out out",
    ]
    code = (
        "import plaudit, sys\n"
        f"for command in {commands!r}:\n"
        "    code = plaudit.main(command.split())\n"
        "    assert code == 2 and 'torch' not in sys.modules, command\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no is not a ") == len(commands), done.stderr
