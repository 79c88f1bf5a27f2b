"""A folder of generated pictures, one for each prompt, template and seed. Each is made only once.

    OUT/generated.json         prompts, templates and configuration; written first
    OUT/0003/07_2.png          prompt 3, template 7, seed 2

A picture depends only on its text, its seed and the configuration, so a killed run continues where it stopped, and
prompts, templates and seeds can be added later.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from embed.files import atomic_write, read_manifest, require_out, write_json
from embed.progress import Progress, silent
from embed.spec import InputError
from heads.generating.config import GenerateConfig

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

FORMAT = 1
KIND = "folder of generated pictures"
MANIFEST = "generated.json"


@dataclass(frozen=True)
class Candidate:
    """A picture to generate: the numbers of its prompt and template, its text and its seed."""

    prompt: int
    template: int
    seed: int
    text: str

    @property
    def file(self) -> str:
        """The file's path in the folder. `python -m runtime best-of-n` also reads such names."""
        return f"{self.prompt:04d}/{self.template:02d}_{self.seed}.png"


class Manifest(TypedDict):
    """The contents of generated.json."""

    format: int
    pipeline: str
    lora: str | None
    settings: dict[str, object]
    prompts: list[str]
    templates: list[str]


def plan(prompts: Sequence[str], templates: Sequence[str], seeds: Sequence[int]) -> list[Candidate]:
    """A candidate for every prompt, template and seed."""
    return [
        Candidate(i, j, seed, template.replace("{prompt}", prompt))
        for i, prompt in enumerate(prompts)
        for j, template in enumerate(templates)
        for seed in seeds
    ]


def begin(
    folder: Path,
    pipeline: str,
    lora: str | None,
    prompts: Sequence[str],
    templates: Sequence[str],
    config: GenerateConfig,
) -> None:
    """Write to the folder's manifest what pictures it will hold. Raise InputError if it holds others.

    Prompts and templates may be appended to the existing ones, whose numbers must stay the same.
    """
    require_out(folder, KIND, overwrite=True)
    settings = {name: value for name, value in asdict(config).items() if name != "batch_size"}
    asked: dict[str, Any] = {"pipeline": pipeline, "lora": lora, "settings": settings}
    listed = {"prompts": list(prompts), "templates": list(templates)}
    if (folder / MANIFEST).exists():
        there = read_manifest(folder / MANIFEST, KIND, (FORMAT,), Manifest)
        for name, value in asked.items():
            if there.get(name) != value:
                raise InputError(
                    f"{folder} holds pictures with {name} {there.get(name)}, not {value}; give that, or choose another"
                )
        for name, values in listed.items():
            before = there["prompts"] if name == "prompts" else there["templates"]
            shared = min(len(before), len(values))
            if before[:shared] != values[:shared]:
                raise InputError(
                    f"{folder} holds pictures of other {name}; only append new ones, or choose another --out"
                )
            listed[name] = max(before, values, key=len)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MANIFEST, {"format": FORMAT, **asked, **listed})


def generate(
    pipeline: "DiffusionPipeline",
    candidates: Sequence[Candidate],
    folder: Path,
    config: GenerateConfig,
    progress: Progress = silent,
) -> int:
    """Make the pictures that are not yet in the folder, and return their number."""
    missing = [one for one in candidates if not (folder / one.file).exists()]
    with progress(len(missing), "pictures", "generating") as step:
        for some, images in _made(pipeline, missing, config):
            for one, image in zip(some, images, strict=True):
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                with atomic_write(folder / one.file) as file:
                    file.write(buffer.getvalue())
            step(len(some))
    return len(missing)


def make(
    pipeline: "DiffusionPipeline", texts: Sequence[str], seeds: Sequence[int], config: GenerateConfig
) -> "list[Image]":
    """Make a picture for each text and seed. Noise is drawn on the CPU, so that it is the same for every device."""
    options: dict[str, float] = {} if config.size is None else {"width": config.size, "height": config.size}
    if config.guidance is not None:
        options["guidance_scale"] = config.guidance
    made = pipeline(
        prompt=list(texts),
        num_inference_steps=config.sampling_steps,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pil",
        **options,
    )
    images: list[Image] = made.images
    return images


def _made(
    pipeline: "DiffusionPipeline", missing: Sequence[Candidate], config: GenerateConfig
) -> "Iterator[tuple[Sequence[Candidate], list[Image]]]":
    """Yield batches of candidates with their pictures. Batches are halved if they do not fit into the device's
    memory."""
    start, size = 0, config.batch_size
    while start < len(missing):
        some, images = missing[start : start + size], None
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            images = make(pipeline, [one.text for one in some], [one.seed for one in some], config)
        if images is not None:
            yield some, images
            start += len(some)
        elif size == 1:
            raise InputError("one picture does not fit into the memory of the device; choose a smaller --size")
        else:
            torch.cuda.empty_cache()
            size = (size + 1) // 2
