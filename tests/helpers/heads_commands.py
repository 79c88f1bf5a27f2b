"""Commands of heads as tests run them, in the folder of `tests/heads/cli/conftest.py`."""

import json

import pytest

from heads.cli.main import main

ROWS = 60
TRAIN = (
    *("train", "cache", "--data", "table.parquet", "--split-by", "sub"),
    *("--epochs", "3", "--batch-size", "512", "--input-dropout", "0"),
)
EVALUATE = ("evaluate", "head", "--cache", "cache", "--data", "table.parquet")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)
