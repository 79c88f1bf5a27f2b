"""bash completes plaudit's commands, options and values by the script that `plaudit completion` prints."""

import shutil
import subprocess

import pytest

import plaudit

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def script() -> str:
    from export.cli.completion import completion

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
