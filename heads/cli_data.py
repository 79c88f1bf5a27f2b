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


def labels_and_features(args: argparse.Namespace, cache: Any) -> tuple[Any, Any]:
    (labels,), features = tables_and_features(args, cache, [args.data])
    return labels, features


def tables_and_features(args: argparse.Namespace, cache: Any, paths: list[str]) -> tuple[list[Any], Any]:
    """The labels of some tables over one numbering of items, and the vectors of those."""
    import numpy as np

    from embed.records import parse_columns, read_records
    from heads.comparisons import join_labels, match_labels
    from heads.features import features_of

    tables = []
    for path in paths:
        records = read_records(path, args.format, columns=parse_columns(args.columns))
        tables.append(match_labels(records, cache, args.max_missing))
        if tables[-1].missing:
            warn(f"{tables[-1].missing} rows of {path} left out: no vector in {cache.path}")
    tables = join_labels(tables)
    pooled = cache.arrays("images", "pooled_emb")
    return tables, features_of(
        cache.image_embeddings(),
        cache.text_embeddings(),
        tables[0].image,
        tables[0].prompt,
        np.concatenate(pooled) if pooled else None,
    )


def accuracy_lines(result: dict[str, Any]) -> list[str]:
    rows = []
    for name in ("pair_accuracy", "zero_shot_pair_accuracy", "chance"):
        if interval := result[name]:
            shown = f"{interval['low']:.3f} to {interval['high']:.3f}"
            rows.append((name.replace("_", " "), f"{interval['value']:.3f}", shown))
    protocol = result["protocol"]
    return [
        *table(("", "mean", "95 % interval"), rows),
        f"{result['pairs']} pairs ({protocol['pairs']}), {protocol['folds']} held-out parts, {protocol['average']}",
    ]
