"""Read published heads into ours. Only weights are read, code is never run.

LAION's aesthetic predictor (`sa_0_4_vit_*_linear.pth`: weight (1, d), bias (1,)) becomes `linear`; the improved
aesthetic predictor (`sac+logos+ava1-l14-linearMSE.pth`: five affine layers from d to 1) becomes `mlp` without
activations. A file is a torch state dict or safetensors.

A fine-tuned scorer in CLIP form (PickScore, HPSv2, Social Reward) is itself a backbone; make its cache with `embed
cache --pretrained FILE`. Its head is its own score of the vectors, exp(logit_scale) cos(v, t), which is an untrained
`cosine` head.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from embed.spec import InputError
from heads.config import HeadConfig
from heads.models import Cosine, Head, Mlp, build_head


def read_published(path: str | Path) -> tuple[Head, HeadConfig]:
    """The head in eval mode, which gives the published scores, and its configuration. Raise InputError for any other
    file."""
    weights = _read_tensors(Path(path))
    matrices = [tensor for tensor in weights.values() if tensor.ndim == 2]
    shapes = [tuple(tensor.shape) for tensor in matrices]
    if [shape[0] for shape in shapes] == [1]:
        config = HeadConfig("linear", shapes[0][1])
    elif [shape[0] for shape in shapes] == list(Mlp.WIDTHS):
        config = HeadConfig("mlp", shapes[0][1], reads="image", activations=False)
    else:
        raise InputError(
            f"{path} holds matrices of shapes {shapes[:8]}; wanted LAION's linear aesthetic predictor, (1, d), or the"
            f" improved one, of {', '.join(map(str, Mlp.WIDTHS))} rows"
        )
    head = build_head(config)
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    # Both files list weight and bias of each layer in the order in which they are applied.
    expected = [tuple(tensor.shape) for linear in linears for tensor in (linear.weight, linear.bias)]
    found = [tuple(tensor.shape) for tensor in weights.values()]
    if found != expected:
        raise InputError(f"{path} holds tensors of shapes {found}; wanted {expected}, by layer")
    values = list(weights.values())
    with torch.no_grad():
        for i, linear in enumerate(linears):
            # Our heads scale unit vectors to the order of one before the first layer; the published ones do not.
            scale = config.dim**-0.5 if i == 0 else 1.0
            linear.weight.copy_(values[2 * i].double() * scale)
            linear.bias.copy_(values[2 * i + 1])
    return head.eval(), config


def read_scorer(path: str | Path, dim: int) -> tuple[Head, HeadConfig] | None:
    """The cosine head of a CLIP checkpoint, with the checkpoint's scale, for vectors of `dim` numbers. None if the file
    is not such a checkpoint."""
    from embed.backbones.state_dicts import read_state_dict

    try:
        scale = read_state_dict(Path(path)).get("logit_scale")
    except InputError:
        return None
    if scale is None:
        return None
    if scale.numel() != 1 or not torch.isfinite(scale).all():
        raise InputError(
            f"{path}: logit_scale is {tuple(scale.shape)} {scale.flatten()[:3].tolist()}; wanted one number"
        )
    config = HeadConfig("cosine", dim)
    head = build_head(config)
    assert isinstance(head, Cosine)
    with torch.no_grad():
        head.logit_scale.copy_(scale.reshape(()))
    return head.eval(), config


def _read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, weights before biases, layers by number."""
    from embed.backbones.state_dicts import read_state_dict

    weights = read_state_dict(path)
    if bad := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise InputError(f"{path}: the tensor {bad[0]!r} is not finite")

    def order(name: str) -> tuple[int, bool]:
        digits = "".join(character for character in name if character.isdigit())
        return int(digits or 0), not name.endswith("weight")

    return {name: weights[name] for name in sorted(weights, key=order)}
