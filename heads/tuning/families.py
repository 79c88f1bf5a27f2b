"""The kinds of pipelines that can be tuned, with the same functions for each: prompts, noise, prediction, pixels.

A family knows its model's conditions besides latents and time, how to decode latents, and the layers for a LoRA.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from embed.spec import InputError
from heads.tuning.process import Diffusion, Flow, Process

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
READERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
REMEMBERED_PROMPTS = 1024  # for Stable Diffusion 3 in float32 about 5 MB each
JOINT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")


@dataclass(frozen=True)
class Conditions:
    """A model's conditions for n prompts: tensors (n, ...) by the name of the model's argument. `without` holds those
    of an empty prompt, if there is guidance."""

    given: dict[str, Tensor]
    without: dict[str, Tensor] | None = None

    def take(self, rows: slice | Tensor) -> "Conditions":
        """The conditions of some of the prompts."""
        given, without = (
            None if told is None else {name: value[rows] for name, value in told.items()}
            for told in (self.given, self.without)
        )
        return Conditions(given or {}, without)


class Family:
    """A latent diffusion model with a UNet. Subclasses override what differs."""

    part: ClassVar[str] = "unet"  # the component that is tuned
    needs: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    targets: ClassVar[tuple[str, ...]] = ATTENTION
    process_of: ClassVar[Callable[..., Process]] = Diffusion
    guidance: ClassVar[float] = 5.0  # the default guidance

    def __init__(self, pipeline: "DiffusionPipeline", size: int | None = None, autocast: bool = False) -> None:
        """With `autocast` the model computes in bfloat16. Raise InputError if the pipeline lacks a part or cannot make
        pictures of this size."""
        if missing := [name for name in self.needs if getattr(pipeline, name, None) is None]:
            raise InputError(
                f"the pipeline {type(pipeline).__name__} has no {' and no '.join(missing)}; wanted one with"
                f" {', '.join(self.needs)}"
            )
        self.pipeline = pipeline
        self.module: ModelMixin = getattr(pipeline, self.part)
        self.process: Process = type(self).process_of(pipeline.scheduler)
        self.side = self.side_of(size)
        self._told: dict[str, dict[str, Tensor]] = {}  # conditions of remembered prompts, on the CPU
        self._without: dict[str, Tensor] = {}
        self.autocast = autocast
        self.dtype = torch.promote_types(self.module.dtype, torch.float32)  # the type of latents

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        device: torch.device = next(self.module.parameters()).device
        return device

    @property
    def scale(self) -> int:
        """The number of pixels per latent along a side."""
        return int(2 ** (len(self.pipeline.vae.config.block_out_channels) - 1))

    @property
    def size(self) -> int:
        """The number of pixels along a side of a picture."""
        return self.side * self.scale

    @property
    def tokens(self) -> int:
        """The number of tokens of a picture in the model, for schedules that depend on it."""
        return self.side**2

    def side_of(self, size: int | None) -> int:
        """The number of latents along a side of a picture of that size, by default the model's own size. Raise
        InputError for a size that the model cannot make."""
        config = self.module.config
        if size is None:
            return int(config.sample_size)
        if size % (self.scale * self.fold):
            raise InputError(f"--size {size} is not a multiple of {self.scale * self.fold}, as this pipeline needs")
        return size // self.scale

    @property
    def fold(self) -> int:
        """The number of latents along a side must be divisible by this."""
        return int(2 ** (len(self.module.config.block_out_channels) - 1))

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, c, h, w) noise. It is drawn on the CPU, so that it is the same for every device."""
        shape = count, self.module.config.in_channels, self.side, self.side
        return torch.randn(shape, generator=generator).to(self.device, self.dtype)

    def remember(self, prompts: Sequence[str]) -> None:
        """Encode prompts, remember the results, and move the text encoders to the CPU. Does nothing if there are too
        many prompts.

        Prompts are encoded one by one, so that the result does not depend on neighbours in a batch.
        """
        if len(new := dict.fromkeys(prompts)) > REMEMBERED_PROMPTS:
            return
        for prompt in new:
            self._told[prompt] = _on(self.tell([prompt], False).given, "cpu")
        self._without = _on(self.tell([""], True).without or {}, "cpu")
        self._move_readers("cpu")

    def conditions(self, prompts: Sequence[str], guided: bool) -> Conditions:
        """The model's conditions for prompts."""
        if not all(prompt in self._told for prompt in prompts):
            self._move_readers(self.device)
            return self.tell(prompts, guided)
        told = [self._told[prompt] for prompt in prompts]
        given = {name: torch.cat([one[name] for one in told]) for name in told[0]}
        without = {name: value.expand(len(told), *value.shape[1:]) for name, value in self._without.items()}
        return Conditions(_on(given, self.device), _on(without, self.device) if guided else None)

    def _move_readers(self, device: torch.device | str) -> None:
        for name in READERS:
            if (part := getattr(self.pipeline, name, None)) is not None:
                part.to(device)

    @torch.no_grad()
    def tell(self, prompts: Sequence[str], guided: bool) -> Conditions:
        """The model's conditions for prompts, which are encoded now."""
        given, without = self.pipeline.encode_prompt(list(prompts), self.device, 1, guided)
        name = "encoder_hidden_states"
        return Conditions({name: given}, {name: without} if guided else None)

    def predict(self, latents: Tensor, times: Tensor, told: dict[str, Tensor]) -> Tensor:
        """The model's prediction for latents at these times, with a gradient if gradients are enabled."""
        times = times.to(self.device).expand(len(latents))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.call(latents, times, told).to(self.dtype)

    def call(self, latents: Tensor, times: Tensor, told: dict[str, Tensor]) -> Tensor:
        """The model's own output."""
        output: Tensor = self.module(latents, times, **told, return_dict=False)[0]
        return output

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (n, 3, h, w) in [0, 1] from clean latents, with a gradient."""
        vae = self.pipeline.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        pixels = vae.decode((latents / vae.config.scaling_factor + shift).to(vae.dtype), return_dict=False)[0]
        return in_unit_range(pixels)

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Clean latents of pixels (n, 3, h, w) in [0, 1], drawn from the encoder's distribution as in the decoder's
        training."""
        vae = self.pipeline.vae
        found = vae.encode((pixels * 2 - 1).to(self.device, vae.dtype), return_dict=False)[0]
        drawn = found.mean + found.std * torch.randn(found.mean.shape, generator=generator).to(found.mean)
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        clean: Tensor = ((drawn - shift) * vae.config.scaling_factor).to(self.dtype)
        return clean

    def checkpoint(self) -> None:
        """Save memory: compute the blocks of model and decoder a second time for the gradients."""
        for name in (self.part, "vae"):
            part = getattr(self.pipeline, name, None)
            if part is not None and part._supports_gradient_checkpointing:
                part.enable_gradient_checkpointing()


class StableDiffusion(Family):
    """Stable Diffusion 1.x and 2.x."""


class StableDiffusionXL(Family):
    """SDXL, which has two text encoders and takes the size of the picture as a condition."""

    needs = (*Family.needs, "text_encoder_2", "tokenizer_2")

    def __init__(self, pipeline: "DiffusionPipeline", size: int | None = None, autocast: bool = False) -> None:
        super().__init__(pipeline, size, autocast)
        if pipeline.config.get("requires_aesthetics_score", False):
            raise InputError("this is an SDXL refiner, which takes a score as a condition; wanted a base model")

    @torch.no_grad()
    def tell(self, prompts: Sequence[str], guided: bool) -> Conditions:
        texts = list(prompts)
        found = self.pipeline.encode_prompt(texts, device=self.device, do_classifier_free_guidance=guided)
        size = torch.tensor([self.size, self.size, 0, 0, self.size, self.size], device=self.device).float()
        ids = size.expand(len(texts), -1)
        given, without = (
            {"encoder_hidden_states": hidden, "text_embeds": pooled, "time_ids": ids} if hidden is not None else {}
            for hidden, pooled in ((found[0], found[2]), (found[1], found[3]))
        )
        return Conditions(given, without if guided else None)

    def call(self, latents: Tensor, times: Tensor, told: dict[str, Tensor]) -> Tensor:
        added = {name: told[name] for name in ("text_embeds", "time_ids")}
        hidden = told["encoder_hidden_states"]
        output: Tensor = self.module(latents, times, hidden, added_cond_kwargs=added, return_dict=False)[0]
        return output


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5, flow models with a transformer."""

    part = "transformer"
    needs = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    targets = (*(f"attn.{name}" for name in ATTENTION), *JOINT)
    process_of = Flow

    @property
    def fold(self) -> int:
        return int(self.module.config.patch_size)

    @property
    def tokens(self) -> int:
        return (self.side // self.fold) ** 2

    @torch.no_grad()
    def tell(self, prompts: Sequence[str], guided: bool) -> Conditions:
        texts = list(prompts)
        found = self.pipeline.encode_prompt(texts, None, None, device=self.device, do_classifier_free_guidance=guided)
        given, without = (
            {"encoder_hidden_states": hidden, "pooled_projections": pooled} if hidden is not None else {}
            for hidden, pooled in ((found[0], found[2]), (found[1], found[3]))
        )
        return Conditions(given, without if guided else None)

    def call(self, latents: Tensor, times: Tensor, told: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.module(latents, timestep=times, **told, return_dict=False)[0]
        return output


class Pixel(Family):
    """A diffusion model in pixel space (`heads.tuning.pixel`)."""

    needs = ("unet", "scheduler")
    guidance = 2.0

    @property
    def scale(self) -> int:
        return 1

    @torch.no_grad()
    def tell(self, prompts: Sequence[str], guided: bool) -> Conditions:
        name = "encoder_hidden_states"
        given = self.pipeline.encode_prompts(list(prompts)).to(self.device)
        without = self.pipeline.encode_prompts([""] * len(prompts)).to(self.device) if guided else None
        return Conditions({name: given}, None if without is None else {name: without})

    def decode(self, latents: Tensor) -> Tensor:
        return in_unit_range(latents)

    @torch.no_grad()
    def encode(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        return (pixels * 2 - 1).to(self.device, self.dtype)


FAMILIES: dict[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "PixelPipeline": Pixel,
}


def family_of(pipeline: "DiffusionPipeline", size: int | None = None, autocast: bool = False) -> Family:
    """The family of a pipeline. Raise InputError if it belongs to none."""
    name = type(pipeline).__name__
    if name not in FAMILIES:
        raise InputError(f"a pipeline of {name} cannot be tuned; wanted one of {', '.join(FAMILIES)}")
    return FAMILIES[name](pipeline, size, autocast)


def in_unit_range(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] mapped to [0, 1] as float32 or wider. Values outside, from a decoder that overshoots, are
    clipped."""
    precise = torch.promote_types(pixels.dtype, torch.float32)
    return (pixels.to(precise) * 0.5 + 0.5).clamp(0, 1)


def _on(told: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in told.items()}
