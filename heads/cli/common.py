"""What the commands of heads share: a table of labels, the vectors of a cache, and lines to print."""

import argparse
from typing import Any

from embed.console import table, warn


def add_data_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    parser.add_argument(
        "--data",
        required=True,
        metavar="TABLE",
        action="append" if several else "store",
        help="labels: parquet, csv, json or json lines"
        + ("; give it again for tables that only teach: the first is held out from and measured" if several else ""),
    )
    parser.add_argument("--format", help="the table's format, when its columns do not tell")
    parser.add_argument("--columns", metavar="NAME=YOURS,...", help="what your table calls the columns needed")
    parser.add_argument(
        "--max-missing", type=float, default=0.01, help="share of rows that may lack vectors (default 0.01)"
    )


def add_held_out_options(parser: argparse.ArgumentParser, cache_required: bool = True) -> None:
    """What every command needs that measures heads on rows that they have not seen."""
    parser.add_argument(
        "--cache", required=cache_required, metavar="CACHE", help="the cache with the vectors of the table"
    )
    add_data_options(parser)
    parser.add_argument("--all", action="store_true", help="score every row, those it was trained on included")
    parser.add_argument("--strict", action="store_true", help="refuse a table that shares pictures with training")
    parser.add_argument(
        "--min-ratio", type=float, default=2.0, help="counts must differ so many times to make a pair (default 2)"
    )


def cache_labels_features(args: argparse.Namespace, *heads: str) -> tuple[Any, Any, Any]:
    """The cache of `args`, which must be of the heads' backbone, and the table's labels and vectors."""
    from embed.cache.store import Cache
    from heads.evaluation.held_out import require_backbone

    cache = Cache.open(args.cache)
    for head in heads:
        require_backbone(head, cache)
    return cache, *labels_and_features(args, cache)


def labels_and_features(args: argparse.Namespace, cache: Any) -> tuple[Any, Any]:
    (labels,), features = tables_and_features(args, cache, [args.data])
    return labels, features


def tables_and_features(args: argparse.Namespace, cache: Any, paths: list[str]) -> tuple[list[Any], Any]:
    """The labels of some tables over one numbering of items, and the vectors of those."""
    from embed.config import parse_columns
    from embed.records.formats import read_records
    from heads.data.comparisons import join_labels, match_labels
    from heads.data.features import features_of

    tables = []
    for path in paths:
        records = read_records(path, args.format, columns=parse_columns(args.columns or ""))
        tables.append(match_labels(records, cache, args.max_missing))
        if tables[-1].missing:
            warn(f"{tables[-1].missing} rows of {path} left out: no vector in {cache.path}")
    tables = join_labels(tables)
    return tables, features_of(
        cache.image_embeddings(),
        cache.text_embeddings(),
        tables[0].image,
        tables[0].prompt,
        cache.pooled_embeddings(),
    )


def content_ids(cache: Any, labels: Any, items: Any) -> Any:
    """The ids of every picture and prompt of some items, as an Arrow array."""
    import numpy as np
    import pyarrow as pa

    items = np.unique(items)
    prompts = np.unique(labels.prompt[items])
    images = cache.metadata("images", ["image_id"])["image_id"].take(pa.array(np.unique(labels.image[items])))
    texts = cache.metadata("prompts", ["prompt_id"])["prompt_id"].take(pa.array(prompts[prompts >= 0]))
    return pa.chunked_array([*images.chunks, *texts.chunks], pa.string()).combine_chunks()


def accuracy_lines(result: dict[str, Any]) -> list[str]:
    rows = []
    for name in ("pair_accuracy", "zero_shot_pair_accuracy", "chance"):
        if interval := result[name]:
            shown = f"{interval['low']:.3f} to {interval['high']:.3f}"
            rows.append((name.replace("_", " "), f"{interval['value']:.3f}", shown))
    return [*table(("", "mean", "95 % interval"), rows), protocol_line(result)]


def protocol_line(result: dict[str, Any]) -> str:
    protocol = result["protocol"]
    return (
        f"{result['pairs']} pairs ({protocol['pairs']}), {protocol['folds']} held-out parts, {protocol['average']};"
        f" intervals {protocol['interval']}"
    )
