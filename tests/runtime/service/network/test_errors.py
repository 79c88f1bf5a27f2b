"""What is told of errors, and what is not: where files lie on this machine."""

import doctest
import os
from pathlib import Path

import pytest

from runtime.service.network import errors
from runtime.service.network.errors import without_places


def test_the_examples() -> None:
    assert doctest.testmod(errors) == doctest.TestResults(failed=0, attempted=2)


@pytest.mark.parametrize("link", [False, True])
def test_a_place_is_left_out_however_it_is_spelled(link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret" / "bundle").mkdir(parents=True)
    given = tmp_path / "secret" / "bundle"
    if link:
        given = tmp_path / "secret" / "current"
        given.symlink_to("bundle")
    monkeypatch.chdir(tmp_path)
    relative = Path(os.path.relpath(given))
    for known in (given, relative):
        for spelled in (known, given, given.resolve()):
            told = without_places(f"{spelled}/head.onnx is damaged; {spelled}", [known])
            assert told == f"{given.name}/head.onnx is damaged; {given.name}"


def test_a_name_without_a_folder_stays_and_so_does_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert without_places("b/head.onnx. Is it b?", [Path("b")]) == "b/head.onnx. Is it b?"
    assert without_places("wanted 1.5", [Path(".")]) == "wanted 1.5"
