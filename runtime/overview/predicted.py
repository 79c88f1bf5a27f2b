"""What a bundle's head says of every picture of a catalogue, from the vectors that the catalogue keeps."""

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

KEPT = {"image_embedding", "text_embedding", SOURCE}  # vectors that there are, of the pictures and of prompts
NONE, ABSENT = -1, -2  # in place of a source's row: made from no picture, and from one that the catalogue lacks
MOST_PROMPTS = 20_000  # pictures' own prompts that are encoded for a ranking


def has_own_prompts(catalogue: Catalogue) -> bool:
    """Whether every picture has a prompt of its own, and there are not too many pictures to encode them."""
    named = "prompt" in catalogue.rows.column_names and not catalogue.rows["prompt"].null_count
    return named and len(catalogue) <= MOST_PROMPTS


def readable(scorer: Scorer) -> list[Output]:
    """The outputs that depend on nothing but what a catalogue keeps, and prompts."""
    return [output for output in scorer.named.all if set(output.inputs) <= KEPT]


def unreadable(scorer: Scorer, catalogue: Catalogue) -> str | None:
    """Why no output can be computed for a catalogue's vectors, or not for some of its pictures; None where all can."""
    if not readable(scorer):
        return "the bundle's head reads features before the projection, which a catalogue does not keep; give --scores"
    if not any(SOURCE in output.inputs for output in readable(scorer)):
        return None
    absent = int((source_rows(catalogue) == ABSENT).sum())
    what = f"{absent} of {len(catalogue)} pictures were made from others that the catalogue lacks"
    return f"{what}; index these too, or give --scores" if absent else None


def source_rows(catalogue: Catalogue) -> Ints:
    """(n,) the row of the picture that each was made from, by its column source_path; NONE where it names none, and
    ABSENT where that is no picture of the catalogue."""
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
    """(n,) of each readable output, for every picture under the prompt or, without one, under its own.

    What reads the picture that another was made from is NaN where the catalogue lacks that. Prompts become vectors by
    `embed_prompts`, which another bundle of the same backbone may do, or by the scorer.
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
    """The pictures' different prompts, and which of them (n,) each has."""
    if "prompt" not in catalogue.rows.column_names or catalogue.rows["prompt"].null_count:
        raise InputError("the head scores pictures under a prompt, and the pictures have none of their own: give one")
    encoded = catalogue.rows["prompt"].combine_chunks().dictionary_encode()
    if len(encoded.dictionary) > MOST_PROMPTS:
        raise InputError(f"the pictures have {len(encoded.dictionary)} prompts, too many to encode now: give one")
    return encoded.dictionary.to_pylist(), np.asarray(encoded.indices).astype(np.int64)
