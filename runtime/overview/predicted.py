"""Compute a bundle's outputs for every picture of a catalogue, from the catalogue's vectors."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from embed.arrays import Float32s, Ints
from embed.spec import InputError
from runtime.catalogue.reader import Catalogue
from runtime.scoring.outputs import Output
from runtime.scoring.scorer import Scorer
from runtime.scoring.vectors import score_blocks

EmbedPrompts: TypeAlias = Callable[[Sequence[str]], Float32s]  # (n, d) unit vectors of prompts

KEPT = {"image_embedding", "text_embedding"}  # the available vectors: of pictures, and of prompts
MOST_PROMPTS = 20_000  # largest catalogue whose own prompts are encoded for a ranking


def has_own_prompts(catalogue: Catalogue) -> bool:
    """Whether every picture has its own prompt, and there are few enough pictures to encode these."""
    named = "prompt" in catalogue.rows.column_names and not catalogue.rows["prompt"].null_count
    return named and len(catalogue) <= MOST_PROMPTS


def readable(scorer: Scorer) -> list[Output]:
    """The outputs that depend only on a catalogue's vectors and on prompts."""
    return [output for output in scorer.named.all if set(output.inputs) <= KEPT]


def unreadable(scorer: Scorer) -> str | None:
    """The reason why no output can be computed from a catalogue's vectors, or None if one can."""
    if readable(scorer):
        return None
    missing = sorted(set(scorer.inputs) - KEPT)
    return f"the bundle's head reads {', '.join(missing)}, which a catalogue does not keep; give --scores"


def head_outputs(
    scorer: Scorer, catalogue: Catalogue, prompt: str | None, embed_prompts: EmbedPrompts | None = None
) -> dict[str, Float32s]:
    """(n,) values of each readable output, for every picture under the prompt, or without one under its own prompt.

    Prompts are encoded by `embed_prompts`, which may be that of another bundle of the same backbone, or by the scorer.
    Raise InputError if there is no readable output, or no prompt.
    """
    if (why := unreadable(scorer)) is not None:
        raise InputError(why)
    asked = [output.name for output in readable(scorer)]
    texts, which = None, np.zeros(len(catalogue), np.int64)
    if scorer.reads_text:
        prompts = [prompt] if prompt else None
        if prompts is None:
            prompts, which = _own_prompts(catalogue)
        texts = (embed_prompts or scorer.embed_prompts)(prompts)

    def features(some: slice) -> dict[str, Float32s]:
        read = {"image_embedding": catalogue.vectors[some].astype(np.float32)}
        return read if texts is None else read | {"text_embedding": texts[which[some]]}

    return score_blocks(scorer, len(catalogue), features, asked)


def _own_prompts(catalogue: Catalogue) -> tuple[list[str], Ints]:
    """The different prompts of the pictures, and the number (n,) of each picture's prompt."""
    if "prompt" not in catalogue.rows.column_names or catalogue.rows["prompt"].null_count:
        raise InputError(
            "the head scores pictures under a prompt, and the pictures have no prompts of their own; give one"
        )
    encoded = catalogue.rows["prompt"].combine_chunks().dictionary_encode()
    if len(encoded.dictionary) > MOST_PROMPTS:
        raise InputError(
            f"the pictures have {len(encoded.dictionary)} prompts, which are too many to encode; give one for all"
        )
    return encoded.dictionary.to_pylist(), np.asarray(encoded.indices).astype(np.int64)
