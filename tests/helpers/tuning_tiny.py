"""Pipelines of some ten thousand random parameters, of every family that can be tuned, in diffusers' own classes."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

PROMPTS = ["red apple", "green pear", "blue plum", "a small round apple"]
WIDTH = 8  # of text
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def tokenizer(folder: Path) -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def text_encoder(kind: type = CLIPTextModel, width: int = WIDTH) -> Any:
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=WIDTH, bos_token_id=52, eos_token_id=53,
    )  # fmt: skip
    return kind(config).eval()


def unet(channels: int = 4, size: int = 8, **options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=1, norm_num_groups=2,
        block_out_channels=(4, 8), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2, **options,
    )  # fmt: skip


def vae(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16, **options,
    )  # fmt: skip


def stable_diffusion(folder: Path) -> DiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder(), tokenizer=tokenizer(folder), unet=unet(cross_attention_dim=WIDTH),
        scheduler=PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, **BETAS),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_2(folder: Path) -> DiffusionPipeline:
    """With velocities."""
    made = stable_diffusion(folder)
    made.scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1, prediction_type="v_prediction", **BETAS)
    return made


def stable_diffusion_xl(folder: Path) -> DiffusionPipeline:
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=text_encoder(), text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        tokenizer=tokenizer(folder), tokenizer_2=tokenizer(folder), scheduler=EulerDiscreteScheduler(**BETAS),
        unet=unet(
            cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=4,
            transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=WIDTH + 6 * 4,
        ),
    )  # fmt: skip


def stable_diffusion_3(folder: Path) -> DiffusionPipeline:
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4,
        num_attention_heads=2, caption_projection_dim=8, joint_attention_dim=2 * WIDTH, pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )  # fmt: skip
    first, second = (text_encoder(CLIPTextModelWithProjection) for _ in range(2))
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(shift_factor=0.06, scaling_factor=1.5), text_encoder=first, tokenizer=tokenizer(folder),
        text_encoder_2=second, tokenizer_2=tokenizer(folder), text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


LATENT = {
    "sd1": stable_diffusion,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
}


def write(kind: str, folder: Path, seed: int = 0) -> Path:
    """The folder of such a pipeline, as save_pretrained writes it."""
    torch.manual_seed(seed)
    LATENT[kind](folder / "words").save_pretrained(folder / kind)
    return folder / kind
