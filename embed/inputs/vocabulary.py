"""Convert open_clip's tokenizers to a tokenizer.json and a TokenizerConfig, and check that both give the same ids."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from open_clip import tokenizer as open_clip_tokenizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from embed.arrays import Int32s
from embed.files import write_json
from embed.inputs.tokenizer import CLEANINGS, KEPT_NAME, Cleaning, TokenizerConfig
from embed.inputs.tokenizer import Tokenizer as OurTokenizer
from embed.spec import InputError

if TYPE_CHECKING:
    from torch import Tensor

OpenClipTokenizer: TypeAlias = open_clip_tokenizer.SimpleTokenizer | open_clip_tokenizer.HFTokenizer

# Difficult on purpose: mojibake, entities, ligatures, every kind of space and quote, scripts, emoji with joiners, words
# that are special tokens, the empty text, and texts that are too long for any context.
CORPUS = (
    "a photo of a cat",
    "A Photo, of A CAT!!! (4k, 8K, 3.14)",
    "",
    "   ",
    "\t tabs\nand\r\nbreaks\x0b and\u00a0no-break\u2003spaces\u200bzero-width\u3000ideographic ",
    "don't can't we'll I'M they'Ve rock'n'roll o''clock 'quoted'",
    "fish &amp; chips &lt;b&gt;bold&lt;/b&gt; &amp;amp; &#8364; &nbsp; &notanentity; a&b",
    "<b>tag</b> & ampersand <start_of_text> <END_OF_TEXT> [CLS] [SEP] [PAD] </s> <pad> <unk>",
    "naïve café e\u0301 ﬁsh Ǆ İstanbul straße ΩΜΕΓΑΣ ẞ",
    "mojibake: cafÃ©, â€œquotesâ€\u009d, schÃ¶n, âœ”",
    "“curly” ‘quotes’ — dashes … ½ ² Ⅷ ① ª",
    "北京で猫の写真 ＡＢＣ１２３ ｶﾅ 한국어 ภาษาไทย",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd नमस\u094dते Привет ٣٤",
    "😀 👨\u200d👩\u200d👧 👍🏽 🇪🇺 ❤️ 𝕏 \U000e0041",
    "control\x00\x07\x1b[31mred\x1b[0m\x7f \ufeffbom \u202eleft � \ue000",
    "snake_case kebab-case CamelCase a/b\\c http://example.com/?q=1&r=2#x user@example.com $5.00 50% C++ #tag",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "word " * 200,
    "猫" * 300,
    "the end of a prompt that is exactly long enough " * 8,
)


def convert(tokenizer: OpenClipTokenizer, shortens: bool) -> tuple[str, TokenizerConfig]:
    """Return the text of a tokenizer.json and the configuration that it lacks, for a tokenizer of open_clip.

    `shortens` goes into the configuration. Raise InputError for a tokenizer that cannot be expressed in this way.
    """
    if isinstance(tokenizer, open_clip_tokenizer.SimpleTokenizer):
        if tokenizer.reduction_fn is not None:
            raise InputError("this tokenizer drops tokens at random (reduction_mask); a bundle cannot reproduce that")
        encoder, pad_id, zeroed_id = _from_simple(tokenizer), 0, None
        pad_token, cleaning = encoder.id_to_token(0), cleaning_of(tokenizer.clean_fn)
    else:
        fast = getattr(getattr(tokenizer, "tokenizer", None), "backend_tokenizer", None)
        if fast is None or getattr(tokenizer, "tokenizer_mode", "") == "clips":
            why = "it has no fast tokenizer" if fast is None else "its mode `clips` adds tokens in its own way"
            raise InputError(f"a {type(tokenizer).__name__} cannot be written as tokenizer.json: {why}")
        hf = tokenizer.tokenizer
        encoder = Tokenizer.from_str(fast.to_str())
        pad_id, pad_token = hf.pad_token_id, hf.pad_token
        zeroed_id = hf.sep_token_id if getattr(tokenizer, "strip_sep_token", False) else None
        clean = getattr(tokenizer, "clean_fn", None)
        cleaning = cleaning_of(clean) if clean else "canonicalize"  # SigLipTokenizer has only this one
        if hf.padding_side != "right":
            raise InputError(f"the tokenizer pads on the {hf.padding_side}; only padding on the right is supported")
    encoder.enable_truncation(tokenizer.context_length)
    encoder.enable_padding(length=tokenizer.context_length, pad_id=pad_id, pad_token=pad_token)
    config = TokenizerConfig(cleaning, tokenizer.context_length, pad_id, zeroed_id, shortens)
    return encoder.to_str(pretty=False), config


def cleaning_of(clean: Callable[[str], str]) -> Cleaning:
    """Return the name of open_clip's cleaning function, or "none" for `str`. Raise InputError for another function."""
    if clean is str:
        return "none"
    for name in CLEANINGS:
        if name != "none" and clean is open_clip_tokenizer.get_clean_fn(name):
            return name
    raise InputError(f"the tokenizer cleans prompts with {clean!r}; known are {CLEANINGS}")


def _from_simple(simple: open_clip_tokenizer.SimpleTokenizer) -> Tokenizer:
    """Return CLIP's byte-level BPE as a tokenizer of `tokenizers`.

    open_clip finds a special token's name only where its pattern lets a word begin, but the special tokens of
    `tokenizers` are found anywhere. So here they are ordinary words, made by merges that we add.
    """
    specials = [simple.decoder[i] for i in simple.all_special_ids]
    vocabulary = {token: number for token, number in simple.encoder.items() if token not in specials}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    for special, number in zip(specials, simple.all_special_ids, strict=True):
        first, *rest = _bpe(simple, special)
        for i, part in enumerate(rest, start=1):
            merges.append((first, part))
            first += part
            # These intermediate parts never appear: no other word holds both brackets and letters.
            vocabulary.setdefault(first, number if i == len(rest) else len(simple.encoder) + len(merges))
    start, end = (f"{special}</w>" for special in specials[:2])
    encoder = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=end))
    # `regex`, which open_clip uses, takes U+0345 for neither a letter nor punctuation: it only separates words.
    encoder.normalizer = normalizers.Replace("\u0345", " ")
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"(?i){simple.pat.pattern}"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    encoder.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, simple.sot_token_id), (end, simple.eot_token_id)]
    )
    return encoder


def _bpe(simple: open_clip_tokenizer.SimpleTokenizer, word: str) -> list[str]:
    """Return the parts into which open_clip's tokenizer splits a word, without using its cache."""
    cached = simple.cache.pop(word)
    try:
        return str(simple.bpe(word)).split(" ")
    finally:
        simple.cache[word] = cached


def require_same_tokens(
    ours: OurTokenizer, tokenize: Callable[[list[str]], "Tensor | Int32s"], prompts: Sequence[str]
) -> int:
    """Return how many prompts were compared. Raise InputError that shows the first with different ids."""
    for prompt in (*CORPUS, *prompts):
        got, wanted = ours([prompt]), tokenize([prompt])
        rest = wanted[:, got.shape[1] :]
        if not (np.array_equal(got, wanted[:, : got.shape[1]]) and (rest == ours.config.pad_id).all()):
            raise InputError(
                f"tokenizer.json gives {got[0].tolist()} for {prompt[:60]!r}, open_clip {wanted[0].tolist()}:"
                " this tokenizer cannot be exported"
            )
    return len(CORPUS) + len(prompts)


def keep_tokenizer(folder: Path, tokenizer: OpenClipTokenizer) -> None:
    """Store what embed.inputs.tokenizer needs in the folder. A tokenizer that cannot be converted stores nothing."""
    try:
        text, config = convert(tokenizer, shortens=False)
        require_same_tokens(OurTokenizer(text, config), tokenizer, ())
    except InputError:
        return
    write_json(folder / KEPT_NAME, {"tokenizer": text, "config": config.to_json()})
