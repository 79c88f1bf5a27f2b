"""A backbone of sentence-transformers gives the vectors of that library's own `encode`."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_tiny import CONTEXT, SHORTEST, SIZE, save_tiny
from sentence_transformers import SentenceTransformer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from embed.backbones.backbone import Backbone
from embed.backbones.load import load_backbone
from embed.engines.towers import Towers
from embed.inputs import vocabulary
from embed.inputs.pixels import preprocess
from embed.inputs.tokenizer import Tokenizer
from embed.spec import InputError, Source

PROMPTS = [
    "a photo of a cat",
    "A Photo,  of A CAT!",
    "",
    " \t tabs\nand breaks ",
    "naïve café e\u0301 北京 😀 &amp; cafÃ© <b>",
    "<|endoftext|> in the middle",
    "more than any context holds " * 9,
]
# Odd and even numbers of pixels over, both ways, and pictures smaller than the tower's.
SIZES = [(16, 16), (16, 19), (23, 16), (40, 95), (120, 47), (9, 10), (61, 200), (64, 45), (33, 80)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("st") / "tiny")


def load(folder: Path) -> Backbone:
    return load_backbone(Source(f"st:{folder}"))


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    noise = [Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(size, 3) for size in SIZES]
    return [*noise, Image.new("L", (30, 20), 77)]


@torch.no_grad()
def image_vectors(backbone: Backbone, images: Sequence[Image.Image]) -> np.ndarray:
    pixels = np.stack([preprocess(image, backbone.identity.preprocess) for image in images])
    return backbone.image_tower()(torch.from_numpy(pixels)).numpy()


@torch.no_grad()
def text_vectors(backbone: Backbone, prompts: Sequence[str]) -> np.ndarray:
    return backbone.text_tower()(torch.from_numpy(backbone.tokenize(prompts))).numpy()


def encode(folder: Path, inputs: Sequence[str | Image.Image], pillow: bool = True) -> np.ndarray:
    """What sentence-transformers gives, with pictures resized by Pillow or by torchvision."""
    model = SentenceTransformer(str(folder), device="cpu")
    if pillow:
        processor = model[0].processor
        processor.image_processor = CLIPImageProcessorPil(**processor.image_processor.to_dict())
    return model.encode(list(inputs))


def test_pictures_are_those_of_encode(folder: Path) -> None:
    ours = image_vectors(load(folder), pictures())
    np.testing.assert_allclose(ours, encode(folder, pictures()), atol=1e-5)
    # torchvision rounds resized pixels by up to two levels otherwise.
    assert ((ours * encode(folder, pictures(), pillow=False)).sum(axis=1) > 0.9999).all()


def test_prompts_are_those_of_encode(folder: Path) -> None:
    ours = text_vectors(load(folder), PROMPTS)
    np.testing.assert_allclose(ours, encode(folder, PROMPTS), atol=1e-5)


def test_the_kept_tokenizer_is_theirs(folder: Path) -> None:
    backbone = load(folder)
    text, config = vocabulary.convert(backbone.tokenizer, shortens=True)
    vocabulary.require_same_tokens(Tokenizer(text, config), backbone.tokenizer, PROMPTS)
    theirs = SentenceTransformer(str(folder), device="cpu").tokenizer
    for prompt in PROMPTS:
        ids = theirs([prompt], truncation=True).input_ids[0]
        assert Tokenizer(text, config)([prompt])[0, : len(ids)].tolist() == ids


@pytest.mark.parametrize("picture", [{"size": SHORTEST["crop_size"], "do_center_crop": False}, {"resample": 2}])
def test_other_ways_of_preparing_pictures(picture: dict[str, object], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", act="gelu", **picture)
    np.testing.assert_allclose(image_vectors(load(folder), pictures()), encode(folder, pictures()), atol=1e-5)


def test_an_old_configuration_reads_the_greatest_token(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", eos=2)
    ours = text_vectors(load(folder), PROMPTS)
    np.testing.assert_allclose(ours, encode(folder, PROMPTS), atol=1e-5)


def test_the_identity_follows_weights_and_configuration(folder: Path, tmp_path: Path) -> None:
    first = load(folder).identity
    assert (first.preprocess.resize_mode, first.activation, first.dim) == ("shortest_floor", "quick_gelu", 24)
    assert first.context_length == CONTEXT and first.preprocess.size == (SIZE, SIZE)
    assert load(save_tiny(tmp_path / "again")).identity == first
    other = load(save_tiny(tmp_path / "other", resample=2, act="gelu")).identity
    assert [line.partition(":")[0] for line in first.differences(other)] == ["model", "preprocess", "activation"]
    # What this machine remembers is of the files as they are now.
    towers = Towers(Source(f"st:{tmp_path / 'again'}"), tmp_path / "kept", ("projected",))
    assert towers.identity == first and not Towers(towers.source, tmp_path / "kept", ("projected",)).needs_backbone
    change(tmp_path / "again" / "config.json", projection_dim=24, unknown=1)
    assert Towers(towers.source, tmp_path / "kept", ("projected",)).needs_backbone


def test_older_layouts_and_plain_clip_folders_are_the_same_backbone(folder: Path, tmp_path: Path) -> None:
    plain = folder.with_name("tiny-clip")  # as transformers saves it
    shutil.copytree(plain, tmp_path / "old" / "0_CLIPModel")
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (tmp_path / "old" / "modules.json").write_text(json.dumps(modules))
    assert load(plain).identity == load(tmp_path / "old").identity == load(folder).identity


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_type(folder: Path, kind: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1]["type"] = kind
    (folder / "modules.json").write_text(json.dumps(modules))


def test_what_would_be_other_vectors_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    processor, options = folder / "processor_config.json", folder / "config_sentence_transformers.json"
    sound = {file: file.read_text() for file in (processor, options, folder / "modules.json")}
    pictures_told = json.loads(sound[processor])["image_processor"]
    wrong = {
        r"resizes to \{'shortest_edge': 20\}": lambda: change(
            processor, image_processor=pictures_told | {"size": {"shortest_edge": 20}}
        ),
        r"leaves out \['do_normalize'\]": lambda: change(
            processor, image_processor=pictures_told | {"do_normalize": False}
        ),
        "resizes with filter 1": lambda: change(processor, image_processor=pictures_told | {"resample": 1}),
        "puts 'find: ' before every prompt": lambda: change(
            options, prompts={"query": "find: "}, default_prompt_name="query"
        ),
        "runs subprocess.Popen": lambda: change_type(folder, "subprocess.Popen"),
        "runs sentence_transformers.base.modules.dense.Dense": lambda: change_type(
            folder, "sentence_transformers.base.modules.dense.Dense"
        ),
    }
    for message, spoil in wrong.items():
        spoil()
        with pytest.raises(InputError, match=message):
            load(folder)
        for file, text in sound.items():
            file.write_text(text)
    load(folder)


def test_what_is_no_such_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed.backbones.hub.why_unreachable", lambda: None)
    with pytest.raises(InputError, match=r"\(there is no such folder, and as a name on the hub: "):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match="leave --pretrained openai out"):
        load_backbone(Source("st:anything", "openai"))


def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install 'plaudit\[sentence-transformers\]'"):
        load(folder)
