"""Rewrite open_clip's transformers before they are exported to ONNX: the same outputs with fewer copies.

Tokens come first and the batch second, so that a runtime multiplies heads in place. Attention becomes a few plain
products. The last block of a picture tower of which only the class token is read computes only that token. A causal
mask is cut to the length of the text. Other architectures (timm, Hugging Face) export well and are left as they are.
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
    """Export every attention of the tower as one node while the block runs; for devices that have kernels for it.

    The tower can then be used only for inference.

    Raise InputError if that would leave something out. Architectures that are not open_clip's own get the node where
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
    """Use the lean forward of the tower while the block runs, only for inference.

    Raise InputError if that would leave something out.
    """
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
    """Give a function that replaces an attribute of an object until the block ends."""
    with contextlib.ExitStack() as undo:

        def replace(owner: object, name: str, function: Callable[..., object]) -> None:
            if name in vars(owner):
                undo.callback(setattr, owner, name, vars(owner)[name])
            else:
                undo.callback(delattr, owner, name)
            setattr(owner, name, function)

        yield replace


def _rows(visual: VisionTransformer) -> int | None:
    """Return how many tokens of the last block are needed: 1 (the class token) or None (all)."""
    return 1 if visual.attn_pool is None and visual.pool_type == "tok" else None


def _is_causal(text: TextTransformer) -> bool | None:
    """Whether a token attends only to tokens up to it (True) or to all (False). None means another rule."""
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
    """Raise InputError if a residual block of open_clip has a kind of attention that we would compute wrongly.

    `lean_block` and `embed.unfreeze.families.block_at` compute attention themselves, as torch's MultiheadAttention does
    in open_clip 3. They do not touch open_clip's CustomResidualAttentionBlock, which has more options.
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
                f"a block of this backbone attends with {found}, and plaudit supports only torch's MultiheadAttention"
                " with the options that open_clip 3 uses: run pip install 'open_clip_torch>=3.3,<4', or choose"
                " another backbone"
            )


def _cutting_mask(embeds: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def cut(tokens: Tensor) -> tuple[Tensor, Tensor]:
        x, mask = embeds(tokens)
        return x, mask[..., : x.shape[1], : x.shape[1]]

    return cut


def lean_forward(transformer: Transformer, rows: int | None) -> Callable[..., Tensor]:
    """Return the transformer's forward, from (n, s, w) and a mask to (n, s, w), or to (n, rows, w) with `rows`."""
    last = len(transformer.resblocks) - 1
    blocks = [lean_block(block, rows if i == last else None) for i, block in enumerate(transformer.resblocks)]

    def forward(x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x.transpose(0, 1)
        for block in blocks:
            x = block(x, attn_mask)
        return x.transpose(0, 1)

    return forward


def lean_block(block: ResidualAttentionBlock, rows: int | None) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return a function equal to the block's forward, from (s, n, w) and a mask to (s, n, w), or (rows, n, w)."""
    attention, heads = block.attn, block.attn.num_heads
    width = attention.embed_dim
    # The weights are cut here so that the graph holds the parts and no operators that cut them.
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
        # (s, n * heads, d): the matrix of a head is read with strides, without a copy.
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
    """Do the same as open_clip's `text_global_pool`. CUDA finds the largest of floats, but not of integers."""
    if text is None or pool_type not in ("argmax", "eos") or (pool_type == "eos" and eos_token_id is None):
        pooled: Tensor = _plain_pool(x, text, pool_type, eos_token_id)
        return pooled
    marks = text if pool_type == "argmax" or eos_token_id is None else torch.eq(text, eos_token_id)
    place = marks.float().argmax(dim=-1, keepdim=True)[..., None]
    return x.gather(1, place.expand(-1, -1, x.shape[2]))[:, 0]


def fused_forward(
    transformer: Transformer, causal: bool, rows: int | None
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return the transformer's forward, from (n, s, w) to (n, s, w) or (n, rows, w). A mask must be causal."""
    last = len(transformer.resblocks) - 1
    blocks = [fused_block(block, causal, rows if i == last else None) for i, block in enumerate(transformer.resblocks)]

    def forward(x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        for block in blocks:
            x = block(x)
        return x

    return forward


def fused_block(block: ResidualAttentionBlock, causal: bool, rows: int | None) -> Callable[[Tensor], Tensor]:
    """Return a function equal to the block's forward with attention as a node: (n, s, w) to (n, s or `rows`, w)."""
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
