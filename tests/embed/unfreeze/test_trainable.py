"""The parameters that a mode moves against the papers' published sets."""

from pathlib import Path

import open_clip
import pytest
import torch
from backbone_folders import make_folder

from embed.backbones.load import load_backbone
from embed.modes import MODES, parse_mode
from embed.spec import InputError, Preprocess, Source
from embed.unfreeze.trainable import moved_names

PLAIN = Preprocess((224, 224), "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)
UPPER = "visual_upper_layers_textual_upper_layers"


@pytest.mark.parametrize(
    "mode, count",
    [
        ("visual_last_layer", 12_598_272),
        ("visual_upper_layers", 37_790_720),
        (UPPER, 52_557_824),
        (f"{UPPER}_deeper", 72_241_920),
        ("blocks=3,2", 52_557_824),
    ],
)
def test_modes_move_as_many_parameters_as_social_reward_on_its_backbone(mode: str, count: int) -> None:
    with torch.device("meta"):
        model = open_clip.CustomTextCLIP(**open_clip.get_model_config("ViT-L-14"))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(sizes[name] for name in moved_names(parse_mode(mode), model, PLAIN)) == count
    assert len(moved_names(MODES["all"], model, PLAIN)) == len(sizes)
    visual = moved_names(MODES["visual"], model, PLAIN)
    assert visual == [name for name in sizes if name.startswith("visual.")] and "visual.proj" in visual


def test_modes_hold_exactly_these_names(tmp_path: Path) -> None:
    model = load_backbone(Source(f"local-dir:{make_folder(tmp_path / 'vit', 'vit')}")).model
    block = {name.removeprefix("transformer.resblocks.1.") for name, _ in model.text.named_parameters()
             if name.startswith("transformer.resblocks.1.")}  # fmt: skip
    assert len(block) == 12
    norm = {"weight", "bias"}
    wanted = {f"visual.transformer.resblocks.1.{name}" for name in block} | {f"visual.ln_post.{n}" for n in norm}
    assert set(moved_names(MODES["visual_last_layer"], model, PLAIN)) == wanted
    wanted = {f"text.transformer.resblocks.1.{name}" for name in block} | {f"text.ln_final.{n}" for n in norm}
    assert set(moved_names(parse_mode("blocks=0,1"), model, PLAIN)) == wanted | {"text.text_projection"}
    with pytest.raises(InputError, match="unfreezes 3 blocks of the picture tower, which has 2"):
        moved_names(MODES["visual_upper_layers"], model, PLAIN)


def test_fix_rate_freezes_in_order_as_imagereward_does() -> None:
    with torch.device("meta"):
        model = open_clip.CustomTextCLIP(**open_clip.get_model_config("ViT-L-14"))
    moved = moved_names(parse_mode("fix_rate=0.7"), model, PLAIN)
    # Its loop, over both towers: freeze, and stop after the first name that holds the block at the rate.
    wanted = []
    for side, tower, layers in (("visual", model.visual, 24), ("text", model.text, 12)):
        frozen = True
        for name, _ in tower.named_parameters():
            if not frozen and not name.endswith("proj"):
                wanted.append(f"{side}.{name}")
            if f"resblocks.{int(layers * 0.7)}." in name:
                frozen = False
    assert moved == wanted
    assert "visual.transformer.resblocks.16.ln_1.weight" not in moved
    assert "visual.transformer.resblocks.16.ln_1.bias" in moved


def test_modes_of_the_starter() -> None:
    model = load_backbone(Source("starter"))
    moved = moved_names(MODES[UPPER], model.model, model.identity.preprocess)
    assert {name.split(".")[3] for name in moved if "trunk.blocks" in name} == set("456")
    assert "visual.trunk.conv_head.weight" in moved and "visual.head.proj.weight" not in moved
    assert {name.split(".")[4] for name in moved if name.startswith("text.")} == set("45")
