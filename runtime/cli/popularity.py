"""Code that `index` and `refresh` share: reading popularity from a table or a head, and reporting."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from embed.cli.console import suggest, table, warn
from embed.config import parse_columns
from embed.options import Option
from embed.spec import Identity, InputError, require_same_identity
from runtime.config import PopularityConfig
from runtime.scoring.outputs import FIRST

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from embed.arrays import Float32s
    from runtime.catalogue.reader import Catalogue
    from runtime.catalogue.rows import Pictures, PopularRows, Predict
    from runtime.scoring.scorer import Scorer

PREDICTED = "predicted:"


@dataclass(frozen=True)
class CountOptions:
    """How popularity is read from a table of counts, or predicted by a head."""

    columns: Annotated[Mapping[str, str], Option(parse=parse_columns)] = field(default_factory=dict)
    """The table's own names of the columns, if they differ: NAME=YOURS,... such as image=path,count=likes."""
    missing: str | None = None
    """What to do with pictures without a count: drop leaves them out, zero and median give them that count, and
    predicted:BUNDLE ranks them by the score of the bundle's head, or predicted:BUNDLE#OUTPUT by another of its outputs.
    By default they are left out, or treated as when the catalogue was made."""
    prompt: str | None = None
    """The prompt for pictures that have none, if a head that reads prompts predicts."""


def read_popularity(
    source: str | None,
    options: CountOptions,
    identity: Identity,
    given: partial[PopularityConfig],
    before: PopularityConfig,
) -> "tuple[pa.Table | None, PopularityConfig, Predict | None]":
    """The table of popularity (None without a source), its config, and a function that predicts popularity, or None if
    nothing is predicted.

    Options that were not given are those of `before`.
    """
    import pyarrow as pa

    missing = options.missing or before.missing
    bundles = [text.removeprefix(PREDICTED) for text in (source or "", missing) if text.startswith(PREDICTED)]
    config = replace(before, **given.keywords | {"missing": "predicted" if bundles else missing})
    predict = _predictor_of(bundles[0], identity, options.prompt) if bundles else None
    if source is None:
        return None, config, predict
    if source.startswith(PREDICTED):
        return pa.table({"image": pa.array([], pa.string())}), config, predict
    return _read_counts(source, options.columns), config, predict


def folder_of(source: str | None) -> str:
    """The folder to which the names of pictures in a table of popularity, or in a pattern of its shards, are
    relative."""
    if source is None or source.startswith(PREDICTED):
        return "."
    if os.path.isdir(source):
        return source
    return os.path.dirname(source if os.path.exists(source) else re.split(r"[*?[{]", source)[0]) or "."


def _predictor_of(source: str, identity: Identity, prompt: str | None) -> "Predict":
    from runtime.scoring.scorer import Scorer

    whole = "#" not in source or os.path.isdir(source)
    bundle, _, output = (source, "", FIRST) if whole else source.rpartition("#")
    scorer = Scorer.load(bundle)
    require_same_identity(identity, "the catalogue's pictures", scorer.identity, f"the bundle {bundle}")
    return predictor(scorer, output, prompt)


def _read_counts(source: str, columns: Mapping[str, str]) -> "pa.Table":
    import pyarrow as pa

    from embed.records.columns import picture, refuse
    from embed.records.sources import open_table
    from runtime.scoring.tables import SOURCE_COLUMN

    counts = open_table(source, columns)
    counts.complete()
    if lacking := [name for name in ("image", "count") if name not in counts.types]:
        raise InputError(
            f"{source} has no column {lacking[0]!r}; it has {', '.join(counts.types)}."
            f" If yours has another name, give --columns {lacking[0]}=YOURS"
        )
    side = picture(counts, "image")
    optional = {"exposures": pa.float64(), "prompt": pa.string(), SOURCE_COLUMN: pa.string()}
    wanted = side.key_types() | {"count": pa.float64()}
    named, others = counts.read(wanted | {name: type for name, type in optional.items() if name in counts.types})
    count = named["count"].to_numpy()
    refuse(counts, (count % 1 != 0) & (count - count == 0), "count is not a whole number")
    others = others.drop_columns([name for name in others.column_names if name == "image"])
    if "image" not in named.column_names:
        named = named.add_column(0, "image", side.keys(counts, named))
    for name in others.column_names:
        named = named.append_column(name, others[name])
    return named


def predictor(scorer: "Scorer", output: str = FIRST, prompt: str | None = None) -> "Predict":
    """A function that predicts popularity from vectors by an output of a scorer, by default its first head's score.
    Pictures without a prompt get `prompt`. The function raises InputError if an input of the head is missing."""
    import numpy as np

    from runtime.scoring.sources import SOURCE
    from runtime.scoring.vectors import score_blocks

    asked = [output]
    chosen = scorer.named.chosen(asked)[0]
    reads_text = "text_embedding" in chosen.inputs

    def predict(pictures: "Pictures", rows: "np.ndarray", prompts: Any, sources: "np.ndarray") -> "np.ndarray":
        stored = {"image_embedding": pictures.image_embeddings()}
        if "image_pooled" in chosen.inputs:
            if (pooled := pictures.pooled_embeddings()) is None:
                raise InputError(
                    f"{scorer.bundle.path} predicts from pooled features, which are not in these vectors; index"
                    " (or refresh with --cache) from a cache made with --features projected,pooled"
                )
            stored["image_pooled"] = pooled
        if prompt is not None:
            prompts = prompts.fill_null(prompt)
        if reads_text and prompts.null_count:
            raise InputError(
                f"{scorer.bundle.path} predicts from picture and prompt, but {prompts.null_count} pictures have no"
                " prompt: give --prompt TEXT for all of these, or a table with the columns image, prompt and count,"
                " the last empty if unknown"
            )

        def features(some: slice) -> "dict[str, Float32s]":
            read = {name: array[rows[some]].astype(np.float32) for name, array in stored.items()}
            if reads_text:
                read["text_embedding"] = scorer.embed_prompts(prompts[some].to_pylist())
            if SOURCE in chosen.inputs:
                made_from = sources[some]
                read[SOURCE] = np.zeros_like(read["image_embedding"])
                read[SOURCE][made_from >= 0] = stored["image_embedding"][made_from[made_from >= 0]]
            return read

        return score_blocks(scorer, len(rows), features, asked)[chosen.values["score"]]

    return predict


def report(catalogue: "Catalogue", rows: "PopularRows") -> dict[str, object]:
    """Print a summary of a new version of a catalogue, and return it as a document."""
    if rows.not_embedded:
        warn(f"{rows.not_embedded} pictures of the table have no vector and are left out")
    missing = catalogue.manifest["popularity"]["missing"]
    if rows.without_count:
        fate = "are left out" if missing == "drop" else f"get the {missing} popularity"
        warn(f"{rows.without_count} pictures have no count and {fate}")
    index = catalogue.manifest["index"]
    print(f"{len(catalogue)} pictures in {catalogue.path} ({index['kind']} index)")
    efforts = [
        [one["weight"], one["probes"], one["candidates"], f"{one['recall_at_10']:.4f}"]
        for one in index.get("efforts", [])
    ]
    if efforts:
        print(*table(["popularity weight", "probes", "candidates", "recall at 10"], efforts), sep="\n")
    # Without a bundle, only pictures of the catalogue can be asked with.
    query = ["--id", catalogue.rows["image"][0].as_py()] if catalogue.bundle is None else ["PICTURE"]
    suggest(["runtime", "similar", catalogue.path, *query, "--sheet", "hits.html"])
    return {
        "catalogue": str(catalogue.path),
        "version": catalogue.manifest["version"],
        "pictures": len(catalogue),
        "not_embedded": rows.not_embedded,
        "without_count": rows.without_count,
        "missing": missing,
        "index": index,
    }
