"""What a bundle's head says of every picture of a catalogue, from the vectors that the catalogue keeps."""

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

KEPT = {"image_embedding", "text_embedding"}  # vectors that there are, of the pictures and of prompts
MOST_PROMPTS = 20_000  # pictures' own prompts that are encoded for a ranking


def has_own_prompts(catalogue: Catalogue) -> bool:
    """Whether every picture has a prompt of its own, and there are not too many pictures to encode them."""
    named = "prompt" in catalogue.rows.column_names and not catalogue.rows["prompt"].null_count
    return named and len(catalogue) <= MOST_PROMPTS


def readable(scorer: Scorer) -> list[Output]:
    """The outputs that depend on nothing but what a catalogue keeps, and prompts."""
    return [output for output in scorer.named.all if set(output.inputs) <= KEPT]


def unreadable(scorer: Scorer) -> str | None:
    """Why no output can be computed for a catalogue's vectors; None where one can."""
    if readable(scorer):
        return None
    missing = sorted(set(scorer.inputs) - KEPT)
    return f"the bundle's head reads {', '.join(missing)}, which a catalogue does not keep; give --scores"


def head_outputs(
    scorer: Scorer, catalogue: Catalogue, prompt: str | None, embed_prompts: EmbedPrompts | None = None
) -> dict[str, Float32s]:
    """(n,) of each readable output, for every picture under the prompt or, without one, under its own.

    Prompts become vectors by `embed_prompts`, which another bundle of the same backbone may do, or by the scorer.
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
    """The pictures' different prompts, and which of them (n,) each has."""
    if "prompt" not in catalogue.rows.column_names or catalogue.rows["prompt"].null_count:
        raise InputError("the head scores pictures under a prompt, and the pictures have none of their own: give one")
    encoded = catalogue.rows["prompt"].combine_chunks().dictionary_encode()
    if len(encoded.dictionary) > MOST_PROMPTS:
        raise InputError(f"the pictures have {len(encoded.dictionary)} prompts, too many to encode now: give one")
    return encoded.dictionary.to_pylist(), np.asarray(encoded.indices).astype(np.int64)
