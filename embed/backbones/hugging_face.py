"""Rename CLIP weights that `transformers` saved (a CLIPModel, such as PickScore) to the names of open_clip.

This module takes tensors and returns tensors. The architecture and its activation are not in the tensors.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

TOWERS = {"text_model.": "", "vision_model.": "visual."}
NAMES = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "pre_layrnorm": "ln_pre",  # the published name has this typing error
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}


def is_clip_model(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a `transformers` CLIPModel."""
    return weights.keys() >= PROJECTIONS.keys()


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a CLIPModel's tensors with open_clip's names and shapes; unknown tensors keep their names.

    open_clip holds the query, key and value projections in one matrix, and transposes the projections into the joint
    space.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in PROJECTIONS:
            renamed[PROJECTIONS[name]] = tensor.T.contiguous()
        elif name.endswith("embeddings.position_ids"):
            continue  # a buffer of older versions that holds 0, 1, 2, ...
        elif match := re.fullmatch(r"(.*self_attn)\.q_proj\.(weight|bias)", name):
            attention, kind = match.groups()
            parts = [weights.get(f"{attention}.{side}_proj.{kind}") for side in "qkv"]
            if all(part is not None for part in parts):
                target = _renamed(attention).replace("self_attn", f"attn.in_proj_{kind}")
                renamed[target] = torch.cat([part for part in parts if part is not None])
        elif not re.search(r"self_attn\.[kv]_proj\.", name):
            renamed[_renamed(name)] = tensor
    return renamed


def _renamed(name: str) -> str:
    for tower, ours in TOWERS.items():
        if name.startswith(tower):
            name = name.removeprefix(tower)
            for theirs, new in NAMES.items():
                name = name.replace(theirs, new)
            return ours + name
    return name
