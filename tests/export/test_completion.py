"""Shells complete plaudit's commands, options and values by the scripts that `plaudit completion` prints."""

import shutil
import subprocess
from pathlib import Path

import pytest

import plaudit
from export.cli.completion import completion

BASH, ZSH, FISH = map(shutil.which, ("bash", "zsh", "fish"))


@pytest.fixture(scope="module")
def script() -> str:
    return str(completion("bash")["script"])


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plaudit ru", {"run", "runtime"}),
        ("plaudit heads com", {"compare"}),
        ("plaudit heads compare a --stri", {"--strict"}),
        ("plaudit embed cache t.csv --engine r", {"ray"}),
        ("plaudit run t.csv --pre", {"--pretrained"}),
        ("plaudit heads compare ", set()),  # files
    ],
)
def test_words_are_completed(line: str, expected: set[str], script: str) -> None:
    words = [word or "''" for word in line.split(" ")]
    ask = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _plaudit\n"
    done = subprocess.run(
        [str(BASH), "-c", f'{script}{ask}echo "${{COMPREPLY[@]}}"'], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == expected
    assert not done.stderr


def test_the_command_prints_it(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert plaudit.main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == script
    assert plaudit.main(["completion", "csh"]) == 2


@pytest.mark.skipif(FISH is None, reason="needs fish")
def test_fish_completes_with_a_word_on_each(tmp_path: Path) -> None:
    file = tmp_path / "plaudit.fish"
    file.write_text(str(completion("fish")["script"]))
    for line, expected in {
        "plaudit ru": {"run", "runtime"},
        "plaudit heads com": {"compare"},
        "plaudit heads compare a --stri": {"--strict"},
        "plaudit embed cache t.csv --engine r": {"ray"},
        "plaudit runtime votes ex": {"export"},
    }.items():
        command = [str(FISH), "--no-config", "-c", f"source {file}; complete -C '{line}'"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        found = dict(line.partition("\t")[::2] for line in done.stdout.splitlines())
        assert expected <= found.keys() and all(found[word] for word in expected)


@pytest.mark.skipif(ZSH is None, reason="needs zsh")
def test_zsh_reads_its_script(tmp_path: Path) -> None:
    script = str(completion("zsh")["script"])
    subprocess.run([str(ZSH), "-f", "-n"], input=script, text=True, capture_output=True, check=True)
    assert script.startswith("#compdef plaudit") and "'--strict[Refuse a table that shares" in script
    assert "--verbose[" in script and ":verbose'" not in script, "what takes no value has none completed"
