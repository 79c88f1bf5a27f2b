"""Rewrite open_clip's transformers before they are exported to ONNX: the same outputs with fewer copies.

Tokens come first and the batch second, so that a runtime multiplies heads in place; attention is a few plain
products; the last block of a picture tower that reads only its class token computes nothing else; a causal mask is
cut to the tokens there are. Other architectures, timm's and Hugging Face's, are left as they are: they export well.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from open_clip import transformer as open_clip_transformer
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from embed.graphs.attention import attention, fused_attention, self_attention
from embed.spec import InputError

_plain_pool = open_clip_transformer.text_global_pool


@contextlib.contextmanager
def fused_form(tower: nn.Module) -> Iterator[None]:
    """The tower's forward with every attention as one node, for devices that have kernels for it; inference only.

    Raise InputError if that would leave something out. Other architectures than open_clip's own get the node where
    they call torch's `scaled_dot_product_attention`.
    """
    with _replacing() as replace, fused_attention():
        replace(open_clip_transformer, "text_global_pool", _pool_by_floats)
        for module in tower.modules():
            if isinstance(module, VisionTransformer) and _is_plain(module.transformer):
                replace(module.transformer, "forward", fused_forward(module.transformer, False, _rows(module)))
            elif isinstance(module, TextTransformer) and _is_plain(module.transformer):
                causal = _is_causal(module)
                if causal is not None:
                    replace(module.transformer, "forward", fused_forward(module.transformer, causal, None))
        yield


@contextlib.contextmanager
def serving_form(tower: nn.Module) -> Iterator[None]:
    """The tower's forward in its lean form; inference only. Raise InputError if that would leave something out."""
    with _replacing() as replace:
        for module in tower.modules():
            if isinstance(module, VisionTransformer) and _is_plain(module.transformer):
                replace(module.transformer, "forward", lean_forward(module.transformer, _rows(module)))
            elif isinstance(module, TextTransformer):
                if module.attn_mask is not None:
                    replace(module, "_embeds", _cutting_mask(module._embeds))
                if _is_plain(module.transformer):
                    replace(module.transformer, "forward", lean_forward(module.transformer, None))
        yield


@contextlib.contextmanager
def _replacing() -> Iterator[Callable[[object, str, Callable[..., object]], None]]:
    """A function that gives an object another attribute until the block ends."""
    with contextlib.ExitStack() as undo:

        def replace(owner: object, name: str, function: Callable[..., object]) -> None:
            if name in vars(owner):
                undo.callback(setattr, owner, name, vars(owner)[name])
            else:
                undo.callback(delattr, owner, name)
            setattr(owner, name, function)

        yield replace


def _rows(visual: VisionTransformer) -> int | None:
    """How many tokens of the last block are read: the class token alone, or all of them (None)."""
    return 1 if visual.attn_pool is None and visual.pool_type == "tok" else None


def _is_causal(text: TextTransformer) -> bool | None:
    """Whether a token attends only to those up to it, or to all; None where the tower has another rule."""
    if text.cls_emb is not None or text.use_pad_mask:
        return None
    if text.attn_mask is None:
        return False
    size = len(text.attn_mask)
    return True if torch.equal(text.attn_mask.cpu(), torch.full((size, size), -torch.inf).triu_(1)) else None


def _is_plain(transformer: Transformer) -> bool:
    require_known_attention(transformer)
    plain = all(type(block) is ResidualAttentionBlock for block in transformer.resblocks)
    return type(transformer) is Transformer and plain


def require_known_attention(transformer: Transformer) -> None:
    """Raise InputError if one of open_clip's residual blocks attends in a way that `lean_block` and
    `embed.unfreeze.families.block_at`, which compute attention themselves, would get wrong in silence.

    They compute torch's MultiheadAttention as open_clip 3 makes it. Its CustomResidualAttentionBlock, which has more
    options, they leave alone.
    """
    for block in transformer.resblocks:
        if type(block) is not ResidualAttentionBlock:
            continue
        attention = block.attn
        if type(attention) is nn.MultiheadAttention:
            options = {
                "bias=False": attention.in_proj_bias is None,
                "add_bias_kv": attention.bias_k is not None,
                "add_zero_attn": attention.add_zero_attn,
                "kdim or vdim": attention.in_proj_weight is None,
                "dropout": attention.dropout > 0,
                "batch_first=False": not attention.batch_first,
            }
            found = ", ".join(option for option, is_set in options.items() if is_set)
        else:
            found = f"{type(attention).__module__}.{type(attention).__qualname__}"
        if found:
            raise InputError(
                f"a block of this backbone attends with {found}, and plaudit computes torch's MultiheadAttention alone,"
                " as open_clip 3 makes it, with no option set: run pip install 'open_clip_torch>=3.3,<4', or choose"
                " another backbone"
            )


def _cutting_mask(embeds: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def cut(tokens: Tensor) -> tuple[Tensor, Tensor]:
        x, mask = embeds(tokens)
        return x, mask[..., : x.shape[1], : x.shape[1]]

    return cut


def lean_forward(transformer: Transformer, rows: int | None) -> Callable[..., Tensor]:
    """The transformer's forward as (n, s, w), mask -> (n, s, w); (n, rows, w) where `rows` is given."""
    last = len(transformer.resblocks) - 1
    blocks = [lean_block(block, rows if i == last else None) for i, block in enumerate(transformer.resblocks)]

    def forward(x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x.transpose(0, 1)
        for block in blocks:
            x = block(x, attn_mask)
        return x.transpose(0, 1)

    return forward


def lean_block(block: ResidualAttentionBlock, rows: int | None) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A function (s, n, w), mask -> (s, n, w) equal to the block's forward; only the first `rows` of s where given."""
    attention, heads = block.attn, block.attn.num_heads
    width = attention.embed_dim
    # Cut here, not in the function, so that the graph holds weights and no slicing of weights.
    weight, bias = attention.in_proj_weight.detach(), attention.in_proj_bias.detach()
    cuts = [slice(None)] if rows is None else [slice(width), slice(width, None)]
    parts = [(weight[cut].clone(), bias[cut].clone()) for cut in cuts]

    def split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if rows is None:
            query, key, value = torch.split(F.linear(x, *parts[0]), width, dim=-1)
        else:
            query = F.linear(x[:rows], *parts[0])
            key, value = torch.split(F.linear(x, *parts[1]), width, dim=-1)
        return query, key, value

    def forward(x: Tensor, mask: Tensor | None) -> Tensor:
        # (s, n * heads, d): a head's matrix is reached by strides, without moving it.
        query, key, value = (part.reshape(part.shape[0], -1, width // heads) for part in split(block.ln_1(x)))
        logits = (query.transpose(0, 1) @ key.permute(1, 2, 0)) * (width // heads) ** -0.5
        if mask is not None:
            logits = logits + mask
        mixed = (logits.softmax(-1) @ value.transpose(0, 1)).transpose(0, 1)
        x = x if rows is None else x[:rows]
        x = x + block.ls_1(attention.out_proj(mixed.reshape(x.shape)))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return x

    return forward


def _pool_by_floats(
    x: Tensor, text: Tensor | None = None, pool_type: str = "argmax", eos_token_id: int | None = None
) -> Tensor:
    """open_clip's `text_global_pool`, in operators that CUDA has: it finds the largest of floats, not of integers."""
    if text is None or pool_type not in ("argmax", "eos") or (pool_type == "eos" and eos_token_id is None):
        pooled: Tensor = _plain_pool(x, text, pool_type, eos_token_id)
        return pooled
    marks = text if pool_type == "argmax" or eos_token_id is None else torch.eq(text, eos_token_id)
    place = marks.float().argmax(dim=-1, keepdim=True)[..., None]
    return x.gather(1, place.expand(-1, -1, x.shape[2]))[:, 0]


def fused_forward(
    transformer: Transformer, causal: bool, rows: int | None
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """The transformer's forward as (n, s, w) -> (n, s, w), or (n, rows, w); a mask is `causal`'s, or there is none."""
    last = len(transformer.resblocks) - 1
    blocks = [fused_block(block, causal, rows if i == last else None) for i, block in enumerate(transformer.resblocks)]

    def forward(x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for block in blocks:
            x = block(x)
        return x

    return forward


def fused_block(block: ResidualAttentionBlock, causal: bool, rows: int | None) -> Callable[[Tensor], Tensor]:
    """A function (n, s, w) equal to the block's forward, with attention as a node; only the first `rows` if given."""
    layer, heads = block.attn, block.attn.num_heads
    width = layer.embed_dim
    weight, bias = layer.in_proj_weight.detach().T.contiguous(), layer.in_proj_bias.detach()

    def attend(x: Tensor) -> Tensor:
        if rows is None:
            return self_attention(x, weight, bias, heads, causal)
        parts = [slice(i * width, (i + 1) * width) for i in range(3)]
        key, value = (x @ weight[:, part] + bias[part] for part in parts[1:])
        return attention(x[:, :rows] @ weight[:, parts[0]] + bias[parts[0]], key, value, heads)

    def forward(x: Tensor) -> Tensor:
        mixed = layer.out_proj(attend(block.ln_1(x)))
        x = (x if rows is None else x[:, :rows]) + block.ls_1(mixed)
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return x

    return forward
