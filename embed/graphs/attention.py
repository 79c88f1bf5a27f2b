"""Export attention as one node of onnxruntime instead of the many products that a trace would write.

CUDA has kernels for the node but not for the products. The operators are onnxruntime's own ("com.microsoft"), which
also run on a CPU in float32. Inside `fused_attention`, torch computes as always, and a tracing export writes the node.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from embed.graphs.trace import DOMAIN

_plain_attention = F.scaled_dot_product_attention


class _SelfAttention(torch.autograd.Function):
    """Projection to queries, keys and values, then attention with heads: com.microsoft.Attention."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, heads: int, causal: bool) -> Tensor:
        n, s, width = x.shape
        split = (x @ weight + bias).view(n, s, 3, heads, width // heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        return _plain_attention(query, key, value, is_causal=causal).transpose(1, 2).reshape(x.shape)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, bias: Any, heads: int, causal: bool) -> Any:
        node = g.op(f"{DOMAIN}::Attention", x, weight, bias, num_heads_i=heads, unidirectional_i=int(causal))
        return node.setType(x.type())


class _Attention(torch.autograd.Function):
    """Attention with heads, without projections, of (n, s, w) to (n, t, w): com.microsoft.MultiHeadAttention."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, heads: int, causal: bool, scale: float
    ) -> Tensor:
        q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value))
        return _plain_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, mask: Any, heads: int, causal: bool, scale: float) -> Any:
        none = g.op("prim::Constant").setType(torch._C.OptionalType.ofTensor())
        inputs = [query, key, value] if mask is None else [query, key, value, none, none, mask]
        node = g.op(
            f"{DOMAIN}::MultiHeadAttention", *inputs, num_heads_i=heads, unidirectional_i=int(causal), scale_f=scale
        )
        return node.setType(query.type())


def self_attention(x: Tensor, weight: Tensor, bias: Tensor, heads: int, causal: bool) -> Tensor:
    """Return (n, s, w) from `x` (n, s, w), with the weight (w, 3 w) and bias (3 w) of queries, keys and values."""
    result: Tensor = _SelfAttention.apply(x, weight, bias, heads, causal)
    return result


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Return (n, s, w) from queries (n, s, w) and keys and values (n, t, w)."""
    scale = (int(query.shape[-1]) // heads) ** -0.5
    result: Tensor = _Attention.apply(query, key, value, None, heads, False, scale)
    return result


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Make `scaled_dot_product_attention`, which timm, transformers and torch call, one node in exports."""

    def fused(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.dim() != 4 or dropout_p or enable_gqa or query.shape[1] != key.shape[1]:
            raise ValueError("attention becomes a node only in four dimensions, without dropout and grouped queries")
        heads = int(query.shape[1])
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, torch.finfo(query.dtype).min)
        scale = int(query.shape[-1]) ** -0.5 if scale is None else scale
        parts = [part.transpose(1, 2).flatten(2) for part in (query, key, value)]
        if torch.compiler.is_exporting():  # torch's newer exporter does not call autograd functions
            none = () if attn_mask is None else (None, None, attn_mask)
            attributes = {"num_heads": heads, "unidirectional": int(is_causal), "scale": scale}
            shape, name = parts[0].shape, f"{DOMAIN}::MultiHeadAttention"
            mixed: Tensor = torch.onnx.ops.symbolic(
                name, (*parts, *none), attributes, dtype=query.dtype, shape=shape, version=1
            )
        else:
            mixed = _Attention.apply(*parts, attn_mask, heads, is_causal, scale)
        return mixed.reshape(*mixed.shape[:2], heads, -1).transpose(1, 2)

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = _plain_attention
