"""A call in a process of its own: its answer and error come back, its memory and its end do not stay."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import apart_calls
import pytest
import unfreeze_tiny
from embed_fakes import colors, picture
from paths import ROOT
from waiting import wait_for_orphan

from embed.cache.store import Cache
from embed.config import Wanted
from embed.engines.machine import remembered_identity
from embed.engines.towers import Towers
from embed.process import child
from embed.process.child import call_apart
from embed.spec import InputError, Source

PROMPTS = [f"prompt {i}" for i in range(8)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(f"local-dir:{unfreeze_tiny.make_folder(tmp_path_factory.mktemp('model'))}")


def test_what_the_process_learns_is_known_here(source: Source, tmp_path: Path) -> None:
    towers, wanted = Towers(source, tmp_path, ["projected"]), Wanted("onnx", "fp32", "cpu")
    assert towers.needs_backbone
    chosen = call_apart(towers.measure, "prompts", PROMPTS, wanted, "cpu", 4, None).engine
    # On a busy machine one of the trials may look hopeless after its first batch of 4.
    assert chosen.rows in (4, len(PROMPTS)) and chosen.cosine_min > 0.99999
    assert not towers.needs_backbone and remembered_identity(source, tmp_path) == towers.identity
    assert towers.find("prompts", wanted, "cpu") == chosen
    vectors = towers.runner("prompts", chosen)(towers.tokenize(PROMPTS)[0])[0]
    assert vectors.shape == (len(PROMPTS), towers.identity.dim) and not towers.has_backbone


def test_answers_and_errors_come_back_as_they_are_with_where_they_arose() -> None:
    assert call_apart(math.hypot, 3.0, 4.0) == 5.0
    with pytest.raises(InputError, match="no engine") as caught:
        call_apart(apart_calls.reject, "engine")
    assert "in reject" in caught.value.__notes__[0]


def test_its_warnings_are_logged_here(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    assert call_apart(apart_calls.warn, "weights are random") == 18
    (record,) = caplog.records
    assert record.name == "apart_calls.there" and record.levelname == "WARNING"
    assert record.getMessage() == f"weights are random, told by {object}"
    assert capfd.readouterr() == ("", "")


def test_a_process_that_is_killed_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"exited with code -9.*--engine torch --precision fp32"):
        call_apart(apart_calls.die)


def test_ctrl_c_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[child.Child] = []

    class Seen(child.Child):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(child, "Child", Seen)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            call_apart(apart_calls.press_ctrl_c)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [one.process.poll() for one in started] == [-signal.SIGKILL]


def test_a_first_run_on_a_machine_keeps_torch_out_of_the_job(source: Source, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i, color in enumerate(colors(5)):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(picture(color))
    code = (
        "import json, sys; from embed.cli.main import main; code = main(sys.argv[1:]);"
        " print(json.dumps([code, 'torch' in sys.modules]))"
    )
    command = ["cache", str(tmp_path / "pictures"), "--model", source.model]
    command += ["--out", str(tmp_path / "c"), "--engine", "onnx", "--precision", "fp32", "--device", "cpu"]
    command += ["--machine-cache", str(tmp_path / "machine"), "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, False], done.stderr
    assert "cosine to fp32 at least" in done.stderr
    assert Cache.open(tmp_path / "c").count("images") == 5


def test_the_process_ends_in_the_midst_of_work_with_a_parent_that_is_killed() -> None:
    wait_for_orphan(apart_calls.__file__)
