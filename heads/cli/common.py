"""What the commands of heads share: a table of labels, the vectors of a cache, and lines to print."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from embed.cli.console import suggest, table, warn
from embed.config import TableConfig
from embed.options import Range, require_value
from embed.spec import InputError
from heads.config import HeadConfig, Loss, TrainConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from torch.utils.tensorboard import SummaryWriter

    from embed.arrays import Ints
    from embed.cache.store import Cache
    from embed.records.formats import Records
    from heads.config import Protocol
    from heads.data.comparisons import Labels
    from heads.data.features import Features
    from heads.evaluation.evaluate import Accuracies
    from heads.evaluation.held_out import HeldOut
    from heads.training.folds import Observer

BLEND_LANDMARKS = 1024


@dataclass(frozen=True, kw_only=True)
class LabelOptions(TableConfig):
    """How labels are met with vectors."""

    max_missing: Annotated[float, Range(0, 1)] = 0.01
    """The share of rows whose pictures or prompts may be missing from the cache."""

    def read(self, path: str) -> "Records":
        """The records of a table."""
        from embed.records.formats import read_records

        return read_records(path, self.format, self.images_root, self.columns)

    def met(self, cache: "Cache", paths: Sequence[str]) -> "tuple[list[Labels], Features]":
        """The labels of some tables over one numbering of items, and the vectors of those."""
        from heads.data.comparisons import join_labels, match_labels
        from heads.data.features import features_of

        tables = []
        for path in paths:
            tables.append(match_labels(self.read(path), cache, self.max_missing))
            if tables[-1].missing:
                warn(f"{tables[-1].missing} rows of {path} left out: no vector in {cache.path}")
        tables = join_labels(tables)
        vectors = cache.image_embeddings(), cache.text_embeddings()
        (first, *_), pooled = tables, cache.pooled_embeddings()
        return tables, features_of(*vectors, first.image, first.prompt, pooled, first.source)


@dataclass(frozen=True, kw_only=True)
class TableOptions(LabelOptions):
    """One table of labels."""

    data: str
    """The table of labels: parquet, csv, json or json lines, or a pattern of its shards in quotes."""


@dataclass(frozen=True, kw_only=True)
class HeldOutOptions(TableOptions):
    """Which rows heads are measured on."""

    all: bool = False
    """Score every row, those that the head was trained on included."""
    strict: bool = False
    """Refuse a table that shares pictures with training."""

    def open(self, path: str, *heads: str) -> "tuple[Cache, Labels, Features, list[HeldOut]]":
        """The cache at a path, which must be of the heads' backbone, the table's labels and vectors, and what it holds
        out from each head."""
        from embed.cache.store import Cache
        from heads.evaluation.held_out import require_backbone

        cache = Cache.open(path)
        for head in heads:
            require_backbone(head, cache)
        (labels,), features = self.met(cache, [self.data])
        return cache, labels, features, [self.hold_out(head, cache, labels) for head in heads]

    def hold_out(self, head: str, cache: "Cache", labels: "Labels") -> "HeldOut":
        """The rows of a table that are held out from a head."""
        from heads.evaluation.held_out import hold_out

        return hold_out(head, cache, labels, self.all, self.strict)


@dataclass(frozen=True)
class PairOptions:
    """Which pairs of a popularity table are trained on."""

    min_ratio: Annotated[float | None, Range(1)] = None
    """Train only on pairs in which one count is at least this many times the other. By default all pairs teach, clear
    ones more than close ones."""

    def require_use(self, tables: "Sequence[Labels]", losses: Sequence[str], keeps_aside: bool = True) -> None:
        """Raise InputError if --min-ratio is given and chooses no pair: of no table of counts, or with the loss rating
        alone where no pairs are kept aside either."""
        counts = [loss for table, loss in zip(tables, losses, strict=True) if table.kind == "counts"]
        chooses = set(counts) - {"rating"} or (keeps_aside and tables[0].kind == "counts")
        if self.min_ratio is not None and not chooses:
            of = "the loss rating, which has no pairs" if counts else f"tables of {tables[0].kind}"
            raise InputError(f"--min-ratio chooses pairs of counts, and does nothing for {of}; leave it out")


@dataclass(frozen=True)
class HeadTraining(PairOptions):
    """How heads are trained on the vectors of a cache."""

    device: str = "cpu"
    """What computes: cpu or cuda, which must be there."""


def protocol_of(given: "partial[Protocol]", labels: "Labels", seed: int) -> "Protocol":
    """The protocol that a table is measured by. Raise InputError if --min-ratio is given and is not of its kind."""
    if "min_ratio" in given.keywords and labels.kind != "counts":
        raise InputError(
            f"--min-ratio chooses pairs of counts, and does nothing for a table of {labels.kind}; leave it out"
        )
    return given(seed=seed)


def content_ids(cache: "Cache", labels: "Labels", items: "Ints") -> "pa.Array":
    """The ids of every picture and prompt of some items, as an Arrow array."""
    import numpy as np
    import pyarrow as pa

    items = np.unique(items)
    prompts = np.unique(labels.prompt[items])
    pictures = np.unique(labels.image[items])
    if labels.source is not None:
        sources = labels.source[items]
        pictures = np.unique(np.concatenate([pictures, sources[sources >= 0]]))
    images = cache.metadata("images", ["image_id"])["image_id"].take(pa.array(pictures))
    texts = cache.metadata("prompts", ["prompt_id"])["prompt_id"].take(pa.array(prompts[prompts >= 0]))
    return pa.chunked_array([*images.chunks, *texts.chunks], pa.string()).combine_chunks()


def accuracy_lines(found: "Accuracies") -> list[str]:
    """A verdict, the accuracies with their intervals, and by which protocol."""
    from heads.report.figures import ends, number, verdict

    measured = {
        "pair accuracy": found.pair_accuracy,
        "zero shot pair accuracy": found.zero_shot_pair_accuracy,
        "chance": found.chance,
    }
    rows = [(name, number(x.value, ".3f"), ends(x)) for name, x in measured.items() if x]
    names = "head", "zero_shot", "chance"
    accuracy = {name: one.value for name, one in zip(names, measured.values(), strict=True) if one}
    lines = table(("", "mean", "95 % interval"), rows)
    return [verdict(accuracy, found.lead), *lines, protocol_line(found.pairs, found.protocol)]


def protocol_line(pairs: int, protocol: Mapping[str, object]) -> str:
    return (
        f"{pairs} pairs ({protocol['pairs']}), {protocol['folds']} held-out parts, {protocol['average']};"
        f" intervals {protocol['interval']}"
    )


@contextmanager
def tensorboard(folder: Path | None) -> "Iterator[Observer | None]":
    """What writes TensorBoard's files, a run for each stage; None without a folder."""
    with ExitStack() as stack:
        writers: dict[str, SummaryWriter] = {}

        def write(stage: str, step: int, record: Mapping[str, float]) -> None:
            from torch.utils.tensorboard import SummaryWriter

            if stage not in writers:
                writers[stage] = stack.enter_context(SummaryWriter(f"{folder}/{stage}"))
            for name, value in record.items():
                if value == value:  # NaN: an accuracy without validation
                    writers[stage].add_scalar(name, value, step)

        yield write if folder else None


def suggest_uses(head: Path, cache: str, data: str, images_root: str | None = None) -> None:
    """Say what one could do next with a head."""
    root = ["--images-root", images_root] if images_root else []
    suggest(
        ["heads", "evaluate", head, "--cache", cache, "--data", data, *root, "--report", "report.html"],
        ["export", "onnx", head, "--out", head.with_name("bundle")],
    )


def configs(options: Mapping[str, object], seed: int, features: "Features") -> tuple[HeadConfig, TrainConfig]:
    """The configurations of the head and of its training that the options name, theirs being the defaults."""
    shape = {name: value for name, value in options.items() if name in HeadConfig.__dataclass_fields__}
    training = {name: value for name, value in options.items() if name in TrainConfig.__dataclass_fields__}
    if options["head"] == "blend":
        shape.setdefault("landmarks", BLEND_LANDMARKS)
    of_head: Callable[..., HeadConfig] = HeadConfig
    of_training: Callable[..., TrainConfig] = TrainConfig
    head = of_head(options["head"], features.dim, features.pooled_dim, **shape)
    head = replace(head, landmarks=min(head.landmarks, max(1, len(features.image))))
    return head, of_training(seed=seed, **training)


def per_table(loss: str, weights: str | None, tables: int) -> tuple[list[str], list[float]]:
    """A loss and a weight for each table, the first's weight 1."""
    losses = loss.split(",")
    losses = losses * tables if len(losses) == 1 else losses
    numbers = numbers_of("--weights", weights, tables, "tables; give one for each --data")
    if len(losses) != tables:
        raise InputError(f"--loss names {len(losses)} and there are {tables} tables; give one for each --data")
    require_value("--loss", tuple(losses), Loss)
    return losses, [number / numbers[0] for number in numbers]


def numbers_of(option: str, text: str | None, count: int, of: str) -> list[float]:
    """The positive weights between an option's commas, 1 each where it is not given; raise InputError for other numbers
    than of these `count` things."""
    try:
        numbers = [float(number) for number in text.split(",")] if text else [1.0] * count
    except ValueError:
        raise InputError(f"{option} is {text!r}; wanted numbers and commas, such as 1,0.5") from None
    if len(numbers) != count:
        raise InputError(f"{option} names {len(numbers)} and there are {count} {of}")
    if not all(0 < number < float("inf") for number in numbers):
        raise InputError(f"{option} is {text!r}; every weight must be positive")
    return numbers
