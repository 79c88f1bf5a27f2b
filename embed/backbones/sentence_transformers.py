"""Load multimodal models of sentence-transformers: a CLIP, with the picture processor that its own `encode` uses.

A model is named `st:FOLDER`, or `st:NAME` on the hub. sentence-transformers reads the model; then its weights go into
open_clip's classes and our own preprocessing, so that engines, export and unfreezing treat it like any other backbone.
Models that these would not reproduce exactly are refused.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_clip.tokenizer import HFTokenizer

from embed.backbones.checkpoints import Config, Plan, architecture_name
from embed.backbones.hub import local_if_unreachable
from embed.spec import InputError, Source
from embed.wording import first_line

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerBase

PREFIX = "st:"
MODULES = ("Transformer", "CLIPModel", "Normalize")  # modules whose effect on a vector's direction is known
MODALITIES = {
    "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
    "image": {"method": "get_image_features", "method_output_name": "pooler_output"},
}
# Those options of a Transformer module that do not change the vectors of a CLIP.
HARMLESS = {"transformer_task", "modality_config", "module_output_name", "max_seq_length", "do_lower_case"}
QUICK_GELU = {"quick_gelu": True, "gelu": False}
RESAMPLING = {2: "bilinear", 3: "bicubic"}
LAYER_NORM_EPS = 1e-5  # open_clip's
OLD_EOS = 2  # in old configurations, which do not name the end token: it is then the largest token id of the prompt


class OwnTokenizer(HFTokenizer):  # type: ignore[misc] # open_clip has no types
    """The model's own tokenizer with open_clip's interface. It cleans no prompt, as sentence-transformers does not."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", context_length: int) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.tokenizer_mode = ""
        self.strip_sep_token = False
        self.clean_fn = str  # returns the prompt unchanged


def read(source: Source) -> tuple[Plan, OwnTokenizer]:
    """Return a model of sentence-transformers as a plan for open_clip, and its tokenizer.

    Raise InputError if the extra is not installed, the model cannot be read, or open_clip would not reproduce it.
    """
    name = source.model.removeprefix(PREFIX)
    if source.pretrained is not None:
        raise InputError(f"{source.model} brings its own weights; leave --pretrained {source.pretrained} out")
    model = _load(name)
    try:
        return _as_open_clip(model)
    except InputError as error:
        raise InputError(f"{name} cannot be a backbone: {error}") from None


def _load(name: str) -> "SentenceTransformer":
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.util import load_file_path
    except ImportError:
        raise InputError(
            f"{PREFIX}{name} needs sentence-transformers: pip install 'plaudit[sentence-transformers]'"
        ) from None
    if not name:
        raise InputError(f"{PREFIX} needs a folder or a hub name of a sentence-transformers model after it")
    try:
        with _no_bars(), contextlib.nullcontext() if Path(name).exists() else local_if_unreachable():
            # Read this first, because sentence-transformers imports and runs any class that is named there.
            if listed := load_file_path(name, "modules.json"):
                _require_known([str(module["type"]) for module in json.loads(Path(listed).read_text())], name)
            # In fp32 even if the weights are stored in half precision, because engines are compared with fp32.
            return SentenceTransformer(name, device="cpu", trust_remote_code=False, model_kwargs={"dtype": "float32"})
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        where = "" if Path(name).exists() else "there is no such folder, and as a name on the hub: "
        raise InputError(
            f"{name} cannot be read as a model of sentence-transformers ({where}{first_line(error)}); wanted a folder"
            " that its `save` wrote, or a name on the hub"
        ) from None


def _require_known(types: list[str], name: str) -> None:
    for kind in types:
        package, _, last = kind.partition(".")[0], *kind.rpartition(".")[1:]
        if package != "sentence_transformers" or last not in MODULES:
            raise InputError(
                f"{name} cannot be a backbone: it runs {kind}, but plaudit only supports a CLIP of transformers"
                " (modules Transformer or CLIPModel, and Normalize)"
            )


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Hide the progress bars of transformers while the block runs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _as_open_clip(model: "SentenceTransformer") -> tuple[Plan, OwnTokenizer]:
    kinds = [type(module).__name__ for module in model]
    if kinds[0] not in MODULES[:2] or any(kind != MODULES[2] for kind in kinds[1:]):
        raise InputError(f"its modules are {kinds}; wanted Transformer or CLIPModel, then at most Normalize")
    clip: Any = model[0]
    if clip.config.model_type != "clip":
        raise InputError(f"it is a {clip.config.model_type!r} of transformers; wanted 'clip', with one tower a side")
    if clip.modality_config != MODALITIES:
        raise InputError(f"it does not take its vectors from where CLIP does: {clip.modality_config}")
    options = {key for key, value in clip.get_config_dict().items() if value and key not in HARMLESS}
    if options or getattr(clip, "do_lower_case", False):
        raise InputError(f"plaudit does not support its options {sorted(options) or ['do_lower_case']}")
    if model.default_prompt_name and model.prompts.get(model.default_prompt_name):
        raise InputError(f"it puts {model.prompts[model.default_prompt_name]!r} before every prompt; wanted none")
    config = _config(clip.config.to_dict())
    if model.truncate_dim not in (None, config["embed_dim"]):
        raise InputError(f"it cuts its vectors to {model.truncate_dim} of {config['embed_dim']} numbers; wanted all")
    preparation = _preparation(clip.processor.image_processor.to_dict(), config["vision_cfg"]["image_size"])
    plan = Plan(architecture_name(config), config, preparation, clip.model.state_dict())
    return plan, _tokenizer(clip.processor.tokenizer, config["text_cfg"]["context_length"])


def _config(clip: Config) -> Config:
    """Return open_clip's configuration for an architecture that is described by one of transformers."""
    vision, text = clip["vision_config"], clip["text_config"]
    acts = {vision["hidden_act"], text["hidden_act"]}
    if len(acts) != 1 or not acts <= QUICK_GELU.keys():
        raise InputError(f"its activations are {sorted(acts)}; wanted one of {list(QUICK_GELU)} in both towers")
    if {vision["layer_norm_eps"], text["layer_norm_eps"]} != {LAYER_NORM_EPS}:
        raise InputError(f"its layers are normalized with another epsilon than {LAYER_NORM_EPS}")
    eos = text["eos_token_id"]
    pooling = {"pool_type": "argmax"} if eos == OLD_EOS else {"pool_type": "eos", "eos_id": eos}
    return {
        "embed_dim": clip["projection_dim"],
        "quick_gelu": QUICK_GELU[vision["hidden_act"]],
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "layers": text["num_hidden_layers"],
            "heads": text["num_attention_heads"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
            **pooling,
        },
    }


def _preparation(processor: Config, side: int) -> Config:
    """Return, in open_clip's words, how the processor prepares pictures for a tower that takes `side` px squares."""
    steps = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
    if left_out := [step for step in steps if not processor.get(step)]:
        raise InputError(f"its picture processor leaves out {left_out}")
    factor, resample = processor["rescale_factor"], int(processor["resample"])
    if abs(factor * 255 - 1) > 1e-9 or resample not in RESAMPLING:
        raise InputError(
            f"its picture processor multiplies pixel values by {factor} and resizes with filter {resample}; wanted"
            f" 1/255 and one of {RESAMPLING}"
        )
    size = _set(processor["size"])
    crop = _set(processor["crop_size"]) if processor.get("do_center_crop") else None
    square = {"height": side, "width": side}
    if size == {"shortest_edge": side} and crop == square:
        mode = "shortest_floor"
    elif size == square and crop in (None, square):
        mode = "squash"
    else:
        raise InputError(
            f"its picture processor resizes to {size} and crops to {crop}; wanted either the shortest edge or both"
            f" sides to be {side}, the size that its tower takes, and no smaller crop"
        )
    mean, std = tuple(processor["image_mean"]), tuple(processor["image_std"])
    return {"mean": mean, "std": std, "interpolation": RESAMPLING[resample], "resize_mode": mode}


def _set(size: Mapping[str, int | None]) -> dict[str, int]:
    return {key: value for key, value in dict(size).items() if value is not None}


def _tokenizer(tokenizer: "PreTrainedTokenizerBase", positions: int) -> OwnTokenizer:
    if tokenizer.padding_side != "right" or tokenizer.truncation_side != "right":
        raise InputError("its tokenizer pads or cuts prompts on the left; wanted the right")
    return OwnTokenizer(tokenizer, min(positions, tokenizer.model_max_length))
