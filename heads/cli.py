"""`python -m heads`: train a head on a cache, and say honestly how good it is."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embed import console
from embed.console import command, say, table, warn


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (see embed.console)."""
    parser = argparse.ArgumentParser(prog="python -m heads", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_evaluate(commands)
    _add_import(commands)
    return console.main(parser, argv)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="TABLE", help="labels: parquet, csv, json or json lines")
    parser.add_argument("--format", help="the table's format, when its columns do not tell")
    parser.add_argument("--columns", metavar="NAME=YOURS,...", help="what your table calls the columns needed")
    parser.add_argument(
        "--max-missing", type=float, default=0.01, help="share of rows that may lack vectors (default 0.01)"
    )


def _add_train(commands: Any) -> None:
    parser = command(commands, "train", train, "train a head on the vectors of a cache")
    parser.add_argument("cache", metavar="CACHE", help="a folder made by `python -m embed cache`")
    _add_data_options(parser)
    parser.add_argument("--out", required=True, metavar="HEAD", help="the folder to write the head to")
    parser.add_argument("--head", default="fusion", help="cosine, linear, mlp or fusion (default fusion)")
    parser.add_argument(
        "--loss",
        default="preference",
        help="preference (any table; default), ranking or listwise (ranked groups), rating (ratings), triplet or"
        " preference-inbatch (head cosine, both pictures of one prompt)",
    )
    parser.add_argument("--split-by", metavar="COLUMN", help="hold out whole groups of rows with one value of COLUMN")
    parser.add_argument("--folds", type=int, help="hold every group out once, in this many parts")
    parser.add_argument("--test-fraction", type=float, default=0.2, help="share held out without --folds (default 0.2)")
    parser.add_argument("--min-ratio", type=float, help="train on pairs whose counts differ at least so many times")
    parser.add_argument("--seed", type=int, default=0)
    for name, kind, default, text in [
        ("--epochs", int, 6, "at most; rows kept aside decide"),
        ("--patience", int, 3, "epochs without improvement before stopping"),
        ("--batch-size", int, 16384, "pairs, groups or ratings a step"),
        ("--learning-rate", float, 1e-3, "highest, after warm-up"),
        ("--weight-decay", float, 1.0, "of AdamW, on matrices"),
        ("--hidden", int, 128, "width of fusion's hidden layer"),
        ("--dropout", float, 0.5, "of fusion's hidden layer"),
        ("--input-dropout", float, 0.6, "of fusion's inputs; less for millions of pairs"),
        ("--reads", str, "both", "what mlp reads: both, image or text"),
    ]:
        parser.add_argument(name, type=kind, default=default, help=f"{text} (default {default})")
    parser.add_argument("--no-activations", action="store_true", help="make mlp affine, as the published ones are")


def _add_evaluate(commands: Any) -> None:
    parser = command(commands, "evaluate", evaluate, "measure a head on the part that was held out from it")
    parser.add_argument("head", metavar="HEAD", help="a folder made by `python -m heads train`")
    parser.add_argument("--cache", required=True, metavar="CACHE", help="the cache with the vectors of the table")
    _add_data_options(parser)
    parser.add_argument("--all", action="store_true", help="score every row, those it was trained on included")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="write the score of every row measured, as parquet")
    parser.add_argument(
        "--min-ratio", type=float, default=2.0, help="counts must differ so many times to make a pair (default 2)"
    )


def _add_import(commands: Any) -> None:
    parser = command(commands, "import", import_published, "make a head of one that others published")
    parser.add_argument("weights", metavar="FILE", help="aesthetic predictor: .pth or .safetensors, tensors alone")
    parser.add_argument(
        "--cache", required=True, metavar="CACHE", help="a cache of the backbone that the head was published for"
    )
    parser.add_argument("--out", required=True, metavar="HEAD", help="the folder to write the head to")


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate on what was held out, and write the head."""
    import torch

    from embed.cache import Cache
    from heads import folds, split, store
    from heads.evaluate import Protocol, evaluate
    from heads.models import HeadConfig
    from heads.train import TrainConfig

    cache = Cache.open(args.cache)
    split_config = split.SplitConfig(args.split_by, args.folds, args.test_fraction, args.seed)
    config = TrainConfig(
        loss=args.loss,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        batch_size=args.batch_size,
        epochs=args.epochs,
        patience=args.patience,
        seed=args.seed,
    )
    labels, features = _labels_and_features(args, cache)
    pooled_dim = 0 if features.image_pooled is None else features.image_pooled.shape[1]
    head_config = HeadConfig(
        args.head,
        cache.identity.dim,
        pooled_dim,
        args.hidden,
        args.dropout,
        args.input_dropout,
        args.reads,
        activations=not args.no_activations,
    )
    rows = split.split_rows(labels, split_config)
    trained = folds.train_heads(
        labels, features, rows, head_config, config, args.min_ratio, report=lambda text: say(args, text)
    )
    result = evaluate(labels, features, trained.fold_heads or [trained.head], rows, Protocol(seed=args.seed))
    manifest = {
        "head": asdict(head_config),
        "identity": cache.identity.to_json(),
        "source": asdict(cache.source),
        "training": {**config.to_json(), "min_ratio": args.min_ratio, "epochs_run": len(trained.histories[0])},
        "data": {"table": Path(args.data).name, "kind": labels.kind, "rows": len(labels), "missing": labels.missing},
        "split": split.split_report(labels, rows, split_config, cache),
        "metrics": result,
        "versions": {"torch": torch.__version__},
    }
    store.save_head(
        Path(args.out), trained.head, trained.fold_heads, _content_ids(cache, labels, trained.rows), manifest
    )
    say(args, *_accuracy_lines(result), f"written to {args.out}")
    return {"head": str(args.out), "split": manifest["split"], **result}


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
    labels, features = _labels_and_features(args, cache)
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
    say(args, f"{args.head} on {args.data}: {part}", *_accuracy_lines(result))
    return result


def import_published(args: argparse.Namespace) -> dict[str, Any]:
    """Write a published head as one of ours, for the backbone of a cache."""
    import pyarrow as pa

    from embed.cache import Cache
    from embed.files import sha256_file
    from embed.spec import InputError
    from heads import store
    from heads.published import read_published

    cache = Cache.open(args.cache)
    head, config = read_published(args.weights)
    if config.dim != cache.identity.dim:
        raise InputError(
            f"{args.weights} reads vectors of {config.dim} numbers and {args.cache} has {cache.identity.dim}"
            f" ({cache.identity.model}); give a cache of the backbone that the head was published for"
        )
    manifest = {
        "head": asdict(config),
        "identity": cache.identity.to_json(),
        "source": asdict(cache.source),
        "published": {"file": Path(args.weights).name, "sha256": sha256_file(Path(args.weights))},
        "split": {"by": None, "folds": None, "test_fraction": None, "seed": 0, "hash": None},
    }
    store.save_head(Path(args.out), head, [], pa.array([], pa.string()), manifest)
    say(
        args,
        f"{config.kind} head for vectors of {config.dim} numbers, written to {args.out}",
        f"the file does not say which backbone it is for: that it is {cache.identity.model} is taken from {args.cache}",
    )
    return {"head": str(args.out), "kind": config.kind, "model": cache.identity.model}


def _labels_and_features(args: argparse.Namespace, cache: Any) -> tuple[Any, Any]:
    import numpy as np

    from embed.records import parse_columns, read_records
    from heads.comparisons import match_labels
    from heads.features import features_of

    records = read_records(args.data, args.format, columns=parse_columns(args.columns))
    labels = match_labels(records, cache, args.max_missing)
    if labels.missing:
        warn(f"{labels.missing} rows of {args.data} left out: no vector in {cache.path}")
    pooled = cache.arrays("images", "pooled_emb")
    return labels, features_of(
        cache.image_embeddings(),
        cache.text_embeddings(),
        labels.image,
        labels.prompt,
        np.concatenate(pooled) if pooled else None,
    )


def _content_ids(cache: Any, labels: Any, rows: Any) -> Any:
    """The ids of every picture and prompt in some rows, as an Arrow array."""
    import numpy as np
    import pyarrow as pa

    items = np.unique(labels.items[rows])
    prompts = np.unique(labels.prompt[items])
    images = cache.metadata("images", ["image_id"])["image_id"].take(pa.array(np.unique(labels.image[items])))
    texts = cache.metadata("prompts", ["prompt_id"])["prompt_id"].take(pa.array(prompts[prompts >= 0]))
    return pa.chunked_array([*images.chunks, *texts.chunks], pa.string()).combine_chunks()


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


def _accuracy_lines(result: dict[str, Any]) -> list[str]:
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
