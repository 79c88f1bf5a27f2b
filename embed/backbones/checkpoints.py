"""Checkpoints: find the weights that a source names, and what they need of an architecture.

Three things about a CLIP checkpoint are not in its tensors, and a wrong guess would give wrong vectors without any
error: the activation (GELU or QuickGELU), how pictures are resized and normalised, and the tokenizer. They are taken
from open_clip's table of pretrained tags, or from the open_clip_config.json beside the weights. A bare file states
none of them. It is accepted only if all known weights of that architecture agree; otherwise the user must name the
tag that the file was made from: `TAG@FILE`.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from open_clip.utils import to_2tuple

from embed.backbones.hub import local_if_unreachable
from embed.backbones.state_dicts import INDEX, OPENAI_KEYS, SUFFIXES, Weights, fit, read_state_dict
from embed.files import sha256_file
from embed.spec import InputError, Source
from embed.wording import few, first_line, unknown_name

Config = Mapping[str, Any]

FOLDER, HUB, RANDOM = "local-dir:", "hf-hub:", "random:"
CONFIG = "open_clip_config.json"
FOLDER_WEIGHTS = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
PREPARATION = ("mean", "std", "interpolation", "resize_mode", "fill_color")
# Other options can drop tokens at random or run code from the hub.
TOKENIZER_OPTIONS = {"clean", "strip_sep_token", "language"}


@dataclass(frozen=True)
class Plan:
    """Everything that follows from a source before the model is built."""

    name: str  # open_clip's name of the architecture, or `custom-` and a hash of the configuration
    config: Config  # open_clip's model configuration
    preparation: Config  # those keys of PREPARATION that are known
    weights: Weights | None  # None: random weights from the seed
    seed: int = 0


def plan(source: Source) -> Plan:
    """Read what `source` names, with its weights. Raise InputError if it is unknown, ambiguous or contradictory."""
    if source.model.startswith((FOLDER, HUB)):
        return _plan_with_config(source)
    name = source.model.replace("/", "-")
    config = open_clip.get_model_config(name)
    if config is None:
        raise unknown_name("model", source.model, ["starter", *open_clip.list_models()])
    tags = open_clip.list_pretrained_tags_by_model(name)
    if source.pretrained is None:
        raise InputError(
            f"{name} needs weights: give --pretrained one of its tags ({', '.join(tags) or 'it has none'}),"
            f" a file, or {RANDOM}SEED for tests"
        )
    if (seed := _seed(source.pretrained)) is not None:
        return Plan(name, config, {}, None, seed)
    weights, recipe = _weights_and_recipe(name, config, source.pretrained, tags)
    return Plan(name, config, _preparation(recipe), weights)


def build(plan: Plan) -> open_clip.CustomTextCLIP | open_clip.CoCa:
    """Return the plan's model with its weights, as open_clip's CustomTextCLIP or CoCa, in eval mode."""
    config: dict[str, Any] = deepcopy(dict(plan.config))
    config.pop("custom_text", None)
    # The checkpoint holds both towers, so open_clip must not download weights for either.
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    if config["text_cfg"].get("hf_model_name"):
        config["text_cfg"]["hf_model_pretrained"] = False
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        try:
            model = kind(**config)
        except (OSError, RuntimeError, TypeError) as error:
            raise InputError(f"{plan.name} cannot be built from its configuration ({first_line(error)})") from None
    if plan.weights is not None:
        fit(model, plan.weights, plan.name)
    return model.eval()


def load_tokenizer(source: Source, plan: Plan) -> SimpleTokenizer | HFTokenizer:
    """Return open_clip's tokenizer for the plan. No code that comes with the checkpoint is run."""
    text = plan.config["text_cfg"]
    options = text.get("tokenizer_kwargs") or {}
    if strange := sorted(set(options) - TOKENIZER_OPTIONS):
        raise InputError(
            f"{plan.name}: tokenizer_kwargs {strange} are not supported; supported are {sorted(TOKENIZER_OPTIONS)}"
        )
    context_length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    name = text.get("hf_tokenizer_name")
    if not name:
        return SimpleTokenizer(context_length=context_length, **options)
    if source.model.startswith(FOLDER):
        name = source.model.removeprefix(FOLDER)
    try:
        mode = text.get("tokenizer_mode")
        with nullcontext() if Path(name).exists() else local_if_unreachable():
            return HFTokenizer(name, context_length, tokenizer_mode=mode, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer of {plan.name} cannot be loaded ({first_line(error)})") from None


def _weights_and_recipe(name: str, config: Config, pretrained: str, tags: list[str]) -> tuple[Weights, Config]:
    """Return the weights named by a tag, a file or `TAG@FILE`, and the entry of open_clip's table that they follow."""
    if recipe := open_clip.get_pretrained_cfg(name, pretrained):
        _require_activation(name, config, recipe)
        file = _download(open_clip.download_pretrained, recipe, from_hub=bool(recipe.get("hf_hub")))
        return read_state_dict(file), recipe
    file = Path(pretrained)
    if file.is_file():
        weights = read_state_dict(file)
        recipe = _recipe_of_file(name, file, weights, tags)
        _require_activation(name, config, recipe)
        return weights, recipe
    tag, at, path = pretrained.partition("@")
    recipe = open_clip.get_pretrained_cfg(name, tag)
    if recipe and Path(path).is_file():
        weights = read_state_dict(Path(path))
        _require_activation(name, config, {"quick_gelu": True} if _is_openai(weights) else recipe)
        return weights, recipe
    if at or os.sep in pretrained or file.suffix in SUFFIXES:
        raise InputError(f"--pretrained {pretrained}: no such file, and no tag of {name} ({', '.join(tags)})")
    raise unknown_name(f"pretrained tag of {name}", pretrained, tags)


def _is_openai(weights: Weights) -> bool:
    return any(key in weights for key in OPENAI_KEYS)


def _require_activation(name: str, config: Config, recipe: Config) -> None:
    # Only this direction is a contradiction: open_clip's table leaves the flag out for roberta-ViT-B-32.
    if recipe.get("quick_gelu") and not config.get("quick_gelu"):
        raise InputError(
            f"these weights were trained with QuickGELU and {name} computes GELU, which would give wrong vectors:"
            f" use --model {name}-quickgelu"
        )


def _recipe_of_file(name: str, path: Path, weights: Weights, tags: list[str]) -> Config:
    """Return the entry of open_clip's table that a bare file follows. Raise InputError if several are possible.

    If open_clip knows no weights of the architecture at all, its defaults are used.
    """
    if _is_openai(weights):
        return open_clip.get_pretrained_cfg(name, "openai") or {"quick_gelu": True}
    recipes = {tag: open_clip.get_pretrained_cfg(name, tag) for tag in tags}
    kinds: dict[str, list[str]] = {}
    for tag, recipe in recipes.items():
        quick = bool(recipe.get("quick_gelu"))
        model = f"{name}-quickgelu" if quick and not name.endswith("-quickgelu") else name
        mean, std = (" ".join(f"{value:.3g}" for value in recipe[key]) for key in ("mean", "std"))
        ways = f"{'QuickGELU' if quick else 'GELU'}, mean {mean}, std {std}, {recipe['resize_mode']}"
        kinds.setdefault(f"--model {model} ({ways}, {recipe['interpolation']})", []).append(tag)
    if len(kinds) > 1:
        digest = sha256_file(path)
        tags = [tag for tag in tags if digest.startswith(_published_hash(recipes[tag]["url"]) or "unknown")]
        if not tags:
            listed = "; ".join(f"{kind}: {few(members)}" for kind, members in kinds.items())
            raise InputError(
                f"{path} does not say how it was trained, and weights of {name} differ. Name the tag that it was made"
                f" from, as --pretrained TAG@{path}. The tags are, for {listed}"
            )
    return recipes[tags[0]] if tags else {}


def _published_hash(url: str) -> str | None:
    """Return the SHA-256 of a published file, or its first eight digits, if the URL contains it."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    if "mlfoundations" in url:
        return Path(url).stem.rpartition("-")[2]
    return None


def _plan_with_config(source: Source) -> Plan:
    """Return the plan of a folder, or of a repository on the hub, that holds an open_clip_config.json."""
    where = source.model.partition(":")[2]
    seed = None if source.pretrained is None else _seed(source.pretrained)
    if source.pretrained is not None and seed is None:
        raise InputError(f"{source.model} brings its own weights; leave --pretrained {source.pretrained} out")
    local = source.model.startswith(FOLDER)
    path = Path(where) / CONFIG if local else _download(download_pretrained_from_hf, where, filename=CONFIG)
    if not path.is_file():
        raise InputError(f"{where} has no {CONFIG}")
    try:
        content = json.loads(path.read_text())
        config, stated = content["model_cfg"], content.get("preprocess_cfg", {})
        size, quick_gelu = config["vision_cfg"].get("image_size", 224), config.get("quick_gelu", False)
        name = architecture_name(config)
        config["text_cfg"], config["embed_dim"]
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not a configuration of open_clip ({type(error).__name__}: {error})") from None
    if seed is not None:
        return Plan(name, config, _preparation(stated), None, seed)
    if not {"mean", "std"} <= stated.keys():
        raise InputError(f"{path} does not say how pictures are normalised: preprocess_cfg needs mean and std")
    if tuple(to_2tuple(stated.get("size", size))) != tuple(to_2tuple(size)):
        raise InputError(f"{path} contradicts itself: pictures of {stated['size']} for a tower that takes {size}")
    weights = read_state_dict(_weights_in(Path(where)) if local else _download(download_pretrained_from_hf, where))
    if _is_openai(weights) and not quick_gelu:
        raise InputError(
            f'the weights beside {path} are OpenAI\'s, trained with QuickGELU: model_cfg needs "quick_gelu": true'
        )
    return Plan(name, config, _preparation(stated), weights)


def architecture_name(config: Config) -> str:
    """Return open_clip's own name of a configuration, or a name made from its content, as folders can be renamed."""
    for name in open_clip.list_models():
        if open_clip.get_model_config(name) == config:
            return str(name)
    return f"custom-{hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]}"


def _weights_in(folder: Path) -> Path:
    """Return the one checkpoint of a folder, with the usual names first, or the one index of its shards."""
    usual = [folder / f"{name}{suffix}" for name in FOLDER_WEIGHTS for suffix in (*SUFFIXES, INDEX)]
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES or file.name.endswith(INDEX))
    found = [path for path in usual if path in files][:1] or files
    if len(found) != 1:
        raise InputError(
            f"{folder} holds {len(found)} checkpoints ({few([file.name for file in found])}); wanted one,"
            f" such as {FOLDER_WEIGHTS[0]}.safetensors"
        )
    return found[0]


def _download(function: Callable[..., str], *args: object, from_hub: bool = True, **kwargs: object) -> Path:
    """Return the local path of an open_clip download. Raise InputError if it fails."""
    try:
        with local_if_unreachable() if from_hub else nullcontext():
            return Path(function(*args, **kwargs))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"download failed ({first_line(error)}). Without a network, give a file, or a folder as {FOLDER}PATH"
        ) from None


def is_downloaded(recipe: Config) -> bool:
    """Whether the weights of an entry of open_clip's table are already in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    repository, file = os.path.split(recipe["hf_hub"])
    file = file or HF_WEIGHTS_NAME
    names = (file, f"{os.path.splitext(file)[0]}.safetensors", HF_SAFE_WEIGHTS_NAME)
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


def _seed(pretrained: str) -> int | None:
    """Return the number in `random:NUMBER`, or None for any other text."""
    kind, _, number = pretrained.partition(":")
    return int(number) if f"{kind}:" == RANDOM and number.isdecimal() else None


def _preparation(recipe: Config) -> dict[str, Any]:
    return {key: recipe[key] for key in PREPARATION if recipe.get(key) is not None}
