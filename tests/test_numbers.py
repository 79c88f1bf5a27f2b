"""No number that a user can type is a traceback: every numeric option of every command takes it, or names itself.

The files that the commands are given do not exist, so that a number which is taken ends there.
"""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from embed.cli.app import load
from embed.cli.arguments import REQUIRED, Argument, arguments_of

PACKAGES = ("embed", "heads", "export", "runtime")
# Which options take -1 or 0; no range is asked here, so that one that is lost shows.
TAKE = {
    "-1": {"--popularity-weight", "--dedup"},
    "0": {
        *("--popularity-weight", "--dedup", "--min-percentile", "--port", "--seed", "--num-gpus"),
        *("--max-gb", "--max-memory-gb", "--max-missing", "--dropout", "--input-dropout", "--weight-decay"),
        *("--head-weight-decay", "--warmup", "--ema", "--max-flips", "--wise", "--fix-rate"),
        *("--unfreeze-visual", "--unfreeze-text", "--drain"),
        *("--pretrain-weight", "--kl-weight", "--min-diversity", "--equal-within", "--min-similarity-percentile"),
        *("--random-share", "--repeat-share", "--gold-share", "--least-vote-seconds", "--max-waiting"),
    },
}
REFUSED = ("nan", "1e308", "9" * 400, "many")
# Options that make a complete command of what is given, besides the ones that are required.
BESIDE = {
    "--held-out-prompts": ["--split", "pickscore"],
    "--dropout": ["--head", "fusion"],
    "--input-dropout": ["--head", "fusion"],
    "--hidden": ["--head", "fusion"],
    "--landmarks": ["--head", "kernel"],
    "--penalty": ["--head", "kernel"],
    "--margin": ["--loss", "triplet"],
    "--unfreeze-visual": ["--unfreeze-text", "1"],
    "--unfreeze-text": ["--unfreeze-visual", "1"],
}


def numeric(argument: Argument) -> bool:
    kinds = {argument.type, *get_args(argument.type)}
    return bool(kinds & {int, float}) and not argument.positional


def options() -> Iterator[tuple[str, str, Argument]]:
    """Package, command and option; of several names of one command only the first."""
    for package in PACKAGES:
        for name, path in importlib.import_module(f"{package}.cli.main").COMMANDS.items():
            if " " not in name:
                yield from ((package, name, one) for one in arguments_of(load(path)) if numeric(one))


def command_line(package: str, command: str, option: str) -> list[str]:
    """The words of a command whose files are not there."""
    words = [command]
    for one in arguments_of(load(importlib.import_module(f"{package}.cli.main").COMMANDS[command])):
        value = "new" if one.name in ("--out", "--save_folder") else "nowhere.parquet"
        if one.positional and one.default is REQUIRED:
            words.append(value)
        elif one.default is REQUIRED and one.name != option:
            words += [one.name, {"--model": "ViT-B-32", "--by": "column", "--method": "draft"}.get(one.name, value)]
    if command == "unfreeze" and option not in ("--fix-rate", "--unfreeze-visual", "--unfreeze-text"):
        words += ["--mode", "all"]
    return words + BESIDE.get(option, [])


@pytest.mark.parametrize(
    ("package", "command", "argument"), [pytest.param(*o, id=f"{o[1]} {o[2].name}") for o in options()]
)
def test_every_number_is_taken_or_refused_in_one_line(
    package: str,
    command: str,
    argument: Argument,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main: Any = importlib.import_module(f"{package}.cli.main").main
    words = command_line(package, command, argument.name)
    for value in (*TAKE, *REFUSED):
        assert main([*words, f"{argument.name}={value}"]) == 2, value
        said = capsys.readouterr().err
        assert re.fullmatch(rf"python -m {package}: [^\n]+\n", said), (value, said)
        names_itself = f": {argument.name} is " in said or f": {argument.name} needs" in said
        assert names_itself == (argument.name not in TAKE.get(value, ())), (value, said)
    assert not list(tmp_path.iterdir())  # nothing was begun
