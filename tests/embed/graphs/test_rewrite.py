"""The lean form of open_clip's transformers is the same function, and leaves the model as it was."""

import numpy as np
import pytest
import torch
from export_tiny import random_pixels, tiny_backbone
from open_clip.transformer import TextTransformer, VisionTransformer
from unusual_attention import CUSTOM_BLOCKS, REFUSED, picture_tower, put_attention, text_tower

from embed.graphs.rewrite import serving_form
from embed.spec import InputError


@pytest.mark.parametrize("options", [{}, {"pool_type": "avg"}, {"ls_init_value": 0.5}, {"attentional_pool": True}])
def test_picture_tower_is_the_same_function(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    tower = VisionTransformer(32, 8, 32, 3, 4, 2.0, output_dim=16, **options).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = tower(x)
        with serving_form(tower):
            torch.testing.assert_close(tower(x), expected, atol=2e-6, rtol=1e-5)
            assert "forward" in vars(tower.transformer)  # or nothing was tested
        assert torch.equal(tower(x), expected)


def test_last_block_computes_the_class_token_alone() -> None:
    tower = VisionTransformer(32, 8, 32, 2, 4, 2.0, output_dim=16).eval()
    with serving_form(tower), torch.inference_mode():
        assert tower.transformer(torch.randn(5, 17, 32)).shape == (5, 1, 32)


@pytest.mark.parametrize("options", [{}, {"no_causal_mask": True, "pool_type": "last"}, {"embed_cls": True}])
def test_text_tower_is_the_same_function(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    tower = TextTransformer(12, 50, 32, 4, 3, 2.0, output_dim=16, **options).eval()
    tokens = torch.randint(1, 50, (4, 12))
    with torch.inference_mode():
        expected = tower(tokens)
        with serving_form(tower):
            torch.testing.assert_close(tower(tokens), expected, atol=2e-6, rtol=1e-5)


def test_causal_tower_takes_fewer_tokens_than_its_context() -> None:
    backbone = tiny_backbone()
    tokens = torch.from_numpy(backbone.tokenize(["two dogs"]))
    tower = backbone.text_tower()
    with torch.inference_mode():
        expected = tower(tokens)
        with pytest.raises(RuntimeError):
            tower(tokens[:, :4])
        with serving_form(backbone.model):
            torch.testing.assert_close(tower(tokens[:, :4]), expected, atol=1e-6, rtol=1e-5)


def test_other_families_are_left_as_they_are() -> None:
    backbone = tiny_backbone("convnext")
    pixels = torch.from_numpy(random_pixels(backbone, 2))
    with torch.inference_mode():
        expected = backbone.image_tower()(pixels).numpy()
        with serving_form(backbone.model.visual):
            assert np.array_equal(backbone.image_tower()(pixels).numpy(), expected)


@pytest.mark.parametrize("options", CUSTOM_BLOCKS)
def test_blocks_with_more_options_keep_their_own_forward(options: dict[str, bool]) -> None:
    pictures, prompts = picture_tower(**options), text_tower(**options)
    for tower, x in ((pictures, torch.randn(2, 3, 32, 32)), (prompts, torch.randint(1, 50, (2, 12)))):
        expected = tower(x)
        with serving_form(tower):
            torch.testing.assert_close(tower(x), expected)
            assert "forward" not in vars(tower.transformer)


@pytest.mark.parametrize("found", REFUSED)
def test_an_attention_that_is_not_written_down_is_refused(found: str) -> None:
    for tower in (picture_tower(), text_tower()):
        put_attention(tower, REFUSED[found])
        with (
            pytest.raises(InputError, match=rf"attends with {found}, .*'open_clip_torch>=3\.3,<4'"),
            serving_form(tower),
        ):
            pass
        assert "forward" not in vars(tower.transformer) and "_embeds" not in vars(tower)  # it is left as it was
