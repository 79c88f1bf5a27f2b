"""Pipelines of every family on disk, and a backbone of a few blocks for their rewards."""

from pathlib import Path

import pytest
from pixel_tiny import tiny_pipeline
from tuning_tiny import LATENT, write
from unfreeze_tiny import load, make_folder

from embed.backbones.backbone import Backbone
from embed.backbones.load import load_backbone
from embed.spec import Source
from heads.tuning import pixel
from heads.tuning.families import Family
from heads.tuning.loading import load_family

KINDS = (*LATENT, "pixel")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load(make_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def pipelines(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each, by kind."""
    folder = tmp_path_factory.mktemp("pipelines")
    found = {kind: write(kind, folder) for kind in LATENT}
    tiny_pipeline(backbone).save_pretrained(folder / "pixel")
    return found | {"pixel": folder / "pixel"}


@pytest.fixture(params=KINDS)
def family(pipelines: dict[str, Path], request: pytest.FixtureRequest) -> Family:
    """Each of them, loaded for this test alone."""
    return load_family(str(pipelines[request.param]), "cpu")


@pytest.fixture(autouse=True)
def loads_the_backbone_once(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of loading is the tokenizer; a pipeline in pixel space reads prompts with a backbone."""
    loaded = {backbone.source: backbone}

    def load(source: Source, device: str = "cpu") -> Backbone:
        if source not in loaded:
            loaded[source] = load_backbone(source, device)
        return loaded[source]

    monkeypatch.setattr(pixel, "load_backbone", load)
