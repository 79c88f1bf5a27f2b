"""`python -m heads unfreeze` and `export-checkpoint`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embed.console import command, progress, say
from embed.modes import MODES
from embed.spec import InputError
from heads.cli.common import accuracy_lines, add_data_options, content_ids, labels_and_features


def add_commands(commands: Any) -> None:
    parser = command(commands, "unfreeze", unfreeze, "train the top blocks of a cache's backbone, from its boundary")
    parser.add_argument("cache", metavar="CACHE", help="made by `python -m embed cache --boundary MODE`")
    add_data_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="TUNED", help="the folder to write to")
    parser.add_argument("--mode", help=f"{', '.join(MODES)}, blocks=V,T or fix_rate=F")
    parser.add_argument(
        "--unfreeze-visual", type=int, metavar="N", help="picture blocks from the top, in place of --mode"
    )
    parser.add_argument("--unfreeze-text", type=int, metavar="N", help="text blocks from the top, in place of --mode")
    parser.add_argument("--fix-rate", type=float, help="ImageReward's: the share of blocks that stays frozen")
    parser.add_argument(
        "--live", action="store_true", help="run the frozen blocks too, on the pixels of --boundary visual"
    )
    parser.add_argument("--loss", default="preference", help="as of `heads train` (default preference)")
    parser.add_argument("--head", help="train one of `heads train`'s on top; without, the score is the cosine")
    parser.add_argument("--split-by", metavar="COLUMN", help="hold out whole groups of rows with one value of COLUMN")
    parser.add_argument("--test-fraction", type=float, default=0.2, help="share held out (default 0.2)")
    parser.add_argument("--min-ratio", type=float, help="train on pairs whose counts differ at least so many times")
    parser.add_argument(
        "--wise", default="1", help="share of the tuned weights in the mean with the old; auto: validated"
    )
    for name, kind, default, text in [
        ("--distance", str, None, "of triplet: squared_euclidean (default), euclidean or cosine"),
        ("--margin", float, None, "of triplet (default 0.3); with ranking it gives HPSv2's hinge, whose own is 1"),
        ("--reduction", str, None, "of preference and ranking: mean over a batch (default), or sum, as HPSv2"),
        ("--learning-rate", float, 3e-5, "of the blocks"),
        ("--optimizer", str, None, "adam or adamw; the mode's own else"),
        ("--weight-decay", float, 0.01, "of adamw"),
        ("--schedule", str, "constant", "constant or cosine"),
        ("--warmup", float, 0.0, "share of the steps in which the rate rises"),
        ("--batch-size", int, 32, "pairs, groups or ratings a step"),
        ("--accumulate", int, 1, "parts of a batch that are computed one after another"),
        ("--epochs", int, 10, "of which the best on validation is kept"),
        ("--max-grad-norm", float, None, "clip gradients to"),
        ("--ema", float, None, "keep a running mean of the weights, of this decay a step"),
        ("--head-learning-rate", float, 1e-3, "of the head on top"),
        ("--head-weight-decay", float, 1.0, "of the head on top"),
        ("--seed", int, 0, "of the split, the order and dropout"),
    ]:
        shown = "" if default is None else f" (default {default})"
        parser.add_argument(name, type=kind, default=default, help=text + shown)
    parser.add_argument("--bf16", action="store_true", help="compute the blocks in bfloat16")
    parser.add_argument("--checkpointing", action="store_true", help="compute blocks twice, and keep less in memory")
    parser.add_argument("--augment", action="store_true", help="mirror and crop pictures at random, with --live")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; an absent one is an error")
    writing = command(commands, "export-checkpoint", export_checkpoint, "a tuned backbone as a whole state dict")
    writing.add_argument("tuned", type=Path, metavar="TUNED", help="a folder made by `python -m heads unfreeze`")
    writing.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="its suffix decides: .safetensors, .pt"
    )


def unfreeze(args: argparse.Namespace) -> dict[str, Any]:
    """Train, compare with the frozen backbone on what was held out, and write both backbone and head."""
    import numpy as np
    import torch

    from embed.cache.store import Cache
    from embed.devices import resolve_device
    from heads.data import split
    from heads.evaluation.evaluate import Protocol, evaluate
    from heads.models import HeadConfig
    from heads.unfreeze import tune
    from heads.unfreeze.distributed import find_ranks
    from heads.unfreeze.train import UnfreezeConfig

    cache = Cache.open(args.cache)
    device = resolve_device(args.device)
    options = {name: getattr(args, name) for name in UnfreezeConfig.__dataclass_fields__ if name != "mode"}
    config = UnfreezeConfig(_mode(args), **options)
    labels, features = labels_and_features(args, cache)
    split_config = split.SplitConfig(args.split_by, None, args.test_fraction, args.seed)
    parts = split.split_rows(labels, split_config)
    rows = split.rows_apart_from(labels, parts.test_rows(0), np.flatnonzero(parts.fold != 0))
    pooled_dim = 0 if features.image_pooled is None else features.image_pooled.shape[1]
    ranks = find_ranks(device)
    tuned = tune.tune(
        cache,
        labels,
        features,
        parts,
        rows,
        config,
        head=HeadConfig(args.head, cache.identity.dim, pooled_dim) if args.head else None,
        wise=_wise(args.wise),
        min_ratio=args.min_ratio,
        live=args.live,
        device=device,
        folder=Path(f"{args.out}.checkpoints"),
        ranks=ranks,
        progress=progress,
    )
    if ranks.rank:
        return {}
    protocol = Protocol(seed=args.seed)
    before = evaluate(labels, features, [tuned.frozen_head], parts, protocol)
    moved = tuned.unfrozen.features(labels.image, labels.prompt)
    result = evaluate(labels, moved, [tuned.unfrozen.head], parts, protocol)
    result |= {
        "zero_shot_pair_accuracy": before["zero_shot_pair_accuracy"],
        "frozen_pair_accuracy": before["pair_accuracy"],
    }
    manifest = {
        "training": config.to_json(),
        "data": {"table": Path(args.data).name, "kind": labels.kind, "rows": len(labels), "missing": labels.missing},
        "split": split.split_report(labels, parts, split_config, cache),
        "metrics": result,
        "versions": {"torch": torch.__version__},
    }
    tune.save_tuned(args.out, tuned, cache, config, content_ids(cache, labels, labels.items[rows]), manifest)
    parameters = sum(parameter.numel() for parameter in tuned.unfrozen.moved.values())
    say(args, f"{parameters:,} parameters of {config.mode} moved; the best epoch of {config.epochs} on validation:")
    accuracies = [record["validation_accuracy"] for record in tuned.history]
    say(args, "  ".join(f"{epoch}: {accuracy:.3f}" for epoch, accuracy in enumerate(accuracies)))
    say(args, *accuracy_lines(result))
    frozen = result["frozen_pair_accuracy"]
    say(args, f"the same score before unfreezing: {frozen['value']:.3f} ({frozen['low']:.3f} to {frozen['high']:.3f})")
    say(args, f"written to {args.out}: --pretrained delta:{args.out}, and a head in {args.out / 'head'}")
    return {
        "tuned": str(args.out),
        "parameters": parameters,
        "validation_accuracy": accuracies,
        "wise": tuned.wise,
        "split": manifest["split"],
        **result,
    }


def _mode(args: argparse.Namespace) -> str:
    numbers = (args.unfreeze_visual, args.unfreeze_text)
    given = [args.mode is not None, numbers != (None, None), args.fix_rate is not None]
    if sum(given) != 1:
        raise InputError("give one of --mode, --fix-rate, or --unfreeze-visual and --unfreeze-text")
    if args.mode is not None:
        return args.mode
    if args.fix_rate is not None:
        return f"fix_rate={args.fix_rate:g}"
    return f"blocks={numbers[0] or 0},{numbers[1] or 0}"


def _wise(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"--wise is {text!r}; wanted auto, or a share from 0 (the old weights) to 1 (the tuned ones)")
    return value


def export_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    """The whole state dict, as open_clip and the papers' scripts load it."""
    from embed.backbones.delta import published_state, tuned_source
    from embed.backbones.load import load_backbone

    backbone = load_backbone(tuned_source(args.tuned))
    write_checkpoint(args.out, published_state(backbone.model.state_dict()))
    say(args, f"{args.out}: {asdict(backbone.source)['model']}, weights {backbone.identity.weights[:16]}")
    return {"checkpoint": str(args.out), "identity": backbone.identity.to_json()}


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """A state dict as .safetensors, or as a torch file under any other usual suffix."""
    import torch
    from safetensors.torch import save

    from embed.files import atomic_write

    if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise InputError(f"{path} has no suffix of a checkpoint; wanted .safetensors, .pt, .pth or .bin")
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":
            file.write(save(state))
        else:
            torch.save(state, file)
