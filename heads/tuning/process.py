"""How a generator removes noise: diffusion, sampled by DDIM on the pipeline's own betas, or a straight flow.

`Process` is their common interface. Latents are float32 (n, ...). A time is in the units of the pipeline's model, (n,)
or one for all.
"""

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from embed.spec import InputError

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

PREDICTIONS = ("epsilon", "v_prediction", "sample")
BASE_SHIFT, MAX_SHIFT = (256, 0.5), (4096, 1.15)  # (tokens of a picture, shift of its times), as in diffusers


class Step(NamedTuple):
    """The result of one step: latents with less noise, and the clean latents that the model predicts."""

    latents: Tensor
    clean: Tensor


class Process(Protocol):
    """The functions that add noise and remove it."""

    beta: float  # default beta of Diffusion-DPO

    def times(self, steps: int, tokens: int) -> Tensor:
        """(steps,) the times for a picture of so many tokens, from noise to clean. Later calls of `step` refer to
        them."""

    def step(self, number: int, latents: Tensor, output: Tensor) -> Step:
        """Remove noise from latents by the model's output for them at the time with this number."""

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) times to train on."""

    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Clean latents with noise added for these times."""

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The output that the model should give for these noised latents."""


class Diffusion:
    """Diffusion by betas, sampled by DDIM without added noise, so that the same seed gives the same picture before and
    after tuning."""

    beta = 5000.0

    def __init__(self, scheduler: "SchedulerMixin") -> None:
        from diffusers import DDIMScheduler

        config = scheduler.config
        if config.get("prediction_type", "epsilon") not in PREDICTIONS or "beta_schedule" not in config:
            raise InputError(
                f"the pipeline's scheduler {type(scheduler).__name__} predicts"
                f" {config.get('prediction_type', 'something else')}; wanted one of {', '.join(PREDICTIONS)} by betas"
            )
        # DDIM would clip, unlike schedulers without that option. With linspace times it does not know which time
        # follows.
        spacing = config.get("timestep_spacing", "leading")
        self.scheduler = DDIMScheduler.from_config(
            config,
            clip_sample=config.get("clip_sample", False),
            timestep_spacing="leading" if spacing == "linspace" else spacing,
        )

    def times(self, steps: int, tokens: int) -> Tensor:
        self.scheduler.set_timesteps(steps)
        times: Tensor = self.scheduler.timesteps
        return times

    def step(self, number: int, latents: Tensor, output: Tensor) -> Step:
        found = self.scheduler.step(output, int(self.scheduler.timesteps[number]), latents)
        return Step(found.prev_sample, found.pred_original_sample)

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=generator)

    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        found: Tensor = self.scheduler.add_noise(clean, noise, times.to(clean.device))
        return found

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "sample":
            return clean
        velocity: Tensor = self.scheduler.get_velocity(clean, noise, times.to(clean.device))
        return velocity


class Flow:
    """A straight line from noise to clean latents. The model predicts noise - clean, and the time is 1000 sigma."""

    beta = 2000.0

    def __init__(self, scheduler: "SchedulerMixin") -> None:
        if "shift" not in scheduler.config:
            raise InputError(f"the pipeline's scheduler {type(scheduler).__name__} is not a known flow")
        self.scheduler = type(scheduler).from_config(scheduler.config)

    def times(self, steps: int, tokens: int) -> Tensor:
        config, mu = self.scheduler.config, None
        if config.get("use_dynamic_shifting", False):
            (few, low), (many, high) = BASE_SHIFT, MAX_SHIFT
            few, low = config.get("base_image_seq_len", few), config.get("base_shift", low)
            many, high = config.get("max_image_seq_len", many), config.get("max_shift", high)
            mu = low + (high - low) * (tokens - few) / (many - few)
        self.scheduler.set_timesteps(steps, mu=mu)
        times: Tensor = self.scheduler.timesteps
        return times

    def step(self, number: int, latents: Tensor, output: Tensor) -> Step:
        sigma, following = (float(self.scheduler.sigmas[i]) for i in (number, number + 1))
        return Step(latents + (following - sigma) * output, latents - sigma * output)

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) logit-normal times as in the training of Stable Diffusion 3, shifted like its sampling times."""
        sigma = torch.randn(count, generator=generator).sigmoid()
        shift = self.scheduler.config.shift
        times: Tensor = 1000 * shift * sigma / (1 + (shift - 1) * sigma)
        return times

    def noised(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        sigma = self._sigma(times, clean)
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return noise - clean

    def _sigma(self, times: Tensor, like: Tensor) -> Tensor:
        return (times.to(like) / 1000).reshape(-1, *[1] * (like.ndim - 1))
