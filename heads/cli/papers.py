"""`python -m heads finetune` and `validate`: Social Reward's two scripts, option by option and file by file.

Its tables (`prompt, pos_path, neg_path`), its modes and its checkpoints' names; the frozen part is computed once, into
a cache under the save folder.
"""

import argparse
from pathlib import Path
from typing import Any

from embed.console import command, progress, say

SAVE_STEPS = 800
BACKBONE = ("ViT-L-14-quickgelu", "openai")  # the original's clip.load("ViT-L/14")


def add_commands(commands: Any) -> None:
    tuning = command(commands, "finetune", finetune, "Social Reward's finetune, with its options and its checkpoints")
    tuning.add_argument("--training_file", required=True, help="parquet with prompt, pos_path, neg_path")
    tuning.add_argument("--training_mode", default="all", help="all, visual, visual_upper_layers, ... (default all)")
    tuning.add_argument("--batch_size", type=int, default=128)
    tuning.add_argument("--n_epochs", type=int, default=5)
    tuning.add_argument("--save_folder", type=Path, default=Path("clip_finetune"))
    tuning.add_argument("--loss_name", default="triplet", help="triplet, or any of ours that pairs can train")
    tuning.add_argument("--learning_rate", type=float, default=3e-5)
    tuning.add_argument("--device", default="auto")
    tuning.add_argument("--boundary-dtype", default="float16", help="of the cached activations (default float16)")
    tuning.add_argument("--max-gb", type=float, default=100.0, help="that they may take (default 100)")
    tuning.add_argument("--seed", type=int, default=0)
    checking = command(commands, "validate", validate, "Social Reward's accuracy: cos(prompt, pos) >= cos(prompt, neg)")
    checking.add_argument("parquet_file_or_pandas_dataframe", metavar="FILE")
    checking.add_argument("--device", default="auto")
    checking.add_argument("--batch_size", type=int, default=None)
    checking.add_argument("--num_workers", type=int, default=None)
    for parser in (tuning, checking):
        parser.add_argument("--checkout_path", help="a checkpoint to go on from")
        parser.add_argument("--model", default=BACKBONE[0], help="(default %(default)s)")
        parser.add_argument("--pretrained", help=f"(default {BACKBONE[1]}, for that model)")
        parser.add_argument("--images-root", help="folder where relative paths start; the table's own folder else")
        parser.add_argument("--machine-cache", type=Path, help=argparse.SUPPRESS)


def _source(args: argparse.Namespace) -> Any:
    from embed.spec import Source

    pretrained = args.pretrained or (BACKBONE[1] if args.model == BACKBONE[0] else None)
    if args.checkout_path is None:
        return Source(args.model, pretrained)
    tag = pretrained if args.pretrained or args.model == BACKBONE[0] else None
    return Source(args.model, f"{tag}@{args.checkout_path}" if tag else args.checkout_path)


def _embedded(args: argparse.Namespace, table: str, out: Path, workers: int | None = None) -> Any:
    """The configuration of a cache of the table's pictures and prompts, once that is made."""
    from embed.config import Wanted
    from embed.jobs.build import BuildConfig, build_cache

    config = BuildConfig(
        (table,),
        out,
        _source(args),
        format="social-reward",
        images_root=args.images_root,
        wanted=Wanted("torch", "fp32", args.device),
        workers=workers,
        machine_cache=args.machine_cache,
    )
    build_cache(config, progress)
    return config


def finetune(args: argparse.Namespace) -> dict[str, Any]:
    """Train on every row of the table and write whole state dicts, every 800 steps and after each epoch."""
    import numpy as np

    from embed.backbones.delta import published_state
    from embed.cache.store import Cache
    from embed.devices import resolve_device
    from embed.modes import parse_mode
    from embed.records.formats import read_records
    from embed.unfreeze.fill import BoundaryConfig, extend_cache
    from heads.cli.unfreeze import write_checkpoint
    from heads.data.comparisons import match_labels
    from heads.training.loop import Loop
    from heads.training.objectives import examples_for
    from heads.unfreeze.model import unfrozen
    from heads.unfreeze.train import Data, UnfreezeConfig, train
    from heads.unfreeze.tune import same_backbone

    config = UnfreezeConfig(
        args.training_mode,
        args.loss_name,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        epochs=args.n_epochs,
        seed=args.seed,
    )
    mode = parse_mode(args.training_mode)
    build = _embedded(args, args.training_file, args.save_folder / "cache")
    extend_cache(build, BoundaryConfig(mode, args.boundary_dtype, int(args.max_gb * 1e9)), progress)
    cache = Cache.open(build.out)
    labels = match_labels(read_records(args.training_file, "social-reward", args.images_root), cache, max_missing=1.0)
    backbone = same_backbone(cache)
    state = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    free = unfrozen(cache, backbone, mode, device=resolve_device(args.device))
    examples = examples_for(config.loss, labels, np.arange(len(labels)), np.random.default_rng(config.seed))
    written: list[str] = []

    def write(name: str) -> None:
        moved = {name: parameter.detach() for name, parameter in free.moved.items()}
        write_checkpoint(args.save_folder / name, published_state({**state, **moved}))
        written.append(name)

    def on_step(loop: Loop) -> None:
        epoch, step = (loop.step - 1) // loop.epoch_steps, loop.step
        if step % SAVE_STEPS == 0:
            write(f"clip_epoch_{epoch}_global_step_{step}.pth")
        if loop.between_epochs:
            write(f"clip_epoch_{epoch}_global_step_final.pth")
            write(f"clip_epoch_{epoch}_global_step_{step}.pth")

    data = Data(labels.image, labels.prompt, examples)
    loop = train(free, data, config, Path(f"{args.save_folder}.checkpoints"), on_step, progress)
    if loop.checkpoints:
        loop.checkpoints.clear()
    losses = [record["train_loss"] for record in loop.history[1:]]
    say(args, *(f"epoch {epoch}: loss {loss:.5f}" for epoch, loss in enumerate(losses)), f"written: {args.save_folder}")
    return {"save_folder": str(args.save_folder), "rows": len(labels), "train_loss": losses, "checkpoints": written}


def validate(args: argparse.Namespace) -> dict[str, Any]:
    """Its accuracy, where equal scores count as right."""
    import tempfile

    from embed.cache.store import Cache
    from embed.records.formats import read_records
    from heads.data.comparisons import match_labels
    from heads.data.features import features_of
    from heads.evaluation.evaluate import zero_shot_scores
    from heads.metrics import pair_credit

    table = args.parquet_file_or_pandas_dataframe
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache.open(_embedded(args, table, Path(folder, "cache"), args.num_workers).out)
        labels = match_labels(read_records(table, "social-reward", args.images_root), cache)
        vectors = cache.image_embeddings(), cache.text_embeddings()
    scores = zero_shot_scores(features_of(*vectors, labels.image, labels.prompt))
    assert scores is not None  # these tables have a prompt in every row
    positive, negative = scores[labels.items].T
    accuracy = float(pair_credit(positive, negative, labels.values["target"], tie="correct").mean())
    say(args, f"Accuracy: {accuracy:.2%}")
    return {"accuracy": accuracy, "rows": len(labels), "missing": labels.missing, "score_ties": "right"}
