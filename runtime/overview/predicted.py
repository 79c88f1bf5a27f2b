"""Compute a bundle's outputs for every picture of a catalogue, from the catalogue's vectors."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embed.arrays import Float32s, Ints
from embed.spec import InputError
from runtime.catalogue.reader import Catalogue
from runtime.scoring.outputs import Output
from runtime.scoring.scorer import Scorer
from runtime.scoring.sources import SOURCE
from runtime.scoring.tables import SOURCE_COLUMN
from runtime.scoring.vectors import score_blocks

EmbedPrompts: TypeAlias = Callable[[Sequence[str]], Float32s]  # (n, d) unit vectors of prompts

KEPT = {"image_embedding", "text_embedding", SOURCE}  # the available vectors: of pictures, and of prompts
NONE, ABSENT = -1, -2  # instead of the row of a source: there is no source, or the catalogue does not have it
MOST_PROMPTS = 20_000  # largest catalogue whose own prompts are encoded for a ranking


def has_own_prompts(catalogue: Catalogue) -> bool:
    """Whether every picture has its own prompt, and there are few enough pictures to encode these."""
    named = "prompt" in catalogue.rows.column_names and not catalogue.rows["prompt"].null_count
    return named and len(catalogue) <= MOST_PROMPTS


def readable(scorer: Scorer) -> list[Output]:
    """The outputs that depend only on a catalogue's vectors and on prompts."""
    return [output for output in scorer.named.all if set(output.inputs) <= KEPT]


def unreadable(scorer: Scorer, catalogue: Catalogue) -> str | None:
    """The reason why the outputs cannot be computed for a catalogue or for some of its pictures, or None."""
    if not readable(scorer):
        return "the bundle's head reads features before the projection, which a catalogue does not keep; give --scores"
    if not any(SOURCE in output.inputs for output in readable(scorer)):
        return None
    absent = int((source_rows(catalogue) == ABSENT).sum())
    what = f"{absent} of {len(catalogue)} pictures were made from others that the catalogue lacks"
    return f"{what}; index these too, or give --scores" if absent else None


def source_rows(catalogue: Catalogue) -> Ints:
    """(n,) rows of the sources of the catalogue's pictures, by the column source_path.

    NONE stands for a picture without a source, and ABSENT for a source that is not in the catalogue.
    """
    found = np.full(len(catalogue), NONE, np.int64)
    if SOURCE_COLUMN not in catalogue.rows.column_names:
        return found
    keys = catalogue.rows[SOURCE_COLUMN].cast(pa.string())
    named = np.asarray(pc.fill_null(pc.not_equal(keys, ""), False))
    rows = catalogue.image_rows(keys.filter(pa.array(named)))
    found[named] = np.where(rows < 0, ABSENT, rows)
    return found


def head_outputs(
    scorer: Scorer, catalogue: Catalogue, prompt: str | None, embed_prompts: EmbedPrompts | None = None
) -> dict[str, Float32s]:
    """(n,) values of each readable output, for every picture under the prompt, or without one under its own prompt.

    Values that depend on a source are NaN for pictures whose source is not in the catalogue. Prompts are encoded by
    `embed_prompts`, which may be that of another bundle of the same backbone, or by the scorer. Raise InputError if
    there is no readable output, or no prompt.
    """
    outputs = readable(scorer)
    if not outputs:
        raise InputError(str(unreadable(scorer, catalogue)))
    of_sources = [value for output in outputs if SOURCE in output.inputs for value in output.values.values()]
    made_from = source_rows(catalogue) if of_sources else np.full(len(catalogue), NONE, np.int64)
    texts, which = None, np.zeros(len(catalogue), np.int64)
    if scorer.reads_text:
        prompts = [prompt] if prompt else None
        if prompts is None:
            prompts, which = _own_prompts(catalogue)
        texts = (embed_prompts or scorer.embed_prompts)(prompts)

    def features(some: slice) -> dict[str, Float32s]:
        read = {"image_embedding": catalogue.vectors[some].astype(np.float32)}
        if of_sources:
            there = made_from[some] >= 0
            read[SOURCE] = np.zeros_like(read["image_embedding"])
            read[SOURCE][there] = catalogue.vectors[made_from[some][there]]
        return read if texts is None else read | {"text_embedding": texts[which[some]]}

    found = score_blocks(scorer, len(catalogue), features, [output.name for output in outputs])
    return found | {value: np.where(made_from == ABSENT, np.nan, found[value]) for value in of_sources}


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
