"""Towers in two against the towers themselves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from backbone_folders import make_folder
from open_clip.hf_model import HFTextEncoder
from unusual_attention import CUSTOM_BLOCKS, REFUSED, picture_tower, put_attention, text_tower

from embed.backbones.backbone import Backbone
from embed.backbones.load import load_backbone
from embed.modes import WHOLE
from embed.spec import InputError, Preprocess, Source
from embed.unfreeze.cut import Cut
from embed.unfreeze.families import block_counts, cut_pictures, cut_prompts

PROMPTS = ["red apple", "a", "a grinning face, please, with many words around its ears", ""]
PLAIN = Preprocess((224, 224), "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def backbone(folder: Path, kind: str) -> Backbone:
    return load_backbone(Source(f"local-dir:{make_folder(folder / kind, kind)}"))


def pixels(size: tuple[int, int], n: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, *size, 3), dtype=np.uint8))


def raw(tower: Any, inputs: torch.Tensor) -> torch.Tensor:
    output = tower(inputs)
    return output[0] if isinstance(output, tuple) else output


def check(cut: Cut, inputs: torch.Tensor, whole: torch.Tensor) -> None:
    """The same bits by the long way, and the same numbers by the short one."""
    with torch.no_grad():
        values, lengths = cut.below(inputs)
        assert torch.equal(cut.above(values, lengths, same_bits=True)[1], whole)
        torch.testing.assert_close(cut.above(values, lengths)[1], whole, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", ["vit", "quick", "resnet", "timm", "clipa", "coca"])
def test_pictures_above_of_below_is_the_tower_to_the_bit(kind: str, folder: Path) -> None:
    model = backbone(folder, kind)
    visual, preprocess = model.model.visual, model.identity.preprocess
    shown = pixels(preprocess.size)
    with torch.no_grad():
        whole = raw(visual, (shown.permute(0, 3, 1, 2).float() / 255 - torch.tensor(preprocess.mean).view(3, 1, 1))
                    / torch.tensor(preprocess.std).view(3, 1, 1))  # fmt: skip
    for depth in (1, 2, WHOLE):
        check(cut_pictures(visual, depth, preprocess), shown, whole)


@pytest.mark.parametrize("kind", ["vit", "timm", "clipa"])
def test_prompts_above_of_below_is_the_tower_to_the_bit(kind: str, folder: Path) -> None:
    model = backbone(folder, kind)
    prompts = PROMPTS
    tokens = torch.from_numpy(model.tokenize(prompts))
    with torch.no_grad():
        whole = raw(model.model.text, tokens)
    for depth in (1, 2, WHOLE):
        check(cut_prompts(model.model.text, depth), tokens, whole)


def test_tokens_after_the_end_of_a_text_may_be_anything(folder: Path) -> None:
    model = backbone(folder, "vit")
    tokens = torch.from_numpy(model.tokenize(PROMPTS))
    cut = cut_prompts(model.model.text, 1)
    with torch.no_grad():
        values, lengths = cut.below(tokens)
        assert lengths is not None and lengths.tolist()[1] == 3  # start, "a", end
        whole = cut.above(values, lengths)[1]
        values[torch.arange(values.shape[1]) >= lengths[:, None]] = 1e3
        short = values[:, : int(lengths.max())]
        for same_bits in (True, False):
            torch.testing.assert_close(cut.above(short, lengths, same_bits)[1], whole, rtol=1e-4, atol=2e-6)


def bert(pooler: str = "mean_pooler") -> HFTextEncoder:
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    return HFTextEncoder("none", output_dim=16, config=config, pooler_type=pooler, proj_type="linear").eval()


@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler"])
def test_bert_towers_are_cut_too(pooler: str) -> None:
    text = bert(pooler)
    tokens = torch.tensor([[2, 7, 8, 9, 3, 0, 0], [2, 3, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        whole = text(tokens)
    for depth in (1, 3, WHOLE):
        check(cut_prompts(text, depth), tokens, whole)
    cut = cut_prompts(text, 2)
    with torch.no_grad():
        values, lengths = cut.below(tokens)
        values[1, 2:] = 1e3
        torch.testing.assert_close(cut.above(values[:, :5], lengths)[1], whole, rtol=1e-4, atol=2e-6)
        with pytest.raises(InputError, match="padding inside"):
            cut.below(torch.tensor([[2, 0, 3]]))


@pytest.mark.parametrize("name, channels", [("tf_efficientnet_lite0", 64), ("test_convnext", 160)])
def test_stages_of_timm_trunks(name: str, channels: int) -> None:
    torch.manual_seed(0)
    visual = open_clip.timm_model.TimmModel(name, 16, image_size=channels).eval()
    shown = pixels((channels, channels), 2)
    preprocess = Preprocess((channels, channels), "squash", "bicubic", (0.5,) * 3, (0.5,) * 3)
    with torch.no_grad():
        whole = visual((shown.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)
    for depth in (1, 3, WHOLE):
        check(cut_pictures(visual, depth, preprocess), shown, whole)


def test_memory_below_is_released_and_above_still_works(folder: Path) -> None:
    model = backbone(folder, "vit")
    cut = cut_prompts(model.model.text, 1)
    tokens = torch.from_numpy(model.tokenize(PROMPTS))
    with torch.no_grad():
        values, lengths = cut.below(tokens)
        before = cut.above(values, lengths)[1]
        cut.release_below()
        assert model.model.text.token_embedding.weight.numel() == 0
        assert torch.equal(cut.above(values, lengths)[1], before)


def test_what_cannot_be_cut_says_what_can(folder: Path) -> None:
    coca = backbone(folder, "coca").model
    with pytest.raises(InputError, match=r"as in CoCa, cannot be cut"):
        cut_prompts(coca.text, 1)
    with pytest.raises(InputError, match=r"the picture tower Linear cannot be cut; these can: open_clip's ViT"):
        cut_pictures(torch.nn.Linear(1, 1), 1, PLAIN)
    with pytest.raises(InputError, match="a cut 3 blocks from the top of TextTransformer; it has 2"):
        cut_prompts(backbone(folder, "vit").model.text, 3)


@pytest.mark.parametrize("options", [*CUSTOM_BLOCKS, {"ls_init_value": 0.5}])
def test_options_of_the_blocks_are_kept_above_the_cut(options: dict[str, Any]) -> None:
    shown, tokens = pixels((32, 32)), torch.randint(1, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    pictures, prompts = picture_tower(**options), text_tower(**options)
    check(cut_pictures(pictures, 2, PLAIN), shown, pictures((shown.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5))
    check(cut_prompts(prompts, 2), tokens, prompts(tokens))


@pytest.mark.parametrize("found", REFUSED)
def test_an_attention_that_is_not_written_down_is_refused(found: str) -> None:
    model = SimpleNamespace(visual=picture_tower(), text=text_tower())
    message = rf"attends with {found}, .*'open_clip_torch>=3\.3,<4'"
    put_attention(model.text, REFUSED[found])
    for make in (lambda: cut_prompts(model.text, 1), lambda: block_counts(model, PLAIN)):
        with pytest.raises(InputError, match=message):
            make()
    put_attention(model.visual, REFUSED[found])
    with pytest.raises(InputError, match=message):
        cut_pictures(model.visual, 1, PLAIN)


def test_the_starters_own_towers() -> None:
    model = load_backbone(Source("starter"))
    preprocess = model.identity.preprocess
    shown, tokens = pixels(preprocess.size, 2), torch.from_numpy(model.tokenize(PROMPTS))
    with torch.no_grad():
        whole = model.model.visual((shown.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5), model.model.text(tokens)
    check(cut_pictures(model.model.visual, 2, preprocess), shown, whole[0])
    check(cut_prompts(model.model.text, 2), tokens, whole[1])
