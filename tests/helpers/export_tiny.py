"""Small backbones of each family with random weights, and one bundle of the smallest, for export and runtime."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from embed.backbones.backbone import Backbone, activation, tokenizer_name, weights_hash
from embed.backbones.load import load_backbone
from embed.spec import Identity, Preprocess, Source
from export.bundle_writer import export_bundle
from export.config import ExportConfig
from export.parity import generated_pictures
from heads.committee import Committee
from heads.config import HeadConfig
from heads.models import Head, build_head

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
SIGLIP_TEXT = {**TEXT, "context_length": 64, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vit": ({"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64}, TEXT),
    "siglip": (
        {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        SIGLIP_TEXT,
    ),
    "resnet": ({"layers": [1, 1, 1, 1], "width": 32, "head_width": 32, "image_size": 64}, TEXT),
    "convnext": ({"timm_model_name": "test_convnext", "timm_proj": "linear", "image_size": 160}, TEXT),
}


@cache
def tiny_backbone(family: str = "vit") -> Backbone:
    """A backbone of one family."""
    vision, text = FAMILIES[family]
    dim = 64 if family == "siglip" else 32
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(
        embed_dim=dim, vision_cfg=dict(vision), text_cfg=dict(text), quick_gelu=family == "resnet"
    )
    model = model.eval().requires_grad_(False)
    tokenizer = open_clip.SimpleTokenizer(context_length=text["context_length"])
    size = vision["image_size"]
    identity = Identity(
        model=f"tiny-{family}",
        weights=weights_hash(model.state_dict()),
        preparation=Preprocess((size, size), "squash" if family == "siglip" else "shortest", "bicubic", MEAN, STD),
        activation=activation(model),
        tokenizer=tokenizer_name(tokenizer),
        context_length=text["context_length"],
        dim=dim,
    )
    return Backbone(identity, Source(identity.model), model, tokenizer)


def huggingface_backbone(folder: Path, kind: str) -> Backbone:
    """A backbone whose text tower is transformers' `kind` ("bert", "roberta"), from a folder that is written here."""
    from transformers import BertConfig, PreTrainedTokenizerFast, RobertaConfig

    words = WordLevel({word: i for i, word in enumerate(("<s>", "<pad>", "</s>", "<unk>", *"abcdefghij"))}, "<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = {"bert": BertConfig, "roberta": RobertaConfig}[kind](
        vocab_size=14, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
        max_position_embeddings=80, pad_token_id=1,
    )  # fmt: skip
    config.save_pretrained(folder)
    named = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_model_pretrained": False}
    text = {**named, "hf_pooler_type": "mean_pooler", "context_length": 32}
    content = {"embed_dim": 32, "vision_cfg": FAMILIES["vit"][0], "text_cfg": text}
    torch.manual_seed(0)
    save_file(open_clip.CustomTextCLIP(**content).state_dict(), folder / "open_clip_model.safetensors")
    prepared = {"model_cfg": content, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(prepared))
    return load_backbone(Source(f"local-dir:{folder}"))


def tiny_head(dim: int = 32, seed: int = 1) -> Head:
    """A fusion head whose scores differ."""
    head = build_head(HeadConfig("fusion", dim, hidden=8))
    generator = torch.Generator().manual_seed(seed)
    for parameter in head.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return head.eval()


def tiny_committee() -> Committee:
    """Three heads that disagree with that one."""
    members = [tiny_head(seed=seed) for seed in (2, 3, 4)]
    return Committee(members, {"gains": [1.0, 0.9, 1.1], "offsets": [0.0, 0.1, -0.1]}, 3).eval()


class ImageOnly(Head):
    """A head that reads no text."""

    inputs = ("image_embedding",)

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(32, 1)

    def forward(self, image_embedding: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.layer(image_embedding).squeeze(-1)


def head_manifest(backbone: Backbone, **more: Any) -> dict[str, Any]:
    """What head.json would hold."""
    return {
        "head": asdict(HeadConfig("fusion", backbone.identity.dim, hidden=8)),
        "identity": backbone.identity.to_json(),
        "training": {"loss": "preference"},
        **more,
    }


CALIBRATION = {
    "temperature": {"value": 0.25},
    "percentiles": {"x": [-0.5, -0.25, -0.1, 0.0, 0.3], "y": [0.0, 0.2, 0.5, 0.75, 1.0]},
}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def shared_folder(tmp_path_factory: Any) -> Path:
    """One folder for all worker processes of a test run."""
    base: Path = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


def make_bundle(tmp_path_factory: Any) -> Path:
    """The smallest bundle at every precision, made once for all worker processes; do not write into it."""
    folder = shared_folder(tmp_path_factory)
    with locked(folder / "bundle.lock"):
        if not (folder / "bundle").exists():
            pictures = write_pictures(folder / "pictures", 12)
            config = ExportConfig(("fp32", "fp16", "int8"), pictures=tuple(pictures), max_flips=0.5)
            backbone = tiny_backbone()
            manifest = head_manifest(backbone, calibration=CALIBRATION)
            export_bundle(folder / "bundle", backbone, tiny_head(), manifest, config, committee=tiny_committee())
    return folder / "bundle"


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Generated pictures as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:02d}.png" for i in range(count)]
    for path, pixels in zip(paths, generated_pictures(count, seed=7), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def changed_manifest(bundle: Path, change: Any) -> None:
    """Rewrite bundle.json as an exporter would that made another manifest, its digest included."""
    from runtime.scoring.bundle import manifest_bytes

    manifest = json.loads((bundle / "bundle.json").read_text())
    change(manifest)
    (bundle / "bundle.json").write_bytes(manifest_bytes(manifest))


def random_pixels(backbone: Backbone, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *backbone.identity.preprocess.size, 3), dtype=np.uint8)
