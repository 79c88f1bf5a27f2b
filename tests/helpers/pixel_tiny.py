"""A pixel pipeline of some thousand random parameters, on the CLIP of `unfreeze_tiny`."""

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from embed.backbones.backbone import Backbone
from heads.tuning.pixel import PixelPipeline


def tiny_pipeline(backbone: Backbone, seed: int = 0, size: int = 8) -> PixelPipeline:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=backbone.identity.dim,
    )
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    pipeline = PixelPipeline.on(backbone, unet.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
