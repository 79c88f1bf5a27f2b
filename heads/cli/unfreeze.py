"""`python -m heads unfreeze` and `export-checkpoint`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from embed.cli.console import progress, suggest
from embed.config import DeviceConfig, Overwriting
from embed.files import require_kind, require_out, require_out_file
from embed.options import Range
from embed.spec import InputError
from heads.api.options import PairOptions, TableOptions
from heads.cli.common import require_inputs
from heads.config import HeadConfig, HoldOutConfig, OnTop, Protocol, SplitConfig, UnfreezeConfig
from heads.tracking.tracker import require_tracker, tracking

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ModeOptions:
    """The blocks to unfreeze, given in one of three ways."""

    mode: str | None = None
    """The blocks to train: visual_last_layer, visual_upper_layers, visual_upper_layers_textual_upper_layers,
    visual_upper_layers_textual_upper_layers_deeper, visual, all, blocks=V,T or fix_rate=F."""
    unfreeze_visual: Annotated[int | None, Range(0)] = None
    """Train this many blocks from the top of the picture tower. Use it in place of --mode."""
    unfreeze_text: Annotated[int | None, Range(0)] = None
    """Train this many blocks from the top of the text tower. Use it in place of --mode."""
    fix_rate: Annotated[float | None, Range(0, below=1)] = None
    """The share of blocks that stays frozen, as in ImageReward. Use it in place of --mode."""

    @property
    def name(self) -> str:
        """The mode. Raise InputError unless it is given in exactly one way."""
        numbers = (self.unfreeze_visual, self.unfreeze_text)
        given = [self.mode is not None, numbers != (None, None), self.fix_rate is not None]
        if sum(given) != 1:
            raise InputError("give one of --mode, --fix-rate, or --unfreeze-visual and --unfreeze-text")
        if self.mode is not None:
            return self.mode
        if self.fix_rate is not None:
            return f"fix_rate={self.fix_rate:g}"
        return f"blocks={numbers[0] or 0},{numbers[1] or 0}"


def unfreeze(
    cache: str,
    /,
    *,
    table: TableOptions,
    out: Path,
    overwriting: Overwriting,
    unfrozen: ModeOptions,
    live: bool = False,
    head: OnTop | None = None,
    splitting: HoldOutConfig,
    where: PairOptions,
    wise: Annotated[float | Literal["auto"], Range(0, 1)] = 1.0,
    training: partial[UnfreezeConfig],
    device: DeviceConfig,
    tracker: str | None = None,
) -> dict[str, object]:
    """Train the top blocks of a cache's backbone, from its boundary.

    The result is compared with the frozen backbone on the held-out rows. The tuned backbone and a head are written.

    Example:
        plaudit heads unfreeze cache --data a.csv --mode visual_last_layer --out tuned

    Args:
        cache: A folder made by `python -m embed cache --boundary MODE`.
        out: The folder to write to.
        live: Also run the frozen blocks, on the pixels that a cache made with --boundary visual keeps.
        head: Also train this head on top. By default the score is the cosine.
        wise: The share of the tuned weights in their mean with the original weights. With auto it is the best on
            validation.
        tracker: Send options, curves and figures to a tracker: tensorboard:FOLDER, mlflow[:URI] or wandb[:PROJECT].
    """
    require_out(out, "tuned backbone", overwriting.overwrite)
    require_tracker(tracker)
    config = training(unfrozen.name, seed=splitting.seed)
    require_inputs(table, [table.data], cache)
    import torch

    from embed.cache.store import Cache
    from embed.devices import resolve_device
    from heads.api.lines import accuracy_lines
    from heads.api.training import content_ids
    from heads.data.split import split_report, split_rows
    from heads.evaluation.evaluate import fast_scores, pair_accuracies
    from heads.evaluation.measured import measure_pairs
    from heads.report.figures import told
    from heads.unfreeze.distributed import find_ranks
    from heads.unfreeze.tune import save_tuned, tune

    opened = Cache.open(cache)
    resolved = resolve_device(device.device)
    (labels,), features = table.met(opened, [table.data])
    where.require_use([labels], [config.loss])
    split_config = SplitConfig(**vars(splitting))
    parts = split_rows(labels, split_config)
    on_top = HeadConfig(head, features.dim, features.pooled_dim) if head else None
    share, saved = None if wise == "auto" else wise, Path(f"{out}.checkpoints")
    with tracking(None if find_ranks(resolved).rank else tracker, out.name) as run:
        run.parameters({"cache": cache, "data": table.data, "head": head, "wise": wise, **asdict(config)})
        tuned = tune(
            opened, labels, features, parts, config, on_top, share, where.min_ratio, live, resolved, saved, progress
        )
        if tuned.unfrozen.ranks.rank:
            return {}
        for epoch, record in enumerate(tuned.history):
            run.record("unfreezing", epoch, record)
        measured = measure_pairs(labels, parts, Protocol(seed=config.seed))
        before = fast_scores(measured, features, [tuned.frozen_head])
        moved = fast_scores(measured, tuned.unfrozen.features(labels.image, labels.prompt), [tuned.unfrozen.head])
        # Zero-shot is measured with the original backbone.
        found = pair_accuracies(measured, {**before, "head": moved["head"]})
        frozen = measured.interval(measured.credit(before["head"]))
        result = found.to_json() | {"frozen_pair_accuracy": frozen.to_json()}
        manifest = {
            "training": asdict(config),
            "data": labels.described(table.data),
            "split": split_report(labels, parts, split_config, opened),
            "metrics": result,
            "versions": {"torch": torch.__version__},
        }
        seen = content_ids(opened, labels, labels.items[tuned.rows])
        save_tuned(out, tuned, opened, config, seen, manifest, overwriting.overwrite)
        run.figures(result)
        run.files(out / "head", "head.json")
    parameters = sum(parameter.numel() for parameter in tuned.unfrozen.moved.values())
    print(f"{parameters:,} parameters of {config.mode} trained; accuracy on validation after each epoch:")
    accuracies = [record["validation_accuracy"] for record in tuned.history]
    print("  ".join(f"{epoch}: {accuracy:.3f}" for epoch, accuracy in enumerate(accuracies)))
    print(*accuracy_lines(found), sep="\n")
    print(f"the same score before unfreezing: {told(frozen)}")
    print(f"written to {out}: --pretrained delta:{out}, and a head in {out / 'head'}")
    suggest(
        ["embed", "refresh", cache, "--tuned", out, "--out", f"{out}_cache"],
        ["export", "onnx", out / "head", "--out", out.with_name("bundle")],
    )
    return {
        "tuned": str(out),
        "parameters": parameters,
        "validation_accuracy": accuracies,
        "wise": tuned.wise,
        "split": manifest["split"],
        **result,
    }


def export_checkpoint(tuned: Path, /, *, out: Path, overwriting: Overwriting) -> dict[str, object]:
    """Write a tuned backbone as one complete state dict, which open_clip and the papers' scripts can load.

    Example:
        plaudit heads export-checkpoint tuned --out whole.pt

    Args:
        tuned: A folder made by `python -m heads unfreeze`.
        out: The file to write to. Its suffix decides the format: .safetensors, or .pt.
    """
    require_out_file(out, "--out", overwriting.overwrite)
    require_checkpoint_name(out)
    require_kind(tuned, "tuned backbone")
    from embed.backbones.delta import published_state, tuned_source
    from embed.backbones.load import load_backbone

    backbone = load_backbone(tuned_source(tuned))
    write_checkpoint(out, published_state(backbone.model.state_dict()))
    print(f"{out}: {asdict(backbone.source)['model']}, weights {backbone.identity.weights[:16]}")
    return {"checkpoint": str(out), "identity": backbone.identity.to_json()}


def require_checkpoint_name(path: Path) -> None:
    """Raise InputError unless a path has the suffix of a checkpoint."""
    if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
        raise InputError(f"{path} does not end like a checkpoint; wanted .safetensors, .pt, .pth or .bin")


def write_checkpoint(path: Path, state: "Mapping[str, Tensor]") -> None:
    """Write a state dict as .safetensors, or as a torch file under any other suffix."""
    import torch
    from safetensors.torch import save

    from embed.files import atomic_write

    require_checkpoint_name(path)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":
            file.write(save(state))
        else:
            torch.save(state, file)
