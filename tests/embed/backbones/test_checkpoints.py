"""Every way in which a checkpoint could give wrong vectors without a word is an error with a way out."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip import pretrained as table
from safetensors.torch import save_file

from embed.backbones import checkpoints, hub
from embed.backbones.load import _require_fit, load_backbone
from embed.files import sha256_file
from embed.spec import InputError, Source

CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 32, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 8, "width": 32, "heads": 2, "layers": 1},
}
PREPARATION = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in open_clip.CLIP(**CONFIG).state_dict().items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint of which only the name of a tensor can be known."""
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "tuned.safetensors")
    return tmp_path / "tuned.safetensors"


def make_folder(
    folder: Path, weights: dict[str, torch.Tensor], config: dict[str, Any] = CONFIG, preparation: Any = PREPARATION
) -> Source:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": preparation}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return Source(f"local-dir:{folder}")


def error(source: Source) -> str:
    with pytest.raises(InputError) as caught:
        load_backbone(source)
    return str(caught.value)


def no_download(*args: object, **kwargs: object) -> str:
    raise FileNotFoundError("no network here\nsecond line")


# What is asked for by name


def test_an_unknown_model_lists_near_names() -> None:
    assert "ViT-B-32" in error(Source("ViT-B-23", "openai"))
    assert "starter" in error(Source("startr"))


def test_weights_must_be_named() -> None:
    text = error(Source("ViT-B-32"))
    assert "laion2b_s34b_b79k" in text
    assert "random:SEED" in text


def test_an_unknown_tag_lists_near_tags_and_a_missing_file_says_so() -> None:
    assert "laion2b_s34b_b79k" in error(Source("ViT-B-32", "laion2b_s34b_b79"))
    assert "no such file" in error(Source("ViT-B-32", "weights/tuned.pt"))
    assert "no such file" in error(Source("ViT-B-32", "openai@tuned.pt"))
    assert "random:x" in error(Source("ViT-B-32", "random:x"))


def test_a_failed_download_names_the_way_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "why_unreachable", lambda: None)
    monkeypatch.setattr(open_clip, "download_pretrained", no_download)
    monkeypatch.setattr(checkpoints, "download_pretrained_from_hf", no_download)
    for source in (Source("ViT-B-32", "laion2b_s34b_b79k"), Source("hf-hub:someone/model")):
        wanted = "Without a network, give a file, or a folder as local-dir:PATH"
        assert error(source) == f"download failed (no network here). {wanted}"


def test_weights_downloaded_before_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    stored: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, name: stored.get(name))
    assert recipe["hf_hub"].endswith("/")  # the repository's usual file
    assert not checkpoints.is_downloaded(recipe)
    stored["open_clip_model.safetensors"] = object()  # how the hub's library notes that a file does not exist
    assert not checkpoints.is_downloaded(recipe)
    stored["open_clip_model.safetensors"] = "/cache/open_clip_model.safetensors"
    assert checkpoints.is_downloaded(recipe)


# GELU or QuickGELU, and how pictures are prepared


@pytest.mark.parametrize("tag", ["openai", "laion400m_e32", "metaclip-fullcc"])
def test_quickgelu_weights_do_not_load_into_a_gelu_model(tag: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "download_pretrained", no_download)  # found out before anything is fetched
    for pretrained in (tag, f"{tag}@{file}"):
        assert "use --model ViT-B-32-quickgelu" in error(Source("ViT-B-32", pretrained))


def test_every_tag_of_open_clip_has_an_architecture_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "why_unreachable", lambda: None)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda recipe: "weights.safetensors")
    monkeypatch.setattr(checkpoints, "read_state_dict", lambda path: {})
    refused = []
    for name, tag in open_clip.list_pretrained():
        try:
            checkpoints.plan(Source(name, tag))
        except InputError:
            refused.append(name)
            checkpoints.plan(Source(f"{name}-quickgelu", tag))
    assert "ViT-B-32" in refused
    assert not any(name.endswith("-quickgelu") for name in refused)


def test_a_bare_file_is_refused_where_weights_of_its_architecture_differ(file: Path) -> None:
    text = error(Source("ViT-B-32", str(file)))
    assert f"--pretrained TAG@{file}" in text
    assert "--model ViT-B-32-quickgelu (QuickGELU, mean 0.481 0.458 0.408" in text
    assert "--model ViT-B-32 (GELU, mean 0.481 0.458 0.408" in text


def test_a_bare_file_is_taken_where_all_known_weights_agree(file: Path) -> None:
    plan = checkpoints.plan(Source("ViT-B-32-quickgelu", str(file)))
    assert plan.config["quick_gelu"] is True
    assert plan.preparation["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert checkpoints.plan(Source("ViT-B-16-SigLIP", str(file))).preparation["resize_mode"] == "squash"
    assert open_clip.list_pretrained_tags_by_model("ViT-S-32") == []
    assert checkpoints.plan(Source("ViT-S-32", str(file))).preparation == {}


def test_a_file_takes_the_preparation_of_the_tag_it_descends_from(file: Path) -> None:
    half = checkpoints.plan(Source("ViT-L-14", f"laion2b_s32b_b82k@{file}"))
    assert half.preparation["mean"] == (0.5, 0.5, 0.5)
    usual = checkpoints.plan(Source("ViT-L-14", f"datacomp_xl_s13b_b90k@{file}"))
    assert usual.preparation["mean"] == open_clip.OPENAI_DATASET_MEAN


def test_a_published_file_is_recognised_by_its_hash(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = sha256_file(file)
    entry = table._PRETRAINED["ViT-B-32"]["laion2b_e16"]
    monkeypatch.setitem(entry, "url", f"https://github.com/mlfoundations/open_clip/x/vit_b_32-{digest[:8]}.pth")
    assert checkpoints.plan(Source("ViT-B-32", str(file))).name == "ViT-B-32"
    monkeypatch.undo()
    entry = table._PRETRAINED["ViT-B-32"]["openai"]
    monkeypatch.setitem(entry, "url", f"https://openaipublic.azureedge.net/clip/models/{digest}/ViT-B-32.pt")
    assert "QuickGELU" in error(Source("ViT-B-32", str(file)))


def test_openai_weights_are_known_by_their_extra_tensors(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    openai = weights | {"input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)}
    torch.save(openai, tmp_path / "converted.pt")
    assert "use --model ViT-B-32-quickgelu" in error(Source("ViT-B-32", str(tmp_path / "converted.pt")))
    said = f"laion2b_e16@{tmp_path / 'converted.pt'}"  # but the tensors say otherwise
    assert "use --model ViT-B-32-quickgelu" in error(Source("ViT-B-32", said))
    checkpoints.plan(Source("ViT-B-32-quickgelu", str(tmp_path / "converted.pt")))
    assert '"quick_gelu": true' in error(make_folder(tmp_path / "gelu", openai))
    backbone = load_backbone(make_folder(tmp_path / "quick", openai, CONFIG | {"quick_gelu": True}))
    assert backbone.identity.activation == "quick_gelu"


def test_a_folder_must_say_how_pictures_are_normalised(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    assert "needs mean and std" in error(make_folder(tmp_path, weights, preparation={"mean": [0.5] * 3}))


def test_a_folder_must_not_contradict_itself(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    assert "contradicts itself" in error(make_folder(tmp_path, weights, preparation=PREPARATION | {"size": 224}))
    listed = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"image_size": [32, 32]}}
    first = load_backbone(make_folder(tmp_path, weights, listed, PREPARATION | {"size": 32}))
    second = load_backbone(make_folder(tmp_path, weights, preparation=PREPARATION | {"size": [32, 32]}))
    assert first.identity.preprocess == second.identity.preprocess


def test_a_folder_with_open_clips_own_configuration_has_open_clips_name(tmp_path: Path) -> None:
    config = open_clip.get_model_config("ViT-S-32")
    assert checkpoints.plan(make_folder(tmp_path, {"x": torch.zeros(1)}, config)).name == "ViT-S-32"
    other = checkpoints.plan(make_folder(tmp_path, {"x": torch.zeros(1)}, config | {"embed_dim": 385})).name
    assert other.startswith("custom-")


def test_a_hub_repository_is_a_folder_elsewhere(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, filename: str = "model.safetensors") -> str:
        return str(tmp_path / repository / filename)

    monkeypatch.setattr(hub, "why_unreachable", lambda: None)
    monkeypatch.setattr(checkpoints, "download_pretrained_from_hf", download)
    folder = load_backbone(make_folder(tmp_path / "model", weights))
    assert load_backbone(Source("hf-hub:model")).identity == folder.identity


# The tensors


def test_what_does_not_fit_is_named(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    changed = {name: tensor for name, tensor in weights.items() if name != "visual.proj"}
    changed["visual.extra"] = torch.zeros(1)
    changed["positional_embedding"] = torch.zeros(16, 32)  # another context length: open_clip would stretch it
    text = error(make_folder(tmp_path, changed))
    assert "1 tensors are missing (visual.proj)" in text
    assert "1 are not of this architecture (visual.extra)" in text
    assert "text.positional_embedding is (16, 32) and should be (8, 32)" in text


def test_half_precision_weights_are_computed_in_float32(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    backbone = load_backbone(make_folder(tmp_path, {name: tensor.half() for name, tensor in weights.items()}))
    assert {tensor.dtype for tensor in backbone.model.state_dict().values()} == {torch.float32}


# The folder and the tokenizer


def test_a_folder_holds_one_configuration_and_one_checkpoint(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    source = make_folder(tmp_path, weights)
    save_file({"x": torch.zeros(1)}, tmp_path / "epoch_1.safetensors")
    assert load_backbone(source).identity.dim == 16  # model.safetensors is the usual name
    (tmp_path / "model.safetensors").rename(tmp_path / "epoch_2.safetensors")
    assert "holds 2 checkpoints (epoch_1.safetensors, epoch_2.safetensors)" in error(source)
    assert "brings its own weights" in error(Source(source.model, "openai"))
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert "is not a configuration of open_clip" in error(source)
    (tmp_path / "open_clip_config.json").unlink()
    assert "has no open_clip_config.json" in error(source)


def test_a_configuration_that_open_clip_cannot_build_is_the_users(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"depth": 3}}
    assert "cannot be built from its configuration" in error(make_folder(tmp_path, weights, config))


def test_the_tokenizer_must_be_the_text_towers(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"vocab_size": 32000}}
    small = weights | {"token_embedding.weight": torch.zeros(32000, 32)}
    assert "knows 49408 tokens, but its text tower only 32000" in error(make_folder(tmp_path, small, config))


def test_tokenizers_are_open_clips_choice() -> None:
    """open_clip also goes by names with "siglip" in them where a configuration names no tokenizer: none does so."""
    for name in open_clip.list_models():
        text = open_clip.get_model_config(name)["text_cfg"]
        assert text.get("hf_tokenizer_name") or "siglip" not in name.lower()
    plan = checkpoints.plan(Source("coca_ViT-B-32", "random:0"))
    tokenizer = checkpoints.load_tokenizer(Source("coca_ViT-B-32"), plan)
    assert tokenizer.context_length == open_clip.get_tokenizer("coca_ViT-B-32").context_length == 76


@pytest.mark.parametrize("option", [{"reduction_mask": "random"}, {"trust_remote_code": True}])
def test_tokenizer_options_that_roll_dice_or_run_code_are_refused(
    option: dict[str, Any], weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"tokenizer_kwargs": option}}
    assert f"tokenizer_kwargs {list(option)}" in error(make_folder(tmp_path, weights, config))


def test_a_text_towers_tokenizer_may_not_run_longer_than_it(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    backbone = load_backbone(make_folder(tmp_path, weights))
    backbone.tokenizer.context_length = 9
    with pytest.raises(InputError, match="is 9; its tower takes 8"):
        _require_fit(backbone.model, backbone.tokenizer, "tiny")
