"""Losses and gradients of every method on every family, against loops that share no code with them: DDIM and the flow
written out from alpha and sigma, one picture at a time, and the model asked as its pipeline asks it."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from tuning_tiny import PROMPTS

from heads.tuning.families import Family, family_of
from heads.tuning.methods import dpo, draft, make, refl
from heads.tuning.weights import Trained

STEPS, GUIDANCE = 4, 3.0
TWO = PROMPTS[:2]


def score(pixels: Tensor) -> Tensor:
    """Some reward that prefers one corner."""
    weight = torch.linspace(-0.1, 0.1, pixels[0].numel(), dtype=pixels.dtype).reshape(pixels.shape[1:])
    return (pixels.square() * weight).sum(dim=(1, 2, 3))


def moved(family: Family, seed: int = 1) -> Trained:
    """A LoRA that already changes something."""
    trained = Trained(family, 2)
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained.parameters.values():
        parameter.data.normal_(0, 0.3, generator=generator)
    return trained


def ask(family: Family, latents: Tensor, time: float, prompt: str) -> Tensor:
    """The model's answer for one picture, as the pipeline of its kind asks."""
    pipeline: Any = family.pipeline
    time_ = torch.tensor([time], dtype=latents.dtype)
    kind = type(pipeline).__name__
    if kind == "PixelPipeline":
        return pipeline.unet(latents, time_, encoder_hidden_states=pipeline.encode_prompts([prompt])).sample
    with torch.no_grad():
        if kind == "StableDiffusionPipeline":
            hidden, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
        elif kind == "StableDiffusionXLPipeline":
            hidden, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
        else:
            hidden, _, pooled, _ = pipeline.encode_prompt(prompt, prompt, prompt, do_classifier_free_guidance=False)
    if kind == "StableDiffusion3Pipeline":
        return pipeline.transformer(latents, hidden, pooled, time_).sample
    if kind == "StableDiffusionXLPipeline":
        if prompt == "":  # what SDXL says without a prompt is zero
            hidden, pooled = torch.zeros_like(hidden), torch.zeros_like(pooled)
        told = {"text_embeds": pooled, "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]]).to(latents)}
        return pipeline.unet(latents, time_, hidden, added_cond_kwargs=told).sample
    return pipeline.unet(latents, time_, hidden).sample


def alphas(family: Family) -> Tensor:
    """alpha_bar by time, from the betas."""
    config = family.pipeline.scheduler.config
    if config.beta_schedule == "squaredcos_cap_v2":
        bar = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
        betas = torch.tensor([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(1000)])
    else:
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, 1000) ** 2
    return torch.cumprod(1 - betas, dim=0)


@pytest.fixture
def family(family: Family) -> Family:
    """In float64, so that nothing but the arithmetic can differ."""
    family.pipeline.to(torch.float64)
    return family_of(family.pipeline)


def is_flow(family: Family) -> bool:
    return hasattr(family.pipeline, "transformer")


def guided(family: Family, latents: Tensor, time: float, prompt: str) -> Tensor:
    with_, without = (ask(family, latents, time, text) for text in (prompt, ""))
    return without + GUIDANCE * (with_ - without)


def steps_of(family: Family, latents: Tensor, prompt: str, first: int, last: int) -> tuple[Tensor, Tensor]:
    """One picture from noise up to step `last`, without a gradient before step `first`: latents, and the clean ones."""
    scheduler = family.pipeline.scheduler
    if is_flow(family):
        sigmas = [3 * s / (1 + 2 * s) for s in torch.linspace(1, 3 * 0.001 / (1 + 2 * 0.001), STEPS).tolist()]
        sigmas.append(0.0)
    else:
        bar, config = alphas(family), scheduler.config
        if config.timestep_spacing == "trailing":
            times = [1000 - 1000 // STEPS * i - 1 for i in range(STEPS)]
        else:
            times = [1000 // STEPS * i + config.get("steps_offset", 0) for i in range(STEPS)][::-1]
        end = 1.0 if config.get("set_alpha_to_one", True) else bar[0]
    clean = latents
    for i in range(last + 1):
        with torch.set_grad_enabled(i >= first):
            if is_flow(family):
                output = guided(family, latents, 1000 * sigmas[i], prompt)
                clean = latents - sigmas[i] * output
                latents = latents + (sigmas[i + 1] - sigmas[i]) * output
                continue
            output = guided(family, latents, times[i], prompt)
            a, before = bar[times[i]], times[i] - 1000 // STEPS
            next_ = bar[before] if before >= 0 else torch.as_tensor(end)
            if scheduler.config.prediction_type == "epsilon":
                clean, noise = (latents - (1 - a).sqrt() * output) / a.sqrt(), output
            else:
                clean = a.sqrt() * latents - (1 - a).sqrt() * output
                noise = a.sqrt() * output + (1 - a).sqrt() * latents
            latents = next_.sqrt() * clean + (1 - next_).sqrt() * noise
    return latents, clean


def decoded(family: Family, latents: Tensor) -> Tensor:
    pipeline: Any = family.pipeline
    if not hasattr(pipeline, "vae"):
        return (latents / 2 + 0.5).clamp(0, 1)
    config = pipeline.vae.config
    return (pipeline.vae.decode(latents / config.scaling_factor + (config.shift_factor or 0)).sample / 2 + 0.5).clamp(
        0, 1
    )


def gradients(trained: Trained, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(trained.parameters.values()), allow_unused=True)
    return {name: one for name, one in zip(trained.parameters, found, strict=True) if one is not None}


def assert_same(trained: Trained, loss: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    mine, theirs = gradients(trained, loss), gradients(trained, expected)
    assert mine.keys() == theirs.keys() and any(one.abs().max() > 1e-6 for one in theirs.values())
    largest = max(float(one.abs().max()) for one in theirs.values())
    for name, one in theirs.items():
        torch.testing.assert_close(mine[name] / largest, one / largest, rtol=1e-5, atol=1e-5)


def test_draft(family: Family) -> None:
    last = 2
    trained = moved(family)
    family.checkpoint()
    noise = family.noise(2, torch.Generator().manual_seed(2))
    told = family.conditions(TWO, True)
    lost = draft(family, noise, told, score, STEPS, GUIDANCE, last, trained)
    expected = [
        -score(decoded(family, steps_of(family, noise[i : i + 1], TWO[i], STEPS - last, STEPS - 1)[0])) for i in (0, 1)
    ]
    assert_same(trained, lost.reward, torch.cat(expected).mean())


def test_refl(family: Family) -> None:
    trained = moved(family)
    noise = family.noise(2, torch.Generator().manual_seed(2))
    told = family.conditions(TWO, True)
    lost = refl(family, noise, told, score, STEPS, GUIDANCE, 2, trained)
    seen = [score(decoded(family, steps_of(family, noise[i : i + 1], TWO[i], 2, 2)[1])) for i in (0, 1)]
    assert_same(trained, lost.reward, sum(max(2 - one[0], one[0] * 0) for one in seen) / 2)
    torch.testing.assert_close(lost.score, torch.cat(seen).detach(), rtol=1e-4, atol=1e-4)


def test_the_distance_is_from_the_model_before(family: Family) -> None:
    before = copy.deepcopy(family)
    trained = moved(family)
    noise = family.noise(2, torch.Generator().manual_seed(2))
    made = make(family, noise, family.conditions(TWO, True), STEPS, GUIDANCE, 1, 1, trained)
    time = float(family.process.times(STEPS, family.tokens)[1])
    expected = []
    for i in (0, 1):
        with torch.no_grad():
            latents, _ = steps_of(family, noise[i : i + 1], TWO[i], STEPS, 0)
            old = guided(before, latents, time, TWO[i])
        expected.append((guided(family, latents, time, TWO[i]) - old).square().mean())
    assert_same(trained, made.distance, torch.stack(expected).mean())


def errors(family: Family, clean: Tensor, noise: Tensor, time: Tensor, prompt: str) -> Tensor:
    if is_flow(family):
        sigma = time / 1000
        noisy, target = (1 - sigma) * clean + sigma * noise, noise - clean
    else:
        a = alphas(family)[int(time)]
        noisy, target = a.sqrt() * clean + (1 - a).sqrt() * noise, noise
        if family.pipeline.scheduler.config.prediction_type == "v_prediction":
            target = a.sqrt() * noise - (1 - a).sqrt() * clean
    return (ask(family, noisy, float(time), prompt) - target).square().mean()


def test_dpo(family: Family) -> None:
    before = copy.deepcopy(family)
    trained = moved(family)
    generator = torch.Generator().manual_seed(2)
    better, worse, noise = (family.noise(2, generator) for _ in range(3))
    times = family.process.draw_times(2, generator)
    loss = dpo(family, trained, better, worse, noise, times, family.conditions(TWO, False), 7.0).mean()
    expected = []
    for i in (0, 1):
        one = slice(i, i + 1)
        lead = []
        for model in (family, before):
            won, lost = (errors(model, x[one], noise[one], times[i], TWO[i]) for x in (better, worse))
            lead.append(won - lost)
        expected.append(torch.log(1 + torch.exp(7.0 / 2 * (lead[0] - lead[1].detach()))))
    assert_same(trained, loss, torch.stack(expected).mean())


def test_whole_weights_have_a_reference_too(family: Family) -> None:
    trained = Trained(family, None, keeps_reference=True)
    noise, time = family.noise(1, torch.Generator().manual_seed(2)), torch.tensor(300.0)
    told = family.conditions(TWO[:1], False).given
    with torch.no_grad():
        first = family.predict(noise, time, told)
        for parameter in trained.parameters.values():
            parameter.mul_(1.5)
        second = family.predict(noise, time, told)
        with trained.untuned():
            torch.testing.assert_close(family.predict(noise, time, told), first, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(family.predict(noise, time, told), second, rtol=1e-9, atol=1e-9)
    assert (first - second).abs().max() > 1e-3


def test_remembered_prompts_say_what_they_said_when_they_were_read(family: Family) -> None:
    read = family.conditions(TWO, True)
    family.remember(PROMPTS)
    remembered = family.conditions(TWO, True)
    for before, after in ((read.given, remembered.given), (read.without, remembered.without)):
        assert before is not None and after is not None and before.keys() == after.keys()
        for name, value in before.items():
            torch.testing.assert_close(after[name], value)
    assert family.conditions(TWO, False).without is None
    assert family.conditions(["something new"], True).without is not None
