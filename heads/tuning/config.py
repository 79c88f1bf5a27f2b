"""What tuning a generator can be told. Imports nothing heavy, so that a command's help is quick."""

from dataclasses import dataclass
from typing import Annotated, Literal

from embed.options import Internal, Only, Option, Range, require_valid
from embed.spec import InputError
from heads.config import Seed

Method = Literal["refl", "draft", "dpo"]

REWARD_WEIGHT = {"refl": 1e-3, "draft": 1e-2}  # ImageReward's, AlignProp's
LATE = 0.75  # where ReFL's steps with a gradient begin: ImageReward draws one of the last 10 of 40


@dataclass(frozen=True)
class TuneConfig:
    """How a generator is tuned. Where a method was published with other constants, its option's help says so."""

    method: Annotated[Method, Internal()]
    whole: bool = False
    """Train all weights in place of a LoRA."""
    rank: Annotated[int, Range(1)] = 8
    """The rank of the LoRA, and its alpha."""
    steps: Annotated[int, Range(1)] = 100
    """The steps of training, rounded up to a whole number of looks."""
    batch_size: Annotated[int, Range(1)] = 8
    """Pictures, or pairs of them, of a step."""
    accumulate: Annotated[int | None, Range(1)] = None
    """The parts of a batch that are computed one after another, to need less memory. By default as many as --max-vram
    asks for, and else one."""
    learning_rate: Annotated[float | None, Range(above=0)] = None
    """The learning rate. By default 1e-4 for a LoRA, and 1e-5 for whole weights and for dpo."""
    weight_decay: Annotated[float, Range(0)] = 0.01
    """The weight decay of AdamW."""
    max_grad_norm: Annotated[float, Range(above=0)] = 1.0
    """The norm that gradients are clipped to."""
    ema: Annotated[float | None, Range(0, below=1)] = None
    """The decay a step of a running mean of the weights, which is then what is judged and kept."""
    sampling_steps: Annotated[int, Range(1)] = 40
    """The steps in which a picture is made."""
    guidance: Annotated[float | None, Range(1)] = None
    """The weight of the prompt against no prompt (classifier-free guidance) as pictures are made; 1 is without, as
    ImageReward trains. By default 5, and 2 in pixel space."""
    size: Annotated[int | None, Range(8)] = None
    """The width and height of the pictures. By default what the pipeline makes."""
    draft_steps: Annotated[int, Range(1), Only("method", ("draft",))] = 1
    """The last steps of a picture through which the gradient goes (K of DRaFT-K)."""
    reward_weight: Annotated[float | None, Range(above=0), Only("method", ("refl", "draft"))] = None
    """The weight of the reward in the loss. By default 1e-3 for refl and 1e-2 for draft, as published."""
    pretrain_weight: Annotated[float, Range(0)] = 1.0
    """The weight of the loss on --pretrain-data."""
    kl_weight: Annotated[float | None, Range(0)] = None
    """The weight of the squared distance from what the untuned model predicts. By default 1e-2 for refl and draft
    without --pretrain-data, and else 0."""
    beta: Annotated[float | None, Range(above=0), Only("method", ("dpo",))] = None
    """How strongly pairs are believed. By default 5000, and 2000 for flow models."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """The precision of the frozen weights and of what is computed. What is trained is in fp32."""
    keep_activations: bool = False
    """Keep all that the gradient needs in memory: faster. By default blocks are computed twice."""
    max_vram_bytes: Annotated[int | None, Option("--max-vram", unit=1e9), Range(1)] = None
    """The GB of memory that a step may take; the batch is cut in parts so that it does."""
    judge_every: Annotated[int, Range(1)] = 10
    """The steps between two looks of the guards."""
    patience: Annotated[int, Range(1)] = 3
    """The looks without a better judgement after which training stops."""
    judge_prompts: Annotated[int, Range(1)] = 16
    """The prompts that are kept aside for the guards and the report. At most half of all are."""
    judge_pictures: Annotated[int, Range(2)] = 4
    """The pictures that the guards make of each prompt."""
    min_diversity: Annotated[float, Range(0, 1)] = 0.8
    """The share of the untuned pictures' diversity within a prompt below which nothing is kept."""
    max_sharpness: Annotated[float, Range(1)] = 2.0
    """The multiple of the untuned pictures' energy in high frequencies above which nothing is kept: grids."""
    guards: Annotated[bool, Internal()] = True
    seed: Seed = 0
    """The seed of all that is drawn."""

    def __post_init__(self) -> None:
        require_valid(self)
        if self.draft_steps > self.sampling_steps:
            raise InputError(
                f"--draft-steps {self.draft_steps} is more than the {self.sampling_steps} steps of a picture; lower it,"
                " or raise --sampling-steps"
            )
        of = {"beta": ("dpo",), "reward_weight": ("refl", "draft")}
        for name, methods in of.items():
            if getattr(self, name) is not None and self.method not in methods:
                option = name.replace("_", "-")
                raise InputError(f"--{option} does nothing for the method {self.method}; leave it out")

    @property
    def rate(self) -> float:
        """The learning rate."""
        gentle = self.whole or self.method == "dpo"
        return self.learning_rate or (1e-5 if gentle else 1e-4)

    @property
    def strength(self) -> float:
        """The guidance, which by then is known."""
        return self.guidance or 1.0

    def kl(self, pretrains: bool) -> float:
        """The weight of the distance from the untuned model."""
        if self.kl_weight is not None:
            return self.kl_weight
        return 0.0 if pretrains or self.method == "dpo" else 1e-2
