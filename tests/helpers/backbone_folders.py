"""Folders of small backbones of every family, as open_clip publishes models."""

import copy
import json
import shutil
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from embed.backbones import starter

TEXT = {"context_length": 16, "width": 64, "heads": 2, "layers": 2}
VIT = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 64}
PREPARATION = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}
CONFIGS = {
    "vit": {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT},
    "quick": {"embed_dim": 32, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "resnet": {
        "embed_dim": 32,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "image_size": 64, "patch_size": None},
        "text_cfg": TEXT,
    },
    "timm": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160},
        "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "clipa": {  # a tokenizer of its own, in the folder
        "embed_dim": 32,
        "vision_cfg": VIT | {"pool_type": "avg", "no_ln_pre": True},
        "text_cfg": TEXT
        | {"hf_tokenizer_name": "bert", "tokenizer_kwargs": {"strip_sep_token": True}}
        | {"vocab_size": 30522, "pool_type": "last", "no_causal_mask": True},
    },
    "coca": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 16, "width": 64, "heads": 2, "layers": 1, "attn_pooler_heads": 2},
    },
}


def make_folder(folder: Path, kind: str, seed: int = 0) -> Path:
    """A folder as open_clip publishes models: a configuration and randomly set weights in open_clip's own layout."""
    config = copy.deepcopy(CONFIGS[kind])
    torch.manual_seed(seed)
    custom = config.pop("custom_text", False)
    maker = open_clip.CoCa if kind == "coca" else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    state = maker(**config).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")
    if "hf_tokenizer_name" in CONFIGS[kind]["text_cfg"]:
        for path in starter.asset_path(*starter.TEXT_FOLDER).glob("*token*.json"):
            shutil.copy(path, folder)
    content = {"model_cfg": CONFIGS[kind], "preprocess_cfg": PREPARATION}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder
