"""Load pipelines from a folder or a hub, without running code from there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from embed.backbones.hub import local_if_unreachable
from embed.progress import stage
from embed.spec import InputError
from heads.tuning.families import FAMILIES, Family, family_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LIBRARIES = ("diffusers", "transformers", "stable_diffusion")  # may define a pipeline's parts
UNUSED = {
    "StableDiffusionPipeline": ("safety_checker", "feature_extractor", "image_encoder"),
    "StableDiffusionXLPipeline": ("feature_extractor", "image_encoder"),
    "StableDiffusion3Pipeline": ("text_encoder_3", "tokenizer_3", "feature_extractor", "image_encoder"),
}
INSTALL = "pip install 'plaudit[generators]'"


def require_generators() -> None:
    """Raise InputError if diffusers and peft are not installed."""
    try:
        import diffusers  # noqa: F401
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError(f"tuning a generator needs {error.name}; run: {INSTALL}") from None


def load_family(name: str, device: str, size: int | None = None, bf16: bool = False, whole: bool = False) -> Family:
    """Load the pipeline of a folder or hub onto a device, frozen and in eval mode.

    With `bf16` weights are in bfloat16, except those that will be trained if `whole`. Raise InputError if it is not a
    pipeline, cannot be tuned, or needs code of its own.
    """
    require_generators()
    with stage(f"loading the pipeline {name}"), _quiet():
        pipeline = _load(name, torch.bfloat16 if bf16 else torch.float32).to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    family = family_of(pipeline, size, bf16)
    if whole:
        family.module.float()
    pipeline.set_progress_bar_config(disable=True)
    return family


def _load(name: str, dtype: torch.dtype) -> "DiffusionPipeline":
    import diffusers

    index = Path(name) / "model_index.json"
    if not Path(name).exists() and (Path(name).is_absolute() or name.count("/") != 1):  # names on a hub are OWNER/NAME
        raise InputError(f"there is no folder {name}; wanted one of a pipeline, or a hub's OWNER/NAME")
    if Path(name).exists() and not index.is_file():
        raise InputError(f"{name} is not a pipeline: it has no model_index.json; wanted a folder of save_pretrained")
    try:
        listed = json.loads(index.read_text("utf-8")) if index.is_file() else _listed_on_hub(name)
    except ValueError as error:
        raise InputError(f"{index} is damaged ({error}); save the pipeline again") from None
    if not isinstance(listed, dict):
        raise InputError(f"{index} is damaged; save the pipeline again")
    kind = listed.get("_class_name")
    if kind not in FAMILIES:
        raise InputError(f"{name} is a pipeline of {kind}, which cannot be tuned; wanted one of {', '.join(FAMILIES)}")
    for part, of in listed.items():
        if isinstance(of, list) and of[0] not in (*LIBRARIES, None):
            raise InputError(f"{name} has its {part} from {of[0]}; only {' and '.join(LIBRARIES)} are loaded")
    # Diffusers needs None for parts that are missing.
    unused = {
        part: None for part in UNUSED.get(kind, ()) if listed.get(part, [None])[0] is None or part == "safety_checker"
    }
    try:
        if kind == "PixelPipeline":
            from heads.tuning.pixel import PixelPipeline

            return PixelPipeline.from_pretrained(name, dtype=dtype)
        return getattr(diffusers, kind).from_pretrained(name, dtype=dtype, use_safetensors=True, **unused)
    except (ValueError, TypeError, OSError) as error:  # diffusers raises these if parts are missing or do not fit
        if isinstance(error, InputError):
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"{name} cannot be loaded: {reason}; save or download the whole pipeline again") from None


def _listed_on_hub(name: str) -> object:
    from diffusers import DiffusionPipeline

    try:
        with local_if_unreachable():
            return DiffusionPipeline.load_config(name)
    except OSError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"there is no folder {name}, and the hub has no such pipeline: {reason}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars that diffusers and transformers draw while loading."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    drew = [one for one in (diffusers, transformers) if one.is_progress_bar_enabled()]
    for one in drew:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in drew:
            one.enable_progress_bar()
