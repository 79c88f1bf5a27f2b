"""A hub that cannot be reached is found out at once, and files that are on this machine are used without it."""

import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from embed.backbones.checkpoints import plan
from embed.backbones.hub import local_if_unreachable
from embed.spec import InputError, Source

NOBODY = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without a hub, where waiting is an error. Returns the folder of downloaded files."""

    def wait(_: float) -> None:
        raise AssertionError("tried again")

    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", wait)
    return tmp_path


def test_the_hub_is_asked_once(alone: Path) -> None:
    for source in (Source("ViT-B-32", "laion2b_s34b_b79k"), Source("hf-hub:someone/model")):
        with pytest.raises(InputError, match=r"^download failed \(the hub cannot be reached: .+refused.*\). Without"):
            plan(source)
    assert not constants.HF_HUB_OFFLINE


def test_what_was_downloaded_before_needs_no_hub(alone: Path) -> None:
    repository = alone / "models--someone--model"
    (repository / "snapshots/1").mkdir(parents=True)
    (repository / "snapshots/1/config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("1")
    with local_if_unreachable():
        found = huggingface_hub.hf_hub_download("someone/model", "config.json", cache_dir=alone)
    assert Path(found).read_text() == "{}"
    with pytest.raises(ConnectionError, match="cannot be reached"), local_if_unreachable():
        huggingface_hub.hf_hub_download("someone/model", "other.json", cache_dir=alone)
