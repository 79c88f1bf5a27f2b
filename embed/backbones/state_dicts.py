"""Weights in files: read without running anything, and fitted to a model without changing their shape.

Knows .safetensors and what torch saves, and the names that OpenAI, open_clip and transformers give a CLIP's tensors.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from embed.backbones.hugging_face import is_clip_model, to_open_clip
from embed.spec import InputError
from embed.wording import few, first_line

Weights = Mapping[str, torch.Tensor]

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# Stored beside the weights in the checkpoints that OpenAI published; all of them were trained with QuickGELU.
OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")


def read_state_dict(path: Path) -> Weights:
    """Named tensors from a .safetensors or torch file, without running anything that the file holds."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} cannot be read ({first_line(error)})") from None
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is no checkpoint that can be read; wanted one of {', '.join(SUFFIXES)}")
    if _is_torchscript(path):
        raise InputError(
            f"{path} is a TorchScript archive, and loading one runs the code inside. If you trust it, convert it once:"
            f" python -c \"import torch; torch.save(torch.jit.load('{path}', 'cpu').state_dict(),"
            f" '{path.with_suffix('.tensors.pt')}')\""
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read as plain tensors ({first_line(error)});"
            " save its state_dict() alone, as .safetensors"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    others = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state:
        raise InputError(
            f"{path} is not a state dict (it holds {few(others) or type(content).__name__});"
            " wanted named tensors, or a dictionary that has them under 'state_dict'"
        )
    parallel = "module."  # what DistributedDataParallel puts before every name
    return {key.removeprefix(parallel): tensor for key, tensor in state.items()}


def fit(model: nn.Module, weights: Weights, name: str) -> None:
    """Copy the weights into the model; InputError naming what is missing, unexpected or of another shape.

    Nothing is resized: open_clip would stretch positional embeddings to another picture size or context length.
    """
    state = to_open_clip(weights) if is_clip_model(weights) else convert_state_dict(model, dict(weights))
    for key in (*OPENAI_KEYS, "text.transformer.embeddings.position_ids"):
        state.pop(key, None)
    if "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    wanted = model.state_dict()
    for key in ("logit_scale", "logit_bias"):  # a number, kept with or without an axis
        if key in state and key in wanted and state[key].numel() == 1:
            state[key] = state[key].reshape(wanted[key].shape)
    problems = []
    if missing := sorted(wanted.keys() - state.keys()):
        problems.append(f"{len(missing)} tensors are missing ({few(missing)})")
    if unexpected := sorted(state.keys() - wanted.keys()):
        problems.append(f"{len(unexpected)} are not of this architecture ({few(unexpected)})")
    problems += [
        f"{key} is {tuple(state[key].shape)} and should be {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].shape != wanted[key].shape
    ]
    if problems:
        raise InputError(f"the checkpoint does not fit {name}: {few(problems)}")
    model.load_state_dict(state)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
