"""A small backbone on disk."""

from pathlib import Path

import pytest
from unfreeze_tiny import load, make_folder

from embed.backbones.backbone import Backbone


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model."""
    return make_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def backbone(model: Path) -> Backbone:
    """It, loaded; no test may change it."""
    return load(model)
