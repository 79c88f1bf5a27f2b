"""`python -m heads finetune` and `validate`: Social Reward's two scripts with the same options and files.

They take its tables (`prompt, pos_path, neg_path`) and its modes, and write checkpoints under its names. Unlike the
originals they compute the frozen part only once, into a cache under the save folder.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from embed.cli.console import progress
from embed.config import BoundaryConfig, DeviceConfig, Wanted
from embed.options import Option, Range
from embed.spec import Source
from heads.config import Loss, Seed, UnfreezeConfig

if TYPE_CHECKING:
    from embed.jobs.build import BuildConfig

SAVE_STEPS = 800
BACKBONE = ("ViT-L-14-quickgelu", "openai")  # the original's clip.load("ViT-L/14")


@dataclass(frozen=True)
class Original:
    """The backbone and the pictures of both scripts."""

    checkout_path: Annotated[str | None, Option("--checkout_path")] = None
    """A checkpoint to start from."""
    model: str = BACKBONE[0]
    """The architecture of the backbone."""
    pretrained: str | None = None
    """The weights of the backbone. By default openai, for the default model."""
    images_root: str | None = None
    """The folder where relative paths start. By default the table's own folder."""
    machine_cache: Path | None = None
    """The folder for measurements and exported graphs of this machine."""

    @property
    def source(self) -> Source:
        """The backbone."""
        pretrained = self.pretrained or (BACKBONE[1] if self.model == BACKBONE[0] else None)
        if self.checkout_path is None:
            return Source(self.model, pretrained)
        return Source(self.model, f"{pretrained}@{self.checkout_path}" if pretrained else self.checkout_path)

    def embed(
        self, table: str, out: Path, device: str, workers: int | None = None, batch_size: int | None = None
    ) -> "BuildConfig":
        """Make a cache of the table's pictures and prompts, and give its configuration."""
        from embed.jobs.build import BuildConfig, build_cache

        config = BuildConfig(
            (table,),
            out,
            self.source,
            Wanted("torch", "fp32", device),
            format="social-reward",
            images_root=self.images_root,
            workers=workers,
            batch_size=batch_size,
            machine_cache=self.machine_cache,
        )
        build_cache(config, progress)
        return config


def finetune(
    *,
    training_file: Annotated[str, Option("--training_file")],
    training_mode: Annotated[str, Option("--training_mode")] = "all",
    batch_size: Annotated[int, Option("--batch_size"), Range(1)] = 128,
    n_epochs: Annotated[int, Option("--n_epochs"), Range(1)] = 5,
    save_folder: Annotated[Path, Option("--save_folder")] = Path("clip_finetune"),
    loss_name: Annotated[Loss, Option("--loss_name")] = "triplet",
    learning_rate: Annotated[float, Option("--learning_rate"), Range(above=0)] = UnfreezeConfig.learning_rate,
    device: DeviceConfig,
    activations: partial[BoundaryConfig],
    seed: Seed = 0,
    original: Original,
) -> dict[str, object]:
    """Train as Social Reward's finetune does, with its options and its checkpoints.

    It trains on every row of the table and writes whole state dicts, every 800 steps and after each epoch.

    Example:
        plaudit heads finetune --training_file a.parquet --training_mode visual

    Args:
        training_file: A parquet file with the columns prompt, pos_path and neg_path.
        training_mode: What is trained: all, visual, visual_upper_layers or another mode of `python -m heads unfreeze`.
        batch_size: The number of triplets in a step.
        n_epochs: The number of epochs.
        save_folder: The folder to write to. The frozen part is computed once, into a cache in it.
        loss_name: The loss: triplet, or another one for pairs.
        learning_rate: The learning rate.
        seed: The seed of the order of the rows.
    """
    from embed.records.formats import read_records

    records = read_records(training_file, "social-reward", original.images_root)  # before torch is imported
    import numpy as np

    from embed.backbones.delta import published_state
    from embed.cache.store import Cache
    from embed.devices import resolve_device
    from embed.modes import parse_mode
    from embed.unfreeze.fill import extend_cache
    from heads.cli.unfreeze import write_checkpoint
    from heads.data.comparisons import match_labels
    from heads.training.loop import Loop
    from heads.training.objectives import examples_for
    from heads.unfreeze.model import unfrozen
    from heads.unfreeze.train import Data, train
    from heads.unfreeze.tune import same_backbone

    config = UnfreezeConfig(training_mode, loss_name, learning_rate, batch_size=batch_size, epochs=n_epochs, seed=seed)
    build = original.embed(training_file, save_folder / "cache", device.device)
    extend_cache(build, activations(parse_mode(training_mode)), progress)
    cache = Cache.open(build.out)
    labels = match_labels(records, cache, max_missing=1.0)
    backbone = same_backbone(cache)
    state = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    free = unfrozen(cache, backbone, config, device=resolve_device(device.device))
    examples = examples_for(config.loss, labels, np.arange(len(labels)), np.random.default_rng(config.seed))
    written: list[str] = []

    def write(name: str) -> None:
        moved = {name: parameter.detach() for name, parameter in free.moved.items()}
        write_checkpoint(save_folder / name, published_state({**state, **moved}))
        written.append(name)

    def on_step(loop: Loop) -> None:
        epoch, step = (loop.step - 1) // loop.epoch_steps, loop.step
        if step % SAVE_STEPS == 0:
            write(f"clip_epoch_{epoch}_global_step_{step}.pth")
        if loop.between_epochs:
            write(f"clip_epoch_{epoch}_global_step_final.pth")
            write(f"clip_epoch_{epoch}_global_step_{step}.pth")

    data = Data(labels.image, labels.prompt, examples)
    loop = train(free, data, config, Path(f"{save_folder}.checkpoints"), on_step, progress)
    if loop.checkpoints:
        loop.checkpoints.clear()
    losses = [record["train_loss"] for record in loop.history[1:]]
    print(
        *(f"epoch {epoch}: loss {loss:.5f}" for epoch, loss in enumerate(losses)), f"written: {save_folder}", sep="\n"
    )
    return {"save_folder": str(save_folder), "rows": len(labels), "train_loss": losses, "checkpoints": written}


def validate(
    parquet_file_or_pandas_dataframe: str,
    /,
    *,
    device: DeviceConfig,
    batch_size: Annotated[int | None, Option("--batch_size"), Range(1)] = None,
    num_workers: Annotated[int | None, Option("--num_workers"), Range(1)] = None,
    original: Original,
) -> dict[str, object]:
    """Measure Social Reward's accuracy: cos(prompt, pos) >= cos(prompt, neg), so that equal scores count as right.

    Example:
        plaudit heads validate test.parquet --checkout_path checkpoint.pth

    Args:
        parquet_file_or_pandas_dataframe: A parquet file with the columns prompt, pos_path and neg_path.
        batch_size: The number of pictures computed at once. By default as many as suit the machine.
        num_workers: The number of processes that decode pictures. By default one for each core.
    """
    from embed.records.formats import read_records

    table = parquet_file_or_pandas_dataframe
    records = read_records(table, "social-reward", original.images_root)  # before torch is imported
    import tempfile

    from embed.cache.store import Cache
    from heads.data.comparisons import match_labels
    from heads.data.features import features_of
    from heads.evaluation.evaluate import zero_shot_scores
    from heads.metrics import pair_credit

    with tempfile.TemporaryDirectory() as folder:
        cache = Cache.open(original.embed(table, Path(folder, "cache"), device.device, num_workers, batch_size).out)
        labels = match_labels(records, cache)
        vectors = cache.image_embeddings(), cache.text_embeddings()
    scores = zero_shot_scores(features_of(*vectors, labels.image, labels.prompt))
    assert scores is not None  # these tables have a prompt in every row
    positive, negative = scores[labels.items].T
    accuracy = float(pair_credit(positive, negative, labels.values["target"], tie="correct").mean())
    print(f"Accuracy: {accuracy:.2%}")
    return {"accuracy": accuracy, "rows": len(labels), "missing": labels.missing, "score_ties": "right"}
