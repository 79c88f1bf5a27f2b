"""Read weights from files without running code from them, and copy them into a model without changing their shape.

It handles .safetensors, files that torch saves, and the tensor names of OpenAI, open_clip and transformers.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
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
INDEX = ".safetensors.index.json"  # the ending of a file that lists shards
COUNTERS = ("n_averaged", "initted", "step")  # of torch's AveragedModel and of ema_pytorch
# Stored beside the weights in the checkpoints that OpenAI published; all of them were trained with QuickGELU.
OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")


def read_state_dict(path: Path) -> Weights:
    """Read named tensors from a .safetensors or torch file, without running any code that the file holds."""
    if path.name.endswith(INDEX):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        try:
            return _without_prefix(load_file(path))
        except SafetensorError as error:
            raise InputError(f"{path} cannot be read ({first_line(error)})") from None
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is not a checkpoint that can be read; wanted one of {', '.join(SUFFIXES)}")
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
    return _without_prefix(_named_tensors(content, path))


def _named_tensors(content: object, path: Path) -> Weights:
    """Return the weights of a checkpoint: the dict itself, its `state_dict`, or the only set of named tensors in it.

    DeepSpeed stores them as `module`, others as `model`, beside the epoch, the optimizer and settings.
    """
    parts = content if isinstance(content, dict) else {}
    if _is_weights(parts):
        return parts
    found = [key for key, value in parts.items() if _is_weights(value)]
    if "state_dict" in found:
        found = ["state_dict"]
    if len(found) != 1:
        held = f"holds {few(map(str, parts)) or type(content).__name__}"
        if found:
            held = f"holds several sets of named tensors: {few(map(str, found))}"
        raise InputError(
            f"{path} is not a state dict (it {held}); wanted named tensors, or a dictionary that has one set of them,"
            " such as 'state_dict'"
        )
    weights: Weights = parts[found[0]]
    return weights


def _is_weights(value: object) -> bool:
    """Whether `value` is a dictionary of named tensors that is not empty."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items())
    )


def _without_prefix(weights: Weights) -> Weights:
    """Remove a prefix that all names share, up to a dot, and the counters of averaged models.

    DistributedDataParallel and AveragedModel add `module.`, torch.compile adds `_orig_mod.`, Lightning adds `model.`.
    """
    weights = {name: tensor for name, tensor in weights.items() if name not in COUNTERS}
    while len(weights) > 1 and len({name.partition(".")[0] for name in weights}) == 1:
        weights = {name.partition(".")[2]: tensor for name, tensor in weights.items()}
    return weights


def _read_shards(index: Path) -> Weights:
    """Read the tensors of all files that an index names, which is how Hugging Face writes large checkpoints."""
    try:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is not an index of shards ({type(error).__name__}: {error})") from None
    lacking = [str(name) for name in files if Path(str(name)).name != name or not (index.parent / name).is_file()]
    if lacking:
        raise InputError(f"{index} names {few(lacking)}, but no such file is beside it")
    weights: dict[str, torch.Tensor] = {}
    for name in files:
        try:
            weights |= load_file(index.parent / name)
        except SafetensorError as error:
            raise InputError(f"{index.parent / name} cannot be read ({first_line(error)})") from None
    return _without_prefix(weights)


def fit(model: nn.Module, weights: Weights, name: str) -> None:
    """Copy the weights into the model. Raise InputError that lists missing, unexpected and misshapen tensors.

    Nothing is resized, while open_clip would stretch positional embeddings to another picture size or context length.
    """
    state = to_open_clip(weights) if is_clip_model(weights) else convert_state_dict(model, dict(weights))
    for key in (*OPENAI_KEYS, "text.transformer.embeddings.position_ids"):
        state.pop(key, None)
    if "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    wanted = model.state_dict()
    for key in ("logit_scale", "logit_bias"):  # a number that is stored with or without an axis
        if key in state and key in wanted and state[key].numel() == 1:
            state[key] = state[key].reshape(wanted[key].shape)
    problems = []
    if missing := sorted(wanted.keys() - state.keys()):
        problems.append(f"{len(missing)} tensors are missing ({few(missing)}){_prefix_hint(missing, state)}")
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


def _prefix_hint(missing: Sequence[str], state: Weights) -> str:
    """If the missing tensors exist under a prefix that only some names have, return a sentence that says so."""
    prefixes = {name.removesuffix(missing[0]) for name in state if name.endswith(f".{missing[0]}")}
    found = [prefix for prefix in prefixes if all(prefix + name in state for name in missing)]
    return f"; the names of these begin with {found[0]!r}, while others do not: save only these" if found else ""


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
