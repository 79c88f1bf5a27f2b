"""Open_clip's transformers with options that most have not, and attentions that today's open_clip makes in no block."""

from typing import Any

import torch
from open_clip.transformer import Attention, ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import nn

# What open_clip builds CustomResidualAttentionBlocks for, but scaled_cosine_attn, whose forward fails in 3.3.
CUSTOM_BLOCKS: list[dict[str, Any]] = [
    {option: True} for option in ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
]
WIDTH, HEADS = 32, 4


class OwnAttention(nn.MultiheadAttention):
    """Of no known class, although it is one of torch's."""


# By what a refusal names. open_clip 4 puts its own Attention into every block.
REFUSED: dict[str, nn.Module] = {
    "open_clip.transformer.Attention": Attention(WIDTH, HEADS, scale_heads=True),
    "unusual_attention.OwnAttention": OwnAttention(WIDTH, HEADS, batch_first=True),
    "bias=False": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, bias=False),
    "add_bias_kv": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, add_bias_kv=True),
    "add_zero_attn": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, add_zero_attn=True),
    "kdim or vdim": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, kdim=16),
    "dropout": nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dropout=0.1),
    "batch_first=False": nn.MultiheadAttention(WIDTH, HEADS),
}


def picture_tower(**options: Any) -> VisionTransformer:
    """For (n, 3, 32, 32), with every parameter at random, so that none can be left out unseen."""
    return _shaken(VisionTransformer(32, 8, WIDTH, 3, HEADS, 2.0, output_dim=16, **options))


def text_tower(**options: Any) -> TextTransformer:
    """For (n, 12) tokens below 50, with every parameter at random."""
    return _shaken(TextTransformer(12, 50, WIDTH, HEADS, 3, 2.0, output_dim=16, **options))


def _shaken(tower: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in tower.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return tower.eval().requires_grad_(False)


def put_attention(tower: Any, attention: nn.Module) -> None:
    """Make it the attention of the tower's middle block."""
    block = tower.transformer.resblocks[1]
    assert type(block) is ResidualAttentionBlock
    block.attn = attention
