"""A CLIPModel of `transformers` computes the same vectors once open_clip has its weights."""

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from embed.backbones.state_dicts import fit, read_state_dict
from embed.spec import InputError

WIDTH, SIZE, WORDS, CONTEXT, DIM = 32, 16, 50, 9, 24


@pytest.fixture(scope="module")
def theirs() -> CLIPModel:
    torch.manual_seed(0)
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
             "hidden_act": "gelu"}  # fmt: skip
    text = {**tower, "vocab_size": WORDS, "max_position_embeddings": CONTEXT, "eos_token_id": WORDS - 1}
    vision = {**tower, "image_size": SIZE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(torch.randn_like(parameter) * 0.1)  # zero biases would hide a wrong one
    return model


def ours() -> open_clip.CustomTextCLIP:
    vision = {"layers": 2, "width": WIDTH, "head_width": WIDTH // 2, "patch_size": 8, "image_size": SIZE}
    text = {"layers": 2, "width": WIDTH, "heads": 2, "vocab_size": WORDS, "context_length": CONTEXT}
    return open_clip.CustomTextCLIP(DIM, vision, text).eval()


@torch.no_grad()
def test_vectors_and_scale_are_those_of_transformers(theirs: CLIPModel, tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "m.safetensors")
    model = ours()
    fit(model, read_state_dict(tmp_path / "m.safetensors"), "tiny")
    pixels = torch.randn(3, 3, SIZE, SIZE)
    tokens = torch.randint(1, WORDS - 1, (3, CONTEXT))
    tokens[:, -1] = WORDS - 1
    tokens[0, 4:] = torch.tensor([WORDS - 1, 0, 0, 0, 0])
    wanted = theirs(input_ids=tokens, pixel_values=pixels)
    torch.testing.assert_close(model.encode_image(pixels, normalize=True), wanted.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode_text(tokens, normalize=True), wanted.text_embeds, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.logit_scale, theirs.logit_scale)


def test_what_does_not_fit_is_named(theirs: CLIPModel) -> None:
    weights = dict(theirs.state_dict())
    del weights["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(InputError, match=r"1 tensors are missing \(visual.transformer.resblocks.1.attn.in_proj_weight"):
        fit(ours(), weights, "tiny")
    extra = {**theirs.state_dict(), "text_model.adapter.weight": torch.zeros(1)}
    with pytest.raises(InputError, match=r"not of this architecture \(.*adapter"):
        fit(ours(), extra, "tiny")
