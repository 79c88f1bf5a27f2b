"""A tiny pipeline on disk and a head for its pictures, for all tests of generating."""

from pathlib import Path

import pytest
from pixel_tiny import tiny_pipeline
from reward_tiny import write_head
from unfreeze_tiny import load, make_folder

from embed.backbones.backbone import Backbone
from heads.config import HeadConfig


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load(make_folder(tmp_path_factory.mktemp("backbone") / "tiny"))


@pytest.fixture(scope="session")
def generator(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator") / "tiny"
    tiny_pipeline(backbone, size=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def head(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("head") / "head", backbone, HeadConfig("fusion", 16, hidden=8))
