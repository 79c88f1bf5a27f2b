"""`python -m heads evaluate`."""

import argparse
from pathlib import Path
from typing import Any

from embed.console import command, say, warn
from heads.cli_data import accuracy_lines, add_data_options, labels_and_features


def add_commands(commands: Any) -> None:
    parser = command(commands, "evaluate", evaluate, "measure a head on the part that was held out from it")
    parser.add_argument("head", metavar="HEAD", help="a folder made by `python -m heads train`")
    parser.add_argument("--cache", required=True, metavar="CACHE", help="the cache with the vectors of the table")
    add_data_options(parser)
    parser.add_argument("--all", action="store_true", help="score every row, those it was trained on included")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="write the score of every row measured, as parquet")
    parser.add_argument(
        "--min-ratio", type=float, default=2.0, help="counts must differ so many times to make a pair (default 2)"
    )


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the head on its held-out rows, or on a table of its own, and say what it had seen."""
    import numpy as np

    from embed.cache import Cache
    from embed.spec import Identity, InputError, require_same_identity
    from heads import store
    from heads.evaluate import Protocol, evaluate, write_scores
    from heads.split import Split, SplitConfig, split_report, split_rows

    head, manifest = store.load_head(args.head)
    cache = Cache.open(args.cache)
    require_same_identity(
        Identity.from_json(manifest["identity"]), f"the head {args.head}", cache.identity, f"the cache {args.cache}"
    )
    labels, features = labels_and_features(args, cache)
    recorded = manifest["split"]
    config = SplitConfig(recorded["by"], recorded["folds"], recorded["test_fraction"] or 0.2, recorded["seed"])
    same_columns = config.by is None or config.by in labels.columns.schema.names
    rows = split_rows(labels, config if same_columns else SplitConfig())
    same_split = same_columns and split_report(labels, rows, config, cache)["hash"] == recorded["hash"]
    heads, part, seen = [head], "rows that share no picture or prompt with training", 0
    if same_split and not args.all:
        heads, part = store.load_fold_heads(args.head) or [head], f"held out by split {recorded['hash'][:12]}"
    else:
        trained = _seen_rows(cache, labels, store.load_trained_ids(args.head))
        seen = int(trained.sum()) if args.all else 0
        if trained.all() and not args.all:
            raise InputError(
                f"the head {args.head} was trained on a picture or prompt of every row of {args.data};"
                " give a table with new ones, or --all to score them in spite of that"
            )
        rows = Split(np.where(trained & (not args.all), -1, 0), rows.group, 1)
        part = "all rows" if args.all else part
    if "published" in manifest:
        part = "all rows; what the published head was trained on is unknown"
    if seen:
        warn(f"{seen} of {len(labels)} rows have a picture or prompt that the head was TRAINED on: not an honest test")
    result = evaluate(labels, features, heads, rows, Protocol(min_ratio=args.min_ratio, seed=recorded["seed"]))
    if args.scores:
        write_scores(args.scores, labels, features, heads, rows)
    result |= {"part": part, "rows": int((rows.fold >= 0).sum()), "trained_rows": seen, "split": recorded}
    say(args, f"{args.head} on {args.data}: {part}", *accuracy_lines(result))
    return result


def _seen_rows(cache: Any, labels: Any, trained_ids: Any) -> Any:
    """(m,) bool: the rows with a picture or prompt among `trained_ids`."""
    import numpy as np
    import pyarrow.compute as pc

    seen = np.zeros(len(labels), bool)
    for side, column, of_item in (("images", "image_id", labels.image), ("prompts", "prompt_id", labels.prompt)):
        known = np.asarray(pc.is_in(cache.metadata(side, [column])[column], value_set=trained_ids.combine_chunks()))
        known = np.append(known, False)  # where items without prompt (-1) land
        seen |= known[of_item[labels.items]].any(axis=1)
    return seen
