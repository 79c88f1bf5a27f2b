"""`python -m heads train`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embed.console import command, say
from heads.cli_data import accuracy_lines, add_data_options, labels_and_features


def add_commands(commands: Any) -> None:
    parser = command(commands, "train", train, "train a head on the vectors of a cache")
    parser.add_argument("cache", metavar="CACHE", help="a folder made by `python -m embed cache`")
    add_data_options(parser)
    parser.add_argument("--out", required=True, metavar="HEAD", help="the folder to write the head to")
    parser.add_argument("--head", default="fusion", help="cosine, linear, mlp, fusion or kernel (default fusion)")
    parser.add_argument(
        "--loss",
        default="preference",
        help="preference (any table; default), ranking or listwise (ranked groups), rating (ratings, or counts: the log"
        " rate), triplet or"
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
    parser.add_argument(
        "--penalty", type=float, help="of linear and kernel (default: the best of 13 on rows kept aside)"
    )
    parser.add_argument("--no-activations", action="store_true", help="make mlp affine, as the published ones are")


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate on what was held out, and write the head."""
    import torch

    from embed.cache import Cache
    from heads import folds, split, store
    from heads.evaluate import Protocol, calibrate, evaluate
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
        penalty=args.penalty,
        seed=args.seed,
    )
    labels, features = labels_and_features(args, cache)
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
    measured = (labels, features, trained.fold_heads or [trained.head], rows, Protocol(seed=args.seed))
    result = evaluate(*measured)
    manifest = {
        "head": asdict(head_config),
        "identity": cache.identity.to_json(),
        "source": asdict(cache.source),
        "training": {
            **config.to_json(),
            "min_ratio": args.min_ratio,
            "chosen": trained.chosen,
            "history": trained.histories[0],
        },
        "data": {"table": Path(args.data).name, "kind": labels.kind, "rows": len(labels), "missing": labels.missing},
        "split": split.split_report(labels, rows, split_config, cache),
        "metrics": result,
        "calibration": calibrate(*measured),
        "versions": {"torch": torch.__version__},
    }
    store.save_head(
        Path(args.out), trained.head, trained.fold_heads, _content_ids(cache, labels, trained.rows), manifest
    )
    say(args, *accuracy_lines(result), f"written to {args.out}")
    return {"head": str(args.out), "split": manifest["split"], **result}


def _content_ids(cache: Any, labels: Any, rows: Any) -> Any:
    """The ids of every picture and prompt in some rows, as an Arrow array."""
    import numpy as np
    import pyarrow as pa

    items = np.unique(labels.items[rows])
    prompts = np.unique(labels.prompt[items])
    images = cache.metadata("images", ["image_id"])["image_id"].take(pa.array(np.unique(labels.image[items])))
    texts = cache.metadata("prompts", ["prompt_id"])["prompt_id"].take(pa.array(prompts[prompts >= 0]))
    return pa.chunked_array([*images.chunks, *texts.chunks], pa.string()).combine_chunks()
