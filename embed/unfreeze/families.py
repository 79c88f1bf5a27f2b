"""How each family of towers is split.

These towers can be split: open_clip's own picture transformers and ModifiedResNets (at a stage), timm's EfficientNets
and ConvNeXts (at a stage) and VisionTransformers, open_clip's text transformers, and BERT-like text towers of
transformers.
"""

from abc import abstractmethod
from collections.abc import Callable

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from embed.backbones.backbone import normalize_pixels
from embed.graphs.rewrite import require_known_attention
from embed.modes import WHOLE
from embed.spec import InputError, Preprocess
from embed.unfreeze.cut import Block, Cut

SUPPORTED = (
    "open_clip's ViT and ModifiedResNet, timm's EfficientNet, ConvNeXt and VisionTransformer for pictures;"
    " open_clip's text transformer and BERT-like towers of transformers for prompts"
)


class CannotBeCut(InputError):
    """Raised for a tower of a kind that cannot be split."""


def cut_pictures(visual: nn.Module, depth: int, preprocess: Preprocess) -> Cut:
    """Split the picture tower `depth` blocks from its top.

    Raise CannotBeCut if towers of its kind cannot be split, and InputError if its attention has options that `block_at`
    would leave out.
    """
    if isinstance(visual, VisionTransformer):
        require_known_attention(visual.transformer)
        return VisionTransformerCut(visual, depth, preprocess)
    if isinstance(visual, ModifiedResNet):
        return ModifiedResNetCut(visual, depth, preprocess)
    trunk = getattr(visual, "trunk", None)
    if isinstance(visual, TimmModel) and _kind(trunk) in ("EfficientNet", "ConvNeXt", "VisionTransformer"):
        return TimmCut(visual, depth, preprocess)
    raise CannotBeCut(f"the picture tower {_kind(trunk or visual)} cannot be cut; these can: {SUPPORTED}")


def cut_prompts(text: nn.Module, depth: int) -> Cut:
    """Split the text tower `depth` blocks from its top.

    Raise CannotBeCut if towers of its kind cannot be split, and InputError if its attention has options that `block_at`
    would leave out.
    """
    if isinstance(text, TextTransformer):
        if text.cls_emb is not None or text.use_pad_mask:
            raise CannotBeCut("a text tower with a class token or a padding mask, as in CoCa, cannot be cut")
        if text.pool_type != "none":
            require_known_attention(text.transformer)
            return TextTransformerCut(text, depth)
    transformer = getattr(text, "transformer", None)
    if isinstance(text, HFTextEncoder) and hasattr(getattr(transformer, "encoder", None), "layer"):
        return HuggingFaceCut(text, depth)
    raise CannotBeCut(f"the text tower {_kind(transformer or text)} cannot be cut; these can: {SUPPORTED}")


def block_counts(model: open_clip.CustomTextCLIP, preprocess: Preprocess) -> tuple[int, int]:
    """Return the number of blocks of the picture tower and of the text tower, 0 for a tower that cannot be split."""

    def count(cut: Callable[[], Cut]) -> int:
        try:
            return len(cut().blocks())
        except CannotBeCut:
            return 0

    visual, text = model.visual, model.text
    return count(lambda: cut_pictures(visual, WHOLE, preprocess)), count(lambda: cut_prompts(text, WHOLE))


class PictureCut(Cut):
    """A picture tower, which takes pixels uint8 (n, h, w, 3)."""

    def __init__(self, tower: nn.Module, depth: int, preprocess: Preprocess) -> None:
        super().__init__(tower, depth)
        self._preprocess = preprocess

    def _enter(self, inputs: Tensor) -> Tensor:
        return self._stem(normalize_pixels(inputs, self._preprocess))

    @abstractmethod
    def _stem(self, x: Tensor) -> Tensor:
        """Turn normalised pixels (n, 3, h, w) into the input of the lowest block."""


class VisionTransformerCut(PictureCut):
    def blocks(self) -> list[nn.Module]:
        return list(self.tower.transformer.resblocks)

    def on_top(self) -> list[nn.Module | nn.Parameter]:
        pools = [self.tower.attn_pool, getattr(self.tower, "attn_pool_contrastive", None)]
        return [self.tower.ln_post, *(pool for pool in pools if pool is not None)]

    def projection(self) -> list[nn.Module | nn.Parameter]:
        return [] if self.tower.proj is None else [self.tower.proj]

    def _stem(self, x: Tensor) -> Tensor:
        x = self.tower._embeds(x)
        return x

    def _leave(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        return self._project(self.tower._pool(x)[0])

    def _one_token(self, last: nn.Module) -> bool:
        return type(last) is ResidualAttentionBlock and self.tower.attn_pool is None and self.tower.pool_type == "tok"

    def _leave_at(self, last: nn.Module, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        first = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self._project(self.tower.ln_post(block_at(last, x, first, None)))

    def _project(self, pooled: Tensor) -> tuple[Tensor | None, Tensor]:
        return pooled, pooled if self.tower.proj is None else pooled @ self.tower.proj


class ModifiedResNetCut(PictureCut):
    def blocks(self) -> list[nn.Module]:
        return [self.tower.layer1, self.tower.layer2, self.tower.layer3, self.tower.layer4]

    def on_top(self) -> list[nn.Module | nn.Parameter]:
        pool = self.tower.attnpool  # its c_proj is the projection into the shared space
        return [pool.positional_embedding, pool.q_proj, pool.k_proj, pool.v_proj]

    def projection(self) -> list[nn.Module | nn.Parameter]:
        return [self.tower.attnpool.c_proj]

    def _stem(self, x: Tensor) -> Tensor:
        x = self.tower.stem(x)
        return x

    def _leave(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        return None, self.tower.attnpool(x)


class TimmCut(PictureCut):
    """A trunk of timm with open_clip's head."""

    def blocks(self) -> list[nn.Module]:
        trunk = self.tower.trunk
        return list(trunk.stages if _kind(trunk) == "ConvNeXt" else trunk.blocks)

    def on_top(self) -> list[nn.Module | nn.Parameter]:
        trunk = self.tower.trunk
        if _kind(trunk) == "EfficientNet":
            return [trunk.conv_head, trunk.bn2]
        if _kind(trunk) == "ConvNeXt":
            return [trunk.norm_pre, trunk.head.norm]
        return [trunk.norm, trunk.fc_norm, *([trunk.attn_pool] if trunk.attn_pool is not None else [])]

    def projection(self) -> list[nn.Module | nn.Parameter]:
        return [self.tower.trunk.get_classifier(), self.tower.head]

    def _stem(self, x: Tensor) -> Tensor:
        trunk = self.tower.trunk
        if _kind(trunk) == "EfficientNet":
            x = trunk.bn1(trunk.conv_stem(x))
        elif _kind(trunk) == "ConvNeXt":
            x = trunk.stem(x)
        else:
            x = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(x))))
        return x

    def _leave(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        trunk = self.tower.trunk
        if _kind(trunk) == "EfficientNet":
            x = trunk.bn2(trunk.conv_head(x))
        else:
            x = trunk.norm_pre(x) if _kind(trunk) == "ConvNeXt" else trunk.norm(x)
        pooled = trunk.forward_head(x)
        return pooled, self.tower.head(pooled)


class TextTransformerCut(Cut):
    """open_clip's text transformer, which takes tokens, int (n, c).

    With a causal mask, tokens after the pooled one, which is the end of the text, do not matter.
    """

    def blocks(self) -> list[nn.Module]:
        return list(self.tower.transformer.resblocks)

    def on_top(self) -> list[nn.Module | nn.Parameter]:
        projection = self.tower.text_projection
        return [self.tower.ln_final, *([projection] if projection is not None else [])]

    def lengths(self, inputs: Tensor) -> Tensor | None:
        if self.tower.pool_type == "argmax":
            return inputs.argmax(dim=-1) + 1
        return (inputs == self.tower.eos_id).int().argmax(dim=-1) + 1 if self.tower.pool_type == "eos" else None

    def _enter(self, inputs: Tensor) -> Tensor:
        x: Tensor = self.tower._embeds(inputs)[0]
        return x

    def _block(self, block: Block, x: Tensor, lengths: Tensor | None) -> Tensor:
        mask, tokens = self.tower.attn_mask, x.shape[1]
        return block(x, attn_mask=None if mask is None else mask[:tokens, :tokens])

    def _pooled_at(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is not None:
            return lengths - 1
        return torch.full((len(x),), 0 if self.tower.pool_type == "first" else x.shape[1] - 1, device=x.device)

    def _leave(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        x = self.tower.ln_final(x)
        return self._project(x[torch.arange(len(x), device=x.device), self._pooled_at(x, lengths)])

    def _one_token(self, last: nn.Module) -> bool:
        return type(last) is ResidualAttentionBlock

    def _leave_at(self, last: nn.Module, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        at = self._pooled_at(x, lengths)
        mask = None
        if self.tower.attn_mask is not None:
            mask = (torch.arange(x.shape[1], device=x.device) <= at[:, None])[:, None, None]
        return self._project(self.tower.ln_final(block_at(last, x, at, mask)))

    def _project(self, pooled: Tensor) -> tuple[Tensor | None, Tensor]:
        projection = self.tower.text_projection
        if projection is None:
            return pooled, pooled
        return pooled, projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


class HuggingFaceCut(Cut):
    """A text tower of transformers with BERT's layout. The padding after the text does not matter."""

    def blocks(self) -> list[nn.Module]:
        return list(self.tower.transformer.encoder.layer)

    def on_top(self) -> list[nn.Module | nn.Parameter]:
        pooler = self.tower.transformer.pooler
        return [self.tower.proj, *([pooler] if pooler is not None else [])]

    def lengths(self, inputs: Tensor) -> Tensor | None:
        kept: Tensor = inputs != self.tower.config.pad_token_id
        lengths = kept.sum(dim=1)
        if bool((kept != (torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None])).any()):
            raise InputError("this text tower cannot be cut, because its prompts have padding inside or before them")
        return lengths

    def _enter(self, inputs: Tensor) -> Tensor:
        x: Tensor = self.tower.transformer.embeddings(input_ids=inputs)
        return x

    def _mask(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        assert lengths is not None
        return (torch.arange(x.shape[1], device=x.device) < lengths[:, None]).long()

    def _block(self, block: Block, x: Tensor, lengths: Tensor | None) -> Tensor:
        from transformers.masking_utils import create_bidirectional_mask

        mask = create_bidirectional_mask(
            config=self.tower.transformer.config, inputs_embeds=x, attention_mask=self._mask(x, lengths)
        )
        return block(x, mask)

    def _leave(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        pooler = self.tower.transformer.pooler
        output = BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=None if pooler is None else pooler(x))
        pooled = self.tower.pooler(output, self._mask(x, lengths))
        return pooled, self.tower.proj(pooled)


def block_at(block: ResidualAttentionBlock, x: Tensor, at: Tensor, mask: Tensor | None) -> Tensor:
    """Return (n, w): row at[i] of the result of open_clip's residual attention block on x[i] (n, t, w).

    `mask` (n, 1, 1, t) is True for the tokens to attend to.
    """
    n, tokens, width = x.shape
    attention = block.attn
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    row = torch.arange(n, device=x.device)
    y = block.ln_1(x)
    query = F.linear(y[row, at], weight[:width], bias[:width]).view(n, 1, attention.num_heads, -1).transpose(1, 2)
    both = F.linear(y, weight[width:], bias[width:]).view(n, tokens, 2, attention.num_heads, -1)
    key, value = both.permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    z: Tensor = x[row, at] + block.ls_1(attention.out_proj(attended.transpose(1, 2).reshape(n, width)))
    z = z + block.ls_2(block.mlp(block.ln_2(z)))
    return z


def _kind(module: object) -> str:
    return type(module).__name__
