"""A CLIP of a few thousand parameters as sentence-transformers saves one."""

from pathlib import Path

import torch
from open_clip.tokenizer import bytes_to_unicode
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Transformer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = [("a", "t</w>"), ("c", "at</w>"), ("p", "h"), ("ph", "o"), ("t", "o</w>"), ("pho", "to</w>")]
SIZE, CONTEXT, DIM = 16, 12, 24
SHORTEST = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}


def save_tiny(folder: Path, *, eos: int | None = None, act: str = "quick_gelu", **picture: object) -> Path:
    """A folder of random weights; `picture` is told to the processor of pictures."""
    bytes_ = sorted(bytes_to_unicode().values())
    words = [*bytes_, *(f"{byte}</w>" for byte in bytes_), *("".join(pair) for pair in MERGES), START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = vocabulary[END] if eos is None else eos
    text = tower | {"vocab_size": len(words), "max_position_embeddings": CONTEXT, "eos_token_id": ends}
    text |= {"bos_token_id": vocabulary[START], "pad_token_id": vocabulary[END]}
    vision = tower | {"image_size": SIZE, "patch_size": 8, "num_hidden_layers": 3}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text | {"hidden_act": act}, vision_config=vision | {"hidden_act": act}, projection_dim=DIM
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # zero biases would hide a wrong one
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=MERGES, model_max_length=CONTEXT)
    processor = CLIPProcessor(CLIPImageProcessor(**(SHORTEST | picture)), tokenizer)
    plain = folder.with_name(f"{folder.name}-clip")
    model.save_pretrained(plain)
    processor.save_pretrained(plain)
    saved = SentenceTransformer(modules=[Transformer(str(plain)), Normalize()], device="cpu")
    saved.save(str(folder), create_model_card=False)  # a card asks the hub
    return folder
