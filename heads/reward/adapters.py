"""Wrap a reward in the functions and classes that other trainers call. These trainers need not be installed.

    flow_grpo(reward)      fn(images, prompts, metadata) -> (scores, details), also for DDPO's trainers
    plain(reward)          fn(images, prompts) -> list of floats
    verl_omni(reward)      compute_score(data_source, solution_image, ground_truth, extra_info) -> {"score": ...}
    FlowFactoryReward      a class to inherit from together with Flow-Factory's own
    step_callback(...)     a callback of diffusers pipelines that logs how scores grow

They compute no gradient, since these trainers use none. `examples/rewards/README.md` has an example of each.
Pictures may have any form that these trainers use: floats in [0, 1] or uint8, channels first or last, as one tensor,
one array, or a list of tensors, arrays or PIL pictures of any sizes. A picture that cannot be scored raises an error
and never gets a 0.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from embed.arrays import Array, Float32s
from embed.inputs.pixels import to_rgb
from embed.spec import InputError
from heads.reward.module import Prompts, Reward, Scores

Picture = Tensor | Array | Image
Pictures = Tensor | Array | Sequence[Picture]

BATCH = 32  # the number of pictures in one pass


class Scorer(Protocol):
    """A Reward or Rewards."""

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""

    def scores(self, pixels: Tensor, prompts: Prompts = None, uncertain: bool = True) -> Scores:
        """The scores of pictures (n, 3, h, w) in [0, 1]."""


def flow_grpo(reward: Scorer) -> Callable[[Pictures, Sequence[str], object], tuple[Float32s, dict[str, Float32s]]]:
    """A function of pictures, prompts and metadata that returns scores (n,) float32 and a dict of their parts."""

    def score(
        images: Pictures, prompts: Sequence[str], metadata: object = None
    ) -> tuple[Float32s, dict[str, Float32s]]:
        found = score_pictures(reward, images, prompts)
        return found.total.numpy(), {name: values.numpy() for name, values in _details(found).items()}

    return score


def plain(reward: Scorer) -> Callable[[Pictures, Sequence[str]], list[float]]:
    """A function of pictures and prompts that returns a list of scores."""

    def score(images: Pictures, prompts: Sequence[str]) -> list[float]:
        scores: list[float] = score_pictures(reward, images, prompts).total.tolist()
        return scores

    return score


def verl_omni(reward: Scorer) -> Callable[..., dict[str, float]]:
    """A `compute_score` for one picture, which verl-omni calls from several threads. Values other than the score become
    metrics."""
    lock = threading.Lock()

    def compute_score(
        data_source: str,
        solution_image: Picture,
        ground_truth: str,
        extra_info: Mapping[str, object] | None = None,
        **options: object,
    ) -> dict[str, float]:
        with lock:
            found = score_pictures(reward, [solution_image], [ground_truth])
        return {"score": float(found.total), **{name: float(value) for name, value in _details(found).items()}}

    return compute_score


class FlowFactoryOutput(NamedTuple):
    """The fields of a `RewardModelOutput` that Flow-Factory reads."""

    rewards: Tensor
    extra_info: dict[str, Tensor]


class FlowFactoryReward:
    """Inherit from this and then from Flow-Factory's PointwiseRewardModel, and name the folder of a head:

    class Liked(FlowFactoryReward, PointwiseRewardModel):
        folder = "head"
    """

    folder: str | Path
    required_fields = ("prompt", "image")
    use_tensor_inputs = True
    device: torch.device | str  # set by Flow-Factory's class
    dtype: torch.dtype

    def __init__(self, config: object, accelerator: object) -> None:
        super().__init__(config, accelerator)  # type: ignore[call-arg]
        self.model = Reward.load(self.folder, str(self.device), self.dtype)

    def __call__(
        self,
        prompt: Sequence[str],
        image: Pictures | None = None,
        video: object = None,
        condition_images: object = None,
        condition_videos: object = None,
    ) -> FlowFactoryOutput:
        """The rewards of a batch."""
        if image is None:
            raise InputError(
                "this reward scores pictures and got none; use a trainer that generates pictures, not videos"
            )
        found = score_pictures(self.model, image, prompt)
        return FlowFactoryOutput(found.total, _details(found))


def step_callback(
    reward: Scorer, prompts: Prompts, log: Callable[[int, dict[str, float]], None], every: int = 1
) -> Callable[[object, int, object, dict[str, Tensor]], dict[str, Tensor]]:
    """A `callback_on_step_end` that decodes the latents of every `every`-th step, and logs the step and the mean scores
    by name.

    Before the last steps the pictures are noisy, and a reward has not learned to score noise. Such scores show when a
    picture takes shape, not how good it is.
    """

    def callback(pipeline: object, step: int, timestep: object, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if step % every == 0:
            pixels = decode(pipeline, values["latents"])
            texts = prompts
            if prompts is not None and not isinstance(prompts, str):  # a pipeline makes several pictures of each
                texts = [prompt for prompt in prompts for _ in range(len(pixels) // len(prompts))]
            found = score_pictures(reward, pixels, texts)
            log(step, {"score": float(found.total.mean())} | {k: float(v.mean()) for k, v in _details(found).items()})
        return values

    return callback


@torch.no_grad()
def decode(pipeline: object, latents: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) in [0, 1] from a diffusers pipeline's latents, or from its pixels if it has no decoder."""
    vae = getattr(pipeline, "vae", None)
    if vae is not None:
        if latents.ndim != 4:
            raise InputError(f"latents of shape {tuple(latents.shape)} are packed; only (n, c, h, w) can be decoded")
        shift = getattr(vae.config, "shift_factor", None) or 0
        latents = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor + shift, return_dict=False)[0]
    return (latents.float() / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def score_pictures(reward: Scorer, images: Pictures, prompts: Prompts) -> Scores:
    """The scores, on the CPU, of pictures in any of the forms above. Neighbours of the same size are scored in one
    batch."""
    count = len(images)
    texts = [prompts] * count if prompts is None or isinstance(prompts, str) else list(prompts)
    if len(texts) != count:
        raise InputError(f"got {len(texts)} prompts for {count} pictures; wanted one for all, or one for each")
    if not count:
        raise InputError("got no pictures; wanted at least one to score")
    parts = []
    for pixels, rows in _batches([_floats(image) for image in images]):
        of_these = None if texts[0] is None else [str(texts[i]) for i in rows]
        parts.append(reward.scores(pixels.to(reward.device), of_these))
    return Scores(
        torch.cat([part.total for part in parts]).float().cpu(),
        _joined([part.parts for part in parts]),
        _joined([part.uncertainty for part in parts]),
    )


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]).float().cpu() for name in parts[0]}


def _batches(pictures: Sequence[Tensor]) -> Iterator[tuple[Tensor, range]]:
    """Yield neighbouring pictures of the same shape as one tensor, with their numbers."""
    start = 0
    for end in range(1, len(pictures) + 1):
        if end == len(pictures) or end - start == BATCH or pictures[end].shape != pictures[start].shape:
            yield torch.stack(list(pictures[start:end])), range(start, end)
            start = end


def _floats(image: Picture) -> Tensor:
    """One picture as floats (3, h, w) in [0, 1]. Raise InputError if it has another shape."""
    if not isinstance(image, Tensor):
        image = torch.from_numpy(np.array(image if isinstance(image, np.ndarray) else to_rgb(image)))
    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim != 3 or 3 not in (image.shape[0], image.shape[-1]):
        raise InputError(f"got a picture of shape {tuple(image.shape)}; wanted (3, h, w) or (h, w, 3)")
    whole = not image.is_floating_point()
    if image.shape[0] != 3 or (whole and image.shape[-1] == 3):
        image = image.permute(2, 0, 1)
    return image.float() / 255 if whole else image


def _details(found: Scores) -> dict[str, Tensor]:
    """The parts of a score and their uncertainties, under descriptive names."""
    return found.parts | {f"{name}_uncertainty": values for name, values in found.uncertainty.items()}
