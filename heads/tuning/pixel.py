"""A small generator in pixel space as a diffusers pipeline, whose text encoder is one of our backbones.

    pipeline = PixelPipeline.from_pretrained("generator")
    pictures = pipeline(["red heart", "crying face"], generator=torch.Generator().manual_seed(0)).images

The folder holds the UNet and the scheduler as diffusers writes them, and the name and identity of the backbone. The
backbone is loaded when the first prompt is encoded, and must be the one that the UNet was trained with. This module can
be imported only if diffusers is installed.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from embed.backbones.backbone import Backbone
from embed.backbones.load import load_backbone
from embed.spec import Identity, InputError, Source, known_fields, require_same_identity

NAME = "PixelPipeline"  # its name in model_index.json
PROMPT_BATCH = 64
REMEMBERED_PROMPTS = 1 << 15
COMPONENTS = ("unet", "scheduler")
OUTPUTS = ("pil", "np", "pt")


class PixelPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Make small pictures from text. Each prompt becomes one unit vector, scaled to a mean square of 1."""

    model_cpu_offload_seq = "unet"

    def __init__(
        self, unet: UNet2DConditionModel, scheduler: DDIMScheduler, text: dict[str, object] | None = None
    ) -> None:
        """`text` names the backbone: its `source` and its `identity`, as in JSON."""
        super().__init__()
        if text is None:
            raise InputError("a PixelPipeline needs `text`: the source and the identity of its text backbone")
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(text=text)
        self._tower: nn.Module | None = None
        self._backbone: Backbone | None = None
        self._remembered: dict[str, Tensor] = {}

    @classmethod
    def on(cls, backbone: Backbone, unet: UNet2DConditionModel, scheduler: DDIMScheduler) -> Self:
        """A pipeline whose prompts this backbone encodes. Raise InputError if its vectors do not fit the UNet."""
        if (wanted := unet.config.cross_attention_dim) != backbone.identity.dim:
            raise InputError(
                f"{backbone.identity.model} makes vectors of {backbone.identity.dim} numbers; the UNet reads {wanted}"
            )
        source = {"model": backbone.source.model, "pretrained": backbone.source.pretrained}
        pipeline = cls(unet, scheduler, {"source": source, "identity": backbone.identity.to_json()})
        pipeline._read_with(backbone)
        return pipeline

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: object) -> Self:
        """Load a folder written by `save_pretrained`. `options` are those of diffusers, such as `torch_dtype`.

        Raise InputError if the folder is not a pipeline, or needs classes that are not from diffusers. No code in it is
        run, and weights are read only from safetensors.
        """
        require_pixel_pipeline(Path(folder))
        if unsafe := {"custom_pipeline", "trust_remote_code"} & options.keys():
            raise InputError(f"a {NAME} takes no {', '.join(sorted(unsafe))}: no code of its folder is run")
        pipeline: Self = super().from_pretrained(str(folder), use_safetensors=True, **options)
        return pipeline

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(n, 1, d) the condition of the UNet. Each prompt is encoded once and remembered.

        Raise InputError if the backbone is not the one that the UNet was trained with.
        """
        if len(self._remembered) + len(prompts) > REMEMBERED_PROMPTS:
            self._remembered.clear()
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._remembered]
        for start in range(0, len(new), PROMPT_BATCH):
            batch = new[start : start + PROMPT_BATCH]
            self._remembered.update(zip(batch, self._read(batch), strict=True))
        found = torch.stack([self._remembered[prompt] for prompt in prompts])
        return found[:, None].to(self.unet.device, self.unet.dtype)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        num_inference_steps: int = 30,
        guidance_scale: float = 2.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[object]:
        """Make one picture for each prompt, as PIL pictures, or as a tensor (n, 3, h, w) in [0, 1] if `output_type` is
        "pt". By default they have the size that the model was trained for.

        A list of generators gives each picture its own noise, so that it does not depend on its neighbours.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or output_type not in OUTPUTS:
            raise InputError(
                f"got {len(prompts)} prompts and output_type {output_type!r}; wanted at least one prompt and one of"
                f" {', '.join(OUTPUTS)}"
            )
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        own_height, own_width = (size, size) if isinstance(size, int) else size
        condition = self.encode_prompts(prompts)
        guided = guidance_scale > 1
        if guided:
            condition = torch.cat([self.encode_prompts([""]).expand_as(condition), condition])
        x = latents
        if x is None:
            shape = (len(prompts), channels, height or own_height, width or own_width)
            x = randn_tensor(shape, generator=generator, device=self.unet.device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=self.unet.device)
        for t in self.progress_bar(self.scheduler.timesteps):
            predicted = self.unet(torch.cat([x, x]) if guided else x, t, condition).sample
            if guided:
                without, given = predicted.chunk(2)
                predicted = without + guidance_scale * (given - without)
            x = self.scheduler.step(predicted, t, x).prev_sample
        pixels = (x.float() / 2 + 0.5).clamp(0, 1)
        images: object = pixels
        if output_type != "pt":
            images = pixels.cpu().permute(0, 2, 3, 1).numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _read(self, prompts: Sequence[str]) -> Tensor:
        if self._tower is None:
            source = Source(**known_fields(Source, self.config.text["source"]))
            self._read_with(load_backbone(source))
        assert self._tower is not None and self._backbone is not None
        tokens = torch.from_numpy(self._backbone.tokenize(prompts))
        device = next(self._tower.parameters()).device
        vectors: Tensor = self._tower(tokens.to(device)).cpu()
        return vectors * float(vectors.shape[1] ** 0.5)

    def _read_with(self, backbone: Backbone) -> None:
        identity = Identity.from_json(self.config.text["identity"])
        require_same_identity(identity, "the generator", backbone.identity, "the backbone of its prompts")
        self._backbone, self._tower = backbone, backbone.text_tower()


def require_pixel_pipeline(folder: Path) -> None:
    """Raise InputError unless a folder holds a PixelPipeline that needs no code but diffusers' own."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"{folder} is not a pipeline: it has no model_index.json; wanted a folder of save_pretrained")
    try:
        found = json.loads(index.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{index} is damaged ({error}); save the pipeline again") from None
    if not isinstance(found, dict) or found.get("_class_name") != NAME:
        name = found.get("_class_name") if isinstance(found, dict) else found
        raise InputError(f"{folder} holds a {name!r}; wanted a {NAME}")
    components = {name: value for name, value in found.items() if isinstance(value, list)}
    if sorted(components) != sorted(COMPONENTS) or any(value[:1] != ["diffusers"] for value in components.values()):
        raise InputError(f"{index} lists {components}; wanted {' and '.join(COMPONENTS)}, both of diffusers")
    text = found.get("text")
    if not isinstance(text, dict) or not {"source", "identity"} <= text.keys():
        raise InputError(f"{index} does not name the backbone that encodes prompts; save the pipeline again")
