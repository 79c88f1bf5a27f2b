"""Options of training and evaluation. Imports nothing heavy, so that a command's help is quick."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from embed.modes import parse_mode
from embed.options import Internal, Only, Option, Range, hints_of, metadata, require_valid
from embed.spec import Feature, InputError

Kind = Literal["cosine", "linear", "mlp", "fusion", "kernel", "blend"]
OnTop = Literal["cosine", "linear", "mlp", "fusion", "kernel"]  # for unfrozen backbones
Choice = Literal["auto", "cosine", "linear", "mlp", "fusion", "kernel", "blend"]
Loss = Literal["preference", "preference-inbatch", "triplet", "ranking", "listwise", "rating"]
Distance = Literal["squared_euclidean", "euclidean", "cosine"]
Reduction = Literal["mean", "sum"]
Schedule = Literal["constant", "cosine"]
Seed = Annotated[int, Range(0, 2**32 - 1)]

SOLVED = ("linear", "kernel")  # heads that a solver fits, not steps of an optimizer
STEPPED = ("cosine", "mlp", "fusion")
PICKSCORE_PROMPTS = 1000  # as many as the paper holds out
# Defaults of a training in steps.
SMALLEST_BATCH, LARGEST_BATCH, EPOCHS, PATIENCE, FEWEST_STEPS = 32, 16384, 6, 3, 300
MAX_INBATCH = 4096  # pairs in a batch with in-batch negatives; memory grows with its square

# Prompts to compare scores under, if the user gives none.
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
    """The features of the picture tower that a head with these inputs needs, by the name of the input. The embedding is
    always among them."""
    features: dict[str, Feature] = {"image_embedding": "projected", "image_pooled": "pooled"}
    return {name: feature for name, feature in features.items() if name == "image_embedding" or name in inputs}


@dataclass(frozen=True)
class HeadConfig:
    """The shape of a head. Together with the weights it is enough to build the head again."""

    kind: Annotated[Kind, Internal()]
    dim: Annotated[int, Range(1), Internal()]  # of image_embedding and text_embedding
    pooled_dim: Annotated[int, Range(0), Internal()] = 0  # length of image_pooled, 0 if there is none
    hidden: Annotated[int, Range(1), Only("head", ("fusion",))] = 128
    """The width of the hidden layer."""
    dropout: Annotated[float, Range(0, below=1), Only("head", ("fusion",))] = 0.5
    """The dropout of the hidden layer."""
    input_dropout: Annotated[float, Range(0, below=1), Only("head", ("fusion",))] = 0.2
    """The dropout of the inputs."""
    reads: Annotated[Literal["both", "image", "text", "all"], Only("head", ("mlp", "fusion", "kernel", "blend"))] = (
        "both"
    )
    """What the head reads: picture and prompt, only one of them, or all, which adds the source picture that the picture
    was made from. For tables with source pictures the default is all, except for blend."""
    activations: Annotated[bool, Only("head", ("mlp",))] = True
    """Leave out the ReLU between the layers, so that the head is affine like the published ones."""
    landmarks: Annotated[int, Range(1), Only("head", ("kernel", "blend"))] = 512
    """The largest number of training items that the head compares a new one with. The default for blend is 1024."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options of the losses. With None the default of the loss is used (see `heads.losses`)."""

    distance: Annotated[Distance | None, Only("loss", ("triplet",))] = None
    """The measure of the distance between a picture and its prompt. By default squared_euclidean."""
    margin: Annotated[float | None, Range(above=0), Only("loss", ("triplet", "ranking"))] = None
    """The margin by which the better picture must lead. By default 0.3 for triplet. By default ranking has no margin;
    with a margin of 1 it is the hinge loss of HPSv2."""
    reduction: Annotated[Reduction | None, Only("loss", ("preference", "ranking"))] = None
    """Average the losses of a batch, or add them up as in HPSv2. By default mean."""

    def __post_init__(self) -> None:
        require_valid(self)

    def of(self, loss: str) -> dict[str, object]:
        """The chosen options that this loss takes, by name."""
        chosen = {name: getattr(self, name) for name, users in LOSS_OPTIONS.items() if loss in users}
        return {name: value for name, value in chosen.items() if value is not None}


# The options of losses, and the losses that take each.
LOSS_OPTIONS: dict[str, tuple[str, ...]] = {
    name: only.values for name, hint in hints_of(LossOptions).items() if (only := metadata(hint, Only))
}


def require_use(options: LossOptions, chosen: Sequence[str]) -> None:
    """Raise InputError for an option that none of the chosen losses uses."""
    for name, users in LOSS_OPTIONS.items():
        if getattr(options, name) is not None and not set(users) & set(chosen):
            raise InputError(
                f"--{name} is for {' and '.join(users)} and does nothing for the loss {' and '.join(chosen)};"
                " leave it out"
            )


@dataclass(frozen=True)
class TrainConfig(LossOptions):
    """How a head is trained. It is stored with the head. `loss` is the loss of the measured table; the options of
    losses hold for all tables."""

    loss: Annotated[Loss, Internal()] = "preference"
    learning_rate: Annotated[float, Range(above=0), Only("head", STEPPED)] = 1e-3
    """The highest learning rate, after warm-up."""
    weight_decay: Annotated[float, Range(0), Only("head", STEPPED)] = 1.0
    """The weight decay of AdamW. It applies to matrices, and not to biases."""
    batch_size: Annotated[int | None, Range(1), Only("head", STEPPED)] = None
    """The number of pairs, groups or ratings in a step. By default 16384, or fewer if training would otherwise take
    less than 300 steps. For preference-inbatch the default is 128, as in PickScore."""
    epochs: Annotated[int | None, Range(1), Only("head", STEPPED)] = None
    """The largest number of epochs. Validation rows decide which epoch is the best. By default 6, or more if 6 make
    less than 300 steps."""
    patience: Annotated[int | None, Range(1), Only("head", STEPPED)] = None
    """Stop after this many epochs without a better accuracy on validation rows. By default 3 with 6 epochs; with any
    other number of epochs training does not stop early."""
    warmup: Annotated[float, Range(0, below=1), Internal()] = 0.05  # share of steps in which the rate rises
    max_grad_norm: Annotated[float, Range(above=0), Internal()] = 1.0
    bf16: Annotated[bool, Only("head", STEPPED)] = False
    """Compute the head's products in bfloat16 while it is trained, with --device cuda. Weights, losses and scores stay
    in float32."""
    penalty: Annotated[float | None, Range(above=0), Only("head", SOLVED)] = None  # see `heads.training.convex`
    """The penalty on the squared weights. By default the one with the lowest loss on validation rows."""
    seed: Annotated[Seed, Internal()] = 0

    def sized(self, examples: int) -> "TrainConfig":
        """The same options, with those that are None filled in to suit the number of examples."""
        largest = 128 if self.loss == "preference-inbatch" else LARGEST_BATCH  # as in PickScore
        batch = self.batch_size or min(largest, max(SMALLEST_BATCH, examples * EPOCHS // FEWEST_STEPS))
        # The smallest batches have the noisiest gradients, and steps on so small a table are quick: take twice as many.
        steps = 2 * FEWEST_STEPS if batch <= SMALLEST_BATCH else FEWEST_STEPS
        epochs = self.epochs or max(EPOCHS, -(-steps // max(1, -(-examples // batch))))
        patience = self.patience or (PATIENCE if epochs == EPOCHS else epochs)
        return replace(self, batch_size=batch, epochs=epochs, patience=patience)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss == "preference-inbatch" and (self.batch_size or 0) > MAX_INBATCH:
            raise InputError(
                f"the loss preference-inbatch compares every picture with every prompt in a batch of {self.batch_size}"
                f" pairs; give --batch-size {MAX_INBATCH} or less (PickScore has 128)"
            )


@dataclass(frozen=True)
class UnfreezeConfig(LossOptions):
    """How unfrozen blocks are trained. Except for the loss, the defaults are those of Social Reward: a constant
    learning rate and no clipping."""

    mode: Annotated[str, Internal()]
    loss: Loss = "preference"
    """The loss, as for `heads train`."""
    learning_rate: Annotated[float, Range(above=0)] = 3e-5
    """The learning rate of the blocks."""
    optimizer: Literal["adam", "adamw"] | None = None
    """The optimizer. By default the one of the mode's paper."""
    weight_decay: Annotated[float, Range(0)] = 0.01
    """The weight decay of adamw."""
    schedule: Schedule = "constant"
    """How the learning rate changes after warm-up."""
    warmup: Annotated[float, Range(0, below=1)] = 0.0
    """The share of the steps in which the learning rate rises."""
    batch_size: Annotated[int, Range(1)] = 32
    """The number of pairs, groups or ratings in a step."""
    accumulate: Annotated[int, Range(1)] = 1
    """Compute each batch in this many parts, one after another, to save memory. In-batch negatives are taken from the
    same part."""
    epochs: Annotated[int, Range(1)] = 10
    """The number of epochs. The one that is best on validation is kept."""
    epoch_size: Annotated[int | None, Range(1)] = None
    """The number of pairs, groups or ratings in an epoch. Each epoch draws its own. By default all, but at most 8 pairs
    for each row of the table."""
    max_grad_norm: Annotated[float | None, Range(above=0)] = None
    """The norm that gradients are clipped to. By default they are not clipped."""
    ema: Annotated[float | None, Range(0, below=1)] = None
    """Keep a running mean of the weights in place of the last weights. It is multiplied by this factor in each step."""
    bf16: bool = False
    """Compute the blocks in bfloat16."""
    checkpointing: bool = False
    """Save memory: compute the blocks a second time for the gradients."""
    augment: bool = False
    """Mirror and crop pictures at random. This works only with --live, which trains from pixels."""
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
    """The rows to hold out. Rows of one group stay together."""

    by: Annotated[str | None, Option("--split-by")] = None
    """Hold out whole groups of rows that share a value of this column. By default groups share the prompt in tables of
    comparisons, groups or ratings, and the picture in other tables."""
    test_fraction: Annotated[float, Range(above=0, below=1)] = 0.2
    """The share of the groups to hold out. It has no effect with folds."""
    seed: Seed = 0
    """The seed of the split, and of everything random in training and measuring."""

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True, kw_only=True)
class SplitConfig(HoldOutConfig):
    """How rows are divided: with one held-out part, in folds, or as PickScore does."""

    folds: Annotated[int | None, Range(2)] = None
    """Divide the groups into this many parts, and hold out each part once. The heads of the parts then tell how
    uncertain each score is. By default 5 for tables of up to 3,000 rows, and one part for larger ones."""
    held_out_prompts: Annotated[int | None, Range(2)] = None
    """The number of prompts that --split pickscore holds out. One half of them chooses the epoch. By default 1000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.held_out_prompts is not None:
            if self.by is not None or self.folds is not None:
                raise InputError("--split pickscore holds out prompts in one part; leave out --split-by and --folds")
            if self.held_out_prompts % 2:
                raise InputError(
                    f"--held-out-prompts is {self.held_out_prompts}; wanted an even number, for two halves"
                )


@dataclass(frozen=True)
class SweepConfig:
    """How long to search and how to compare."""

    minutes: Annotated[float, Range(above=0)] = 5.0
    """The number of minutes to search. A last training follows."""
    folds: Annotated[int, Range(2), Internal()] = 3
    seed: Annotated[Seed, Internal()] = 0

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class Protocol:
    """How pairs are formed and scored. It is stored and printed beside every metric."""

    min_ratio: Annotated[float, Range(1)] = 2.0  # ratio of counts, or of rates
    """Two pictures of a popularity table make a pair if one count is at least this many times the other."""
    max_pairs: Annotated[int, Internal()] = 1_000_000  # in one fold; of more pairs a uniform sample is measured
    resamples: Annotated[int, Internal()] = 1000  # resamples of the bootstrap over clusters
    seed: Annotated[Seed, Internal()] = 0

    def __post_init__(self) -> None:
        require_valid(self)


@dataclass(frozen=True)
class PromotionConfig:
    """When a new head replaces the one that is served."""

    allow_equal: bool = False
    """Also promote a head that is not proven better, if it is not worse by more than --equal-within."""
    equal_within: Annotated[float, Range(0, 1)] = 0.02
    """For --allow-equal: how much lower the new head's pair accuracy may be, by the low end of the interval of the
    difference."""
    max_p: Annotated[float, Range(above=0, high=1)] = 0.05
    """The largest p value of the paired test at which a difference counts."""
    least_pairs: Annotated[int, Range(2)] = 50
    """The least number of votes to judge by. Only votes with a winner on pairs drawn at random count."""

    def __post_init__(self) -> None:
        require_valid(self)
