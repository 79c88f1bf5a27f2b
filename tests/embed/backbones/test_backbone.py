"""Towers against open_clip's own encoders and transform; what makes an identity differ."""

import copy
import hashlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from backbone_folders import CONFIGS, make_folder
from paths import ROOT
from safetensors.torch import load_file, save_file

from embed.backbones import load
from embed.backbones.backbone import Backbone, activation, tokenizer_name, weights_hash
from embed.backbones.load import available_backbones, load_backbone
from embed.inputs.images import load_image, load_pixels
from embed.progress import Stage
from embed.spec import InputError, Source

EMOJI = ROOT / "examples" / "emoji"
PROMPTS = ["red apple", "A Grinning FACE, please!", "naïve café 😀", "", "word " * 100]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("backbone") / "vit", "vit")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Backbone:
    return load_backbone(Source(f"local-dir:{folder}"))


def test_loading_is_a_stage(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """So that every command that loads a backbone says so when it takes long."""
    caplog.set_level("DEBUG", "embed.progress")
    monkeypatch.setattr(load, "_load", lambda source, device: source)
    asked = Source("ViT-B-32", "random:0")
    assert load.load_backbone(asked) is asked  # type: ignore[comparison-overlap]
    what = "loading the backbone ViT-B-32 random:0"
    assert [vars(record)["stage"] for record in caplog.records] == [Stage(what), Stage(what, ended=True)]


def pictures() -> list[bytes]:
    return [path.read_bytes() for path in sorted((EMOJI / "images").iterdir())[:6]]


def embed(backbone: Backbone, features: tuple[str, ...] = ("projected",)) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = [load_pixels(data, backbone.identity.preprocess)[0] for data in pictures()]
    tokens = backbone.tokenize(PROMPTS)
    with torch.inference_mode():
        image = backbone.image_tower(features)(torch.from_numpy(np.stack(pixels)))
        return image, backbone.text_tower()(torch.from_numpy(tokens))


def assert_same_vectors(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    theirs = torch.nn.functional.normalize(theirs, dim=-1)
    assert ours.dtype == torch.float32
    assert ours.shape == theirs.shape
    assert torch.allclose(ours.norm(dim=-1), torch.ones(len(ours)), atol=1e-6)
    assert (ours * theirs).sum(dim=-1).min() > 0.999999
    assert (ours - theirs).abs().max() < 1e-6


def assert_equals_open_clip(backbone: Backbone, model, transform, tokenizer) -> None:
    image, text = embed(backbone)
    with torch.inference_mode():
        batch = torch.stack([transform(load_image(data)) for data in pictures()])
        assert_same_vectors(image, model.encode_image(batch))
        assert_same_vectors(text, model.encode_text(tokenizer(PROMPTS)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_towers_equal_open_clip(kind: str, tmp_path: Path) -> None:
    source = f"local-dir:{make_folder(tmp_path, kind)}"
    model, _, transform = open_clip.create_model_and_transforms(source)
    assert_equals_open_clip(load_backbone(Source(source)), model.eval(), transform, open_clip.get_tokenizer(source))


def test_a_real_architecture_equals_open_clip(caplog: pytest.LogCaptureFixture) -> None:
    backbone = load_backbone(Source("ViT-B/32", "random:3"))
    assert "random weights (seed 3)" in caplog.text
    assert backbone.identity.model == "ViT-B-32"
    torch.manual_seed(3)
    model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).eval()
    transform = open_clip.image_transform(224, is_train=False)
    assert_equals_open_clip(backbone, model, transform, open_clip.get_tokenizer("ViT-B-32"))


def test_random_weights_leave_the_global_generator_alone(folder: Path) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (load_backbone(Source(f"local-dir:{folder}", f"random:{seed}")) for seed in (5, 5, 6))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.identity == again.identity
    assert first.identity.weights != other.identity.weights


@pytest.mark.parametrize("kind", ["vit", "timm", "coca"])
def test_pooled_features_are_what_the_projection_starts_from(kind: str, tmp_path: Path) -> None:
    backbone = load_backbone(Source(f"local-dir:{make_folder(tmp_path, kind)}"))
    (projected, pooled), _ = embed(backbone, ("projected", "pooled"))
    assert torch.equal(projected, embed(backbone)[0])
    assert torch.equal(pooled, embed(backbone, ("pooled",))[0])
    visual = backbone.model.visual
    weight = visual.head.proj.weight.T if kind == "timm" else visual.proj
    again = torch.nn.functional.normalize(pooled @ weight, dim=-1)
    assert torch.allclose(again, projected, atol=1e-6)


def test_no_pooled_features_without_a_projection(tmp_path: Path) -> None:
    backbone = load_backbone(Source(f"local-dir:{make_folder(tmp_path, 'resnet')}"))
    with pytest.raises(InputError, match=r"ModifiedResNet.*no projection.*--features projected"):
        backbone.image_tower(["projected", "pooled"])
    with pytest.raises(InputError, match="'middle'"):
        backbone.image_tower(["middle"])


def test_towers_in_half_precision_normalise_in_float32(tiny: Backbone) -> None:
    tower = copy.deepcopy(tiny.image_tower()).to(torch.bfloat16)
    pixels = torch.full((2, 64, 64, 3), 200, dtype=torch.uint8)
    with torch.inference_mode():
        half, full = tower(pixels), tiny.image_tower()(pixels)
    assert half.dtype == torch.float32
    assert torch.allclose(half.norm(dim=-1), torch.ones(2), atol=1e-6)
    assert (half * full).sum(dim=-1).min() > 0.999


def test_nothing_is_left_to_train(tiny: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())
    assert not any(module.training for module in tiny.image_tower().modules())
    assert not any(module.training for module in tiny.text_tower().modules())


def test_tokens_are_open_clips(tiny: Backbone) -> None:
    tokens = tiny.tokenize(PROMPTS)
    assert tokens.dtype == np.int32
    assert tokens.shape == (5, 16)
    assert np.array_equal(tokens, open_clip.get_tokenizer("ViT-B-32", context_length=16)(PROMPTS).numpy())
    assert tiny.tokenize([]).shape == (0, 16)


def test_truncated_prompts_are_counted_at_the_boundary(tiny: Backbone) -> None:
    fits, too_long = "cat " * 14, "cat " * 15  # 16 and 17 tokens with the two special ones
    assert tiny.count_truncated([fits, "", "a"]) == 0
    assert tiny.count_truncated([too_long, fits, "word " * 100]) == 2
    assert tiny.count_truncated([]) == 0


def test_weights_hash_sees_names_types_shapes_and_every_bit() -> None:
    state = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1.5, dtype=torch.bfloat16), "c": torch.ones(0)}
    lines = ""
    for name in ("a", "b", "c"):
        data = state[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        lines += f"{name} {state[name].dtype} {tuple(state[name].shape)} {hashlib.sha256(data).hexdigest()}\n"
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert weights_hash(state) == expected
    assert weights_hash(dict(reversed(state.items()))) == expected
    transposed = torch.empty(3, 2).T.copy_(state["b"])  # the same values, another order in memory
    assert weights_hash(state | {"b": transposed}) == expected
    one_bit = state["b"].clone()
    one_bit[1, 2] = float(np.nextafter(np.float32(5), np.float32(6)))
    for change in ({"b": one_bit}, {"b": state["b"].T}, {"b": state["b"].int()}, {"B": state["b"]}):
        assert weights_hash(state | change) != expected


def test_identity_changes_with_one_weight_and_nothing_else_does(folder: Path, tiny: Backbone, tmp_path: Path) -> None:
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    changed = load_backbone(Source(f"local-dir:{tmp_path}"))
    assert [line.split(":")[0] for line in tiny.identity.differences(changed.identity)] == ["weights"]


def test_identity_does_not_depend_on_where_or_how_weights_are_stored(
    folder: Path, tiny: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    state = {f"module.{name}": tensor for name, tensor in load_file(folder / "open_clip_model.safetensors").items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    assert load_backbone(Source(f"local-dir:{tmp_path}")).identity == tiny.identity


def test_identity_tells_the_preparation_and_the_activation(tiny: Backbone, tmp_path: Path) -> None:
    preprocess = tiny.identity.preprocess
    assert (preprocess.size, preprocess.resize_mode, preprocess.interpolation) == ((64, 64), "squash", "bilinear")
    assert (preprocess.mean, preprocess.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (tiny.identity.context_length, tiny.identity.dim) == (16, 32)
    assert tiny.identity.activation == "gelu"
    quick = load_backbone(Source(f"local-dir:{make_folder(tmp_path, 'quick')}"))
    assert quick.identity.activation == "quick_gelu"
    assert quick.identity.weights == tiny.identity.weights  # the tensors alone cannot tell them apart


def test_activation_is_read_from_the_modules(tiny: Backbone) -> None:
    model = copy.deepcopy(tiny.model)
    for block in model.text.transformer.resblocks:
        block.mlp.gelu = torch.nn.GELU(approximate="tanh")
    assert activation(model) == "image gelu, text gelu_tanh"


def test_tokenizer_name_tells_vocabulary_cleaning_and_length() -> None:
    variants = [
        open_clip.SimpleTokenizer(),
        open_clip.SimpleTokenizer(additional_special_tokens=["<extra>"]),
        open_clip.SimpleTokenizer(clean="whitespace"),
    ]
    names = [tokenizer_name(tokenizer) for tokenizer in variants]
    variants[0].context_length = 32
    names.append(tokenizer_name(variants[0]))
    assert len(set(names)) == 4
    assert all(name.startswith("SimpleTokenizer ") for name in names)
    variants[0].context_length = 77
    assert tokenizer_name(variants[0]) == names[0]


def test_a_device_that_is_not_there_is_an_error(folder: Path) -> None:
    for device in ("cuda:99", "abacus"):
        with pytest.raises(InputError, match=device):
            load_backbone(Source(f"local-dir:{folder}"), device)


def test_the_starter_heads_the_list_of_backbones() -> None:
    first, *rest = available_backbones()
    assert (first.model, first.dim, first.image_size, first.offline) == ("starter", 384, (224, 224), True)
    by_name = {backbone.model: backbone for backbone in rest}
    assert "laion2b_s34b_b79k" in by_name["ViT-B-32"].pretrained
    assert (by_name["ViT-L-14-336"].dim, by_name["ViT-L-14-336"].image_size) == (768, (336, 336))
