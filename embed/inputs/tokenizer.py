"""Turn prompts into token ids equal to those of open_clip's tokenizers, without torch or transformers.

A tokenizer.json holds the vocabulary, the special tokens, the context length and the padding. It cannot hold the
cleaning that open_clip does first (mojibake, HTML entities, whitespace), so that is done here, in the mode that the
bundle names. The library `tokenizers` does the rest.
"""

import html
import json
import re
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from embed.arrays import Int32s
from embed.spec import InputError

if TYPE_CHECKING:
    from tokenizers import Encoding

KEPT_NAME = "tokenizer.json"
Cleaning = Literal["lower", "whitespace", "canonicalize", "none"]  # open_clip's names, and "none" for no cleaning
CLEANINGS: tuple[Cleaning, ...] = get_args(Cleaning)
# ASCII without entities, escapes and control characters: ftfy and html.unescape do not change such a text.
PLAIN = re.compile(r"[\x20-\x25\x27-\x7e]*")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TokenizerConfig:
    """What tokenizer.json does not say; part of a bundle's manifest."""

    cleaning: Cleaning
    context_length: int
    pad_id: int
    zeroed_id: int | None = None  # a token that is replaced by 0: the separator, for some BERT towers
    shortens: bool = False  # whether columns of padding may be cut off without changing a vector

    def __post_init__(self) -> None:
        if self.cleaning not in CLEANINGS:
            raise InputError(f"TokenizerConfig.cleaning is {self.cleaning!r}; wanted one of {CLEANINGS}")
        if self.context_length < 1:
            raise InputError(f"TokenizerConfig.context_length is {self.context_length}; wanted a positive number")

    def to_json(self) -> dict[str, object]:
        return asdict(self)


class Tokenizer:
    """Turns prompts into token ids, from the text of a tokenizer.json and its configuration."""

    def __init__(self, text: str, config: TokenizerConfig) -> None:
        from tokenizers import Tokenizer as Encoder

        self.config = config
        try:
            self.encoder = Encoder.from_str(text)
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"tokenizer.json cannot be read ({error}); export the bundle again") from None

    def __call__(self, prompts: Sequence[str]) -> Int32s:
        """Return ids, int32 (n, c). c is the context length, or that of the longest prompt if `shortens` is set."""
        config = self.config
        encoded = self._encode(prompts)
        ids = np.array([e.ids for e in encoded], np.int32).reshape(len(prompts), config.context_length)
        if config.zeroed_id is not None:
            ids[ids == config.zeroed_id] = 0
        if config.shortens and len(prompts):
            ids = ids[:, : max(sum(e.attention_mask) for e in encoded)]
        return ids

    def count(self, prompts: Sequence[str]) -> int:
        """Return how many tokens of all prompts a text tower reads, with start and end tokens and without padding."""
        return sum(sum(e.attention_mask) for e in self._encode(prompts))

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Return how many prompts are longer than the context length and lose tokens."""
        return sum(bool(e.overflowing) for e in self._encode(prompts))

    def _encode(self, prompts: Sequence[str]) -> list["Encoding"]:
        for prompt in prompts:
            if not prompt.isascii() and any("\ud800" <= c <= "\udfff" for c in prompt):
                raise InputError(f"prompt {prompt!r} holds half of a surrogate pair; it is not valid Unicode")
        return self.encoder.encode_batch_fast([clean(p, self.config.cleaning) for p in prompts])


def kept_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer that `embed.inputs.vocabulary.keep_tokenizer` stored in the folder, or None."""
    try:
        kept = json.loads((folder / KEPT_NAME).read_text())
    except (OSError, ValueError):
        return None
    return Tokenizer(kept["tokenizer"], TokenizerConfig(**kept["config"]))


def clean(text: str, cleaning: Cleaning) -> str:
    """Return the text after the cleaning that open_clip's tokenizer does in this mode."""
    if cleaning == "none":
        return text
    if not PLAIN.fullmatch(text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if cleaning == "canonicalize":
        text = text.replace("_", " ").translate(NO_PUNCTUATION).lower()
    text = " ".join(text.split())
    return text.lower() if cleaning == "lower" else text
