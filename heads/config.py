"""What training and evaluation can be told. Imports nothing heavy, so that a command's help is quick."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from embed.modes import parse_mode
from embed.options import Internal, Only, Option, Range, hints_of, metadata, require_valid
from embed.spec import Feature, InputError

Kind = Literal["cosine", "linear", "mlp", "fusion", "kernel", "blend"]
OnTop = Literal["cosine", "linear", "mlp", "fusion", "kernel"]  # of a backbone that moves
Choice = Literal["auto", "cosine", "linear", "mlp", "fusion", "kernel", "blend"]
Loss = Literal["preference", "preference-inbatch", "triplet", "ranking", "listwise", "rating"]
Distance = Literal["squared_euclidean", "euclidean", "cosine"]
Reduction = Literal["mean", "sum"]
Schedule = Literal["constant", "cosine"]
Seed = Annotated[int, Range(0, 2**32 - 1)]

SOLVED = ("linear", "kernel")  # heads that are not trained in steps
STEPPED = ("cosine", "mlp", "fusion")
PICKSCORE_PROMPTS = 1000  # held out by the paper
# What a training in steps goes by where nothing is said.
SMALLEST_BATCH, LARGEST_BATCH, EPOCHS, PATIENCE, FEWEST_STEPS = 32, 16384, 6, 3, 300
MAX_INBATCH = 4096  # pairs of a batch with in-batch negatives, whose similarities are twice its square

# Prompts to compare scores under, where nobody names others.
PROMPTS = (
    "a photo of a cat",
    "a red bicycle leaning against a brick wall, golden hour",
    "smiling face with sunglasses",
    "watercolor painting of a mountain lake at dawn",
    "portrait of an old fisherman, oil on canvas, dramatic light",
    "isometric render of a tiny cozy room, pastel colors",
    "a bowl of ramen with a soft-boiled egg, top view",
    "cyberpunk street in the rain, neon signs, reflections, 35mm",
    "birthday cake",
    "an astronaut riding a horse on the moon",
    "minimalist logo of a fox, flat design, vector art",
    "dog",
)


def picture_inputs(inputs: Sequence[str]) -> dict[str, Feature]:
    """What a head with these inputs needs of the picture tower, by the input's name: the embedding always."""
    features: dict[str, Feature] = {"image_embedding": "projected", "image_pooled": "pooled"}
    return {name: feature for name, feature in features.items() if name == "image_embedding" or name in inputs}


@dataclass(frozen=True)
class HeadConfig:
    """The shape of a head; with its weights, all that is needed to build it again."""

    kind: Annotated[Kind, Internal()]
    dim: Annotated[int, Range(1), Internal()]  # of image_embedding and text_embedding
    pooled_dim: Annotated[int, Range(0), Internal()] = 0  # of image_pooled; 0: there is none
    hidden: Annotated[int, Range(1), Only("head", ("fusion",))] = 128
    """The width of the hidden layer."""
    dropout: Annotated[float, Range(0, below=1), Only("head", ("fusion",))] = 0.5
    """The dropout of the hidden layer."""
    input_dropout: Annotated[float, Range(0, below=1), Only("head", ("fusion",))] = 0.2
    """The dropout of the inputs."""
    reads: Annotated[Literal["both", "image", "text"], Only("head", ("mlp", "fusion", "kernel", "blend"))] = "both"
    """What the head reads: picture and prompt, or one of them alone."""
    activations: Annotated[bool, Only("head", ("mlp",))] = True
    """Make the head affine, as the published ones are: without ReLU between its layers."""
    landmarks: Annotated[int, Range(1), Only("head", ("kernel", "blend"))] = 512
    """The most training items that the head compares with. By default 1024 for blend."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What losses leave to choose; None is a loss's own choice, see `heads.losses`."""

    distance: Annotated[Distance | None, Only("loss", ("triplet",))] = None
    """The distance of pictures from their prompt. By default squared_euclidean."""
    margin: Annotated[float | None, Range(above=0), Only("loss", ("triplet", "ranking"))] = None
    """The margin by which the better one must lead. By default 0.3 for triplet; ranking has none, and with one (HPSv2's
    is 1) it is a hinge."""
    reduction: Annotated[Reduction | None, Only("loss", ("preference", "ranking"))] = None
    """How the losses of a batch become one: as their mean, or as their sum, as in HPSv2. By default mean."""

    def __post_init__(self) -> None:
        require_valid(self)

    def of(self, loss: str) -> dict[str, object]:
        """The arguments chosen for a loss: those it has."""
        chosen = {name: getattr(self, name) for name, users in LOSS_OPTIONS.items() if loss in users}
        return {name: value for name, value in chosen.items() if value is not None}


# What a loss leaves to choose, and the losses that do.
LOSS_OPTIONS: dict[str, tuple[str, ...]] = {
    name: only.values for name, hint in hints_of(LossOptions).items() if (only := metadata(hint, Only))
}


def require_use(options: LossOptions, chosen: Sequence[str]) -> None:
    """Raise InputError for an option that none of the chosen losses uses."""
    for name, users in LOSS_OPTIONS.items():
        if getattr(options, name) is not None and not set(users) & set(chosen):
            raise InputError(
                f"--{name} is of {' and '.join(users)} and does nothing for the loss {' and '.join(chosen)};"
                " leave it out"
            )


@dataclass(frozen=True)
class TrainConfig(LossOptions):
    """How a head is trained; written beside it. `loss` is the measured table's, the loss options are for all tables."""

    loss: Annotated[Loss, Internal()] = "preference"
    learning_rate: Annotated[float, Range(above=0), Only("head", STEPPED)] = 1e-3
    """The highest learning rate, after warm-up."""
    weight_decay: Annotated[float, Range(0), Only("head", STEPPED)] = 1.0
    """The weight decay of AdamW, for matrices."""
    batch_size: Annotated[int | None, Range(1), Only("head", STEPPED)] = None
    """Pairs, groups or ratings of a step. By default 16384, fewer where there are so few that training would take less
    than 300 steps, and 128 for preference-inbatch, as PickScore has it."""
    epochs: Annotated[int | None, Range(1), Only("head", STEPPED)] = None
    """The most epochs. Rows kept aside decide which is the best. By default 6, and more where 6 make less than 300
    steps."""
    patience: Annotated[int | None, Range(1), Only("head", STEPPED)] = None
    """Epochs without a better order of the rows kept aside before training stops. By default 3 where the most are 6,
    and else all."""
    warmup: Annotated[float, Range(0, below=1), Internal()] = 0.05  # share of the steps in which the rate rises
    max_grad_norm: Annotated[float, Range(above=0), Internal()] = 1.0
    penalty: Annotated[float | None, Range(above=0), Only("head", SOLVED)] = None  # see `heads.training.convex`
    """The penalty on the squared weights. By default the one with the least loss on rows kept aside."""
    seed: Annotated[Seed, Internal()] = 0

    def sized(self, examples: int) -> "TrainConfig":
        """The same with what is left to the number of examples filled in."""
        largest = 128 if self.loss == "preference-inbatch" else LARGEST_BATCH  # PickScore's
        batch = self.batch_size or min(largest, max(SMALLEST_BATCH, examples * EPOCHS // FEWEST_STEPS))
        # Gradients of the smallest batches are the noisiest, and so small a table is passed soon: twice as many steps.
        steps = 2 * FEWEST_STEPS if batch <= SMALLEST_BATCH else FEWEST_STEPS
        epochs = self.epochs or max(EPOCHS, -(-steps // max(1, -(-examples // batch))))
        patience = self.patience or (PATIENCE if epochs == EPOCHS else epochs)
        return replace(self, batch_size=batch, epochs=epochs, patience=patience)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss == "preference-inbatch" and (self.batch_size or 0) > MAX_INBATCH:
            raise InputError(
                f"the loss preference-inbatch compares every picture with every prompt of a batch of {self.batch_size}"
                f" pairs; give --batch-size {MAX_INBATCH} or less (PickScore's is 128)"
            )


@dataclass(frozen=True)
class UnfreezeConfig(LossOptions):
    """How a mode is trained. The defaults are Social Reward's, but for the loss: constant rate, no clipping."""

    mode: Annotated[str, Internal()]
    loss: Loss = "preference"
    """The loss, as of `heads train`."""
    learning_rate: Annotated[float, Range(above=0)] = 3e-5
    """The learning rate of the blocks."""
    optimizer: Literal["adam", "adamw"] | None = None
    """The optimizer. By default the one of the mode's paper."""
    weight_decay: Annotated[float, Range(0)] = 0.01
    """The weight decay of adamw."""
    schedule: Schedule = "constant"
    """What becomes of the learning rate after warm-up."""
    warmup: Annotated[float, Range(0, below=1)] = 0.0
    """The share of the steps in which the learning rate rises."""
    batch_size: Annotated[int, Range(1)] = 32
    """Pairs, groups or ratings of a step."""
    accumulate: Annotated[int, Range(1)] = 1
    """The parts of a batch that are computed one after another. In-batch negatives are those of a part."""
    epochs: Annotated[int, Range(1)] = 10
    """Epochs, of which the best on validation is kept."""
    max_grad_norm: Annotated[float | None, Range(above=0)] = None
    """The norm that gradients are clipped to. By default they are not."""
    ema: Annotated[float | None, Range(0, below=1)] = None
    """The decay a step of a running mean of the weights, which is then what is kept."""
    bf16: bool = False
    """Compute the blocks in bfloat16."""
    checkpointing: bool = False
    """Compute blocks twice, and keep less in memory."""
    augment: bool = False
    """Mirror and crop pictures at random, where pixels are trained from, as with --live."""
    head_learning_rate: Annotated[float, Range(above=0)] = 1e-3
    """The learning rate of the head on top."""
    head_weight_decay: Annotated[float, Range(0)] = 1.0
    """The weight decay of the head on top."""
    seed: Annotated[Seed, Internal()] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_mode(self.mode)
        require_use(self, [self.loss])


@dataclass(frozen=True)
class HoldOutConfig:
    """How one part of the rows is held out. Rows of one group stay together."""

    by: Annotated[str | None, Option("--split-by")] = None
    """Hold out whole groups of rows with one value of this column. By default the prompt of comparisons, groups and
    ratings, and the picture of other tables."""
    test_fraction: Annotated[float, Range(above=0, below=1)] = 0.2
    """The share of the groups that is held out, where one part is."""
    seed: Seed = 0
    """The seed of the split and of all that is drawn in training and measuring."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True, kw_only=True)
class SplitConfig(HoldOutConfig):
    """How rows are divided, in folds or otherwise too."""

    folds: Annotated[int | None, Range(2)] = None
    """Hold every group out once, in this many parts, whose heads then say how sure each score is. By default 5 for
    tables of up to 3,000 rows, and one part of larger ones."""
    held_out_prompts: Annotated[int | None, Range(2)] = None
    """The prompts that --split pickscore holds out, of which one half chooses the epoch. By default 1000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_out_prompts is not None:
            if self.by is not None or self.folds is not None:
                raise InputError("--split pickscore holds out prompts in one part; leave out --split-by and --folds")
            if self.held_out_prompts % 2:
                raise InputError(
                    f"--held-out-prompts is {self.held_out_prompts}; wanted an even number: half validate, half test"
                )


@dataclass(frozen=True)
class SweepConfig:
    """How long to search and how to compare."""

    minutes: Annotated[float, Range(above=0)] = 5.0
    """The minutes to search, the last training not included."""
    folds: Annotated[int, Range(2), Internal()] = 3
    seed: Annotated[Seed, Internal()] = 0

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class Protocol:
    """What counts as a pair, and as right. Printed with every number it makes."""

    min_ratio: Annotated[float, Range(1)] = 2.0  # of counts, or of rates
    """Two pictures of a popularity table make a pair if their counts differ at least so many times."""
    max_pairs: Annotated[int, Internal()] = 1_000_000  # of one fold; above it, a uniform sample
    resamples: Annotated[int, Internal()] = 1000  # of the bootstrap over clusters
    seed: Annotated[Seed, Internal()] = 0

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class PromotionConfig:
    """When a new head takes the place of the one that is served."""

    allow_equal: bool = False
    """Promote also a head that is not shown to be better, if it is not worse by more than --margin."""
    margin: Annotated[float, Range(0, 1)] = 0.02
    """How much lower the pair accuracy of a head may be, at the low end of its interval, for --allow-equal."""
    max_p: Annotated[float, Range(above=0, high=1)] = 0.05
    """The p value of the paired test up to which a difference counts."""
    least_pairs: Annotated[int, Range(2)] = 50
    """The votes with a winner on pairs drawn at random that must be there to judge by."""

    def __post_init__(self) -> None:
        require_valid(self)
