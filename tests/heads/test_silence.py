"""Training prints nothing and draws nothing unless it is asked to: in a notebook the page stays its owner's."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tqdm
from paths import HELPERS, ROOT
from progress_told import Told
from trainings import folds, task, trainings, unfrozen

from heads.models import build_head
from heads.training.loop import Loop
from heads.training.train import fit


@pytest.mark.parametrize("name", dict(trainings()))
def test_nothing_is_said(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a bar was made")

    monkeypatch.setattr(tqdm.tqdm, "__init__", refuse)  # a bar of short work would not show itself
    dict(trainings())[name](tmp_path)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_said_where_nobody_set_up_logging(tmp_path: Path) -> None:
    code = f"""
import sys, pathlib
sys.path[:0] = {[str(ROOT), str(HELPERS)]}
from trainings import trainings
for name, train in trainings():
    train(pathlib.Path({str(tmp_path)!r}))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_who_asks_is_told_of_every_head_and_epoch(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    with caplog.at_level("INFO"):
        folds("fusion", progress=told)
    assert [message.partition(":")[0] for message in caplog.messages] == ["fold 1", "fold 2"]
    heads, epochs = told.works["heads"], told.works["training"]
    assert (heads.total, heads.unit) == (3, "head") and heads.whole()
    assert epochs.ended and 0 < sum(epochs.steps) <= 2

    one = task("linear", progress=told)
    parts = one.parts(one.split.test_rows(1), np.random.default_rng(0))
    fit(build_head(one.head_config), one.features, parts, None, one.config, progress=told)
    assert told.works["training"].whole() and told.works["training"].unit == "epoch"


def test_who_asks_is_told_of_every_step_those_before_an_interruption_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.training.checkpoint.EVERY_S", 0.0)
    told = Told()

    def interrupt(loop: Loop) -> None:
        if loop.step > loop.epoch_steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unfrozen(tmp_path, on_step=interrupt, progress=told)
    epoch_steps = len(told.works["unfreezing"].steps) - 1
    assert told.works["unfreezing"].steps == [0, *[1] * epoch_steps]
    assert told.works["unfreezing"].total == 2 * epoch_steps
    unfrozen(tmp_path, progress=told)
    assert told.works["unfreezing"].whole() and told.works["unfreezing"].steps[0] == epoch_steps
