"""Tuned backbones: what a delta holds, what it refuses, and that it is a backbone like any other."""

import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import unfreeze_tiny as tiny

from embed.backbones.backbone import weights_hash
from embed.backbones.delta import published_state, read_tuned, save_delta, tuned_source
from embed.backbones.load import load_backbone
from embed.config import Wanted
from embed.engines.towers import Towers
from embed.spec import IdentityMismatch, InputError, Source

NAME = "visual.ln_post.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `clip` and the tuned `tuned`."""
    folder = tmp_path_factory.mktemp("delta")
    tiny.make_folder(folder / "clip")
    save_delta(folder / "tuned", {NAME: torch.full((32,), 2.0)}, tiny.load(folder / "clip"), {"mode": "blocks=1,0"})
    return folder


def source(folder: Path, name: str = "tuned") -> Source:
    return Source(f"local-dir:{folder / 'clip'}", f"delta:{folder / name}")


def test_a_delta_is_the_base_with_what_moved(made: Path) -> None:
    base, tuned = tiny.load(made / "clip"), load_backbone(source(made))
    state = base.model.state_dict() | {NAME: torch.full((32,), 2.0)}
    assert tuned.identity.weights == weights_hash(state) != base.identity.weights
    assert tuned.identity.differences(base.identity)[0].startswith("weights")
    assert all(torch.equal(tensor, state[name]) for name, tensor in tuned.model.state_dict().items())
    assert tuned_source(made / "tuned") == source(made) == tuned.source
    assert read_tuned(made / "tuned")["parameters"] == 32
    # Through whatever takes a source.
    towers = Towers(source(made), made / "machine", ["projected"])
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    engine = towers.find("images", Wanted("torch", "fp32"), "cpu")
    assert engine is not None and towers.identity == tuned.identity
    with torch.no_grad():
        expected = tuned.image_tower()(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(towers.runner("images", engine)(pixels)[0], expected, atol=1e-6)


def test_a_folder_tuned_again_is_another_backbone(made: Path) -> None:
    root = made / "machine2"
    first = Towers(source(made, "again"), root, ["projected"])
    save_delta(made / "again", {NAME: torch.full((32,), 3.0)}, tiny.load(made / "clip"), {})
    identity = first.identity
    save_delta(made / "again", {NAME: torch.full((32,), 4.5)}, tiny.load(made / "clip"), {})
    assert Towers(source(made, "again"), root, ["projected"]).identity != identity


def test_what_does_not_belong_together_is_refused(made: Path) -> None:
    with pytest.raises(InputError, match="was tuned from local-dir:"):
        load_backbone(Source("ViT-B-32", f"delta:{made / 'tuned'}"))
    with pytest.raises(InputError, match=r"is not a tuned backbone: it has no tuned\.json"):
        load_backbone(source(made, "clip"))
    shutil.copytree(made / "tuned", made / "damaged")
    (made / "damaged" / "delta.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be read"):
        load_backbone(source(made, "damaged"))
    other = {"visual.ln_post.bias": torch.full((32,), 2.0)}
    save_delta(made / "swapped", other, tiny.load(made / "clip"), {})
    shutil.copy(made / "tuned" / "delta.safetensors", made / "swapped")
    with pytest.raises(IdentityMismatch, match="what its weights give"):
        load_backbone(source(made, "swapped"))
    moved = made / "elsewhere"
    shutil.copytree(made / "clip", moved / "clip")
    save_delta(moved / "tuned", {NAME: torch.zeros(32)}, tiny.load(moved / "clip"), {})
    tiny.make_folder(moved / "clip", seed=1)
    with pytest.raises(IdentityMismatch, match=r"the base of .* and the backbone that its source gives"):
        load_backbone(source(moved))


def test_the_published_layout_is_open_clips(made: Path) -> None:
    backbone = tiny.load(made / "clip")
    state = published_state(backbone.model.state_dict())
    model = open_clip.CLIP(**tiny.CONFIG)
    assert state.keys() == model.state_dict().keys()
    assert torch.equal(
        state["transformer.resblocks.0.ln_1.weight"], backbone.model.text.transformer.resblocks[0].ln_1.weight
    )
    # A text tower of another kind stays where CustomTextCLIP has it.
    other = {
        "visual.proj": torch.zeros(1),
        "text.transformer.encoder.layer.0.x": torch.zeros(1),
        "text.proj.weight": torch.zeros(1),
    }
    assert published_state(other).keys() == other.keys()
