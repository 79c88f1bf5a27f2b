"""Options of tuning a generator. Imports nothing heavy, so that a command's help is quick."""

from dataclasses import dataclass
from typing import Annotated, Literal

from embed.options import Internal, Only, Option, Range, require_valid
from embed.spec import InputError
from heads.config import Seed

Method = Literal["refl", "draft", "dpo"]

REWARD_WEIGHT = {"refl": 1e-3, "draft": 1e-2}  # those of ImageReward and of AlignProp
LATE = 0.75  # ReFL draws its step after this share of them: in ImageReward one of the last 10 of 40


@dataclass(frozen=True)
class TuneConfig:
    """How a generator is tuned. If a method was published with other constants, the option's help says so."""

    method: Annotated[Method, Internal()]
    whole: bool = False
    """Train all weights instead of a LoRA."""
    rank: Annotated[int, Range(1)] = 8
    """The rank of the LoRA. Its alpha is the same number."""
    steps: Annotated[int, Range(1)] = 100
    """The number of training steps. It is rounded up to a multiple of --judge-every."""
    batch_size: Annotated[int, Range(1)] = 8
    """The number of pictures, or pairs of pictures, in a step."""
    accumulate: Annotated[int | None, Range(1)] = None
    """Compute each batch in this many parts, one after another, to save memory. By default as many as --max-vram
    requires, or one without it."""
    learning_rate: Annotated[float | None, Range(above=0)] = None
    """The learning rate. By default 1e-4 for a LoRA, and 1e-5 for whole weights and for dpo."""
    weight_decay: Annotated[float, Range(0)] = 0.01
    """The weight decay of AdamW."""
    max_grad_norm: Annotated[float, Range(above=0)] = 1.0
    """The norm that gradients are clipped to."""
    ema: Annotated[float | None, Range(0, below=1)] = None
    """Keep a running mean of the weights, which is judged and kept in their place. It is multiplied by this factor in
    each step."""
    sampling_steps: Annotated[int, Range(1)] = 40
    """The number of denoising steps for a picture."""
    guidance: Annotated[float | None, Range(1)] = None
    """The strength of classifier-free guidance when pictures are made; 1 turns it off, as in ImageReward's training. By
    default 5, and 2 in pixel space."""
    size: Annotated[int | None, Range(8)] = None
    """The width and height of the pictures in pixels. By default the pipeline's own."""
    draft_steps: Annotated[int, Range(1), Only("method", ("draft",))] = 1
    """The number of last denoising steps through which the gradient goes (K of DRaFT-K)."""
    reward_weight: Annotated[float | None, Range(above=0), Only("method", ("refl", "draft"))] = None
    """The weight of the reward in the loss. By default 1e-3 for refl and 1e-2 for draft, as published."""
    pretrain_weight: Annotated[float, Range(0)] = 1.0
    """The weight of the loss on --pretrain-data."""
    kl_weight: Annotated[float | None, Range(0)] = None
    """The weight of the squared distance from the predictions of the untuned model. By default 1e-2 for refl and draft
    without --pretrain-data, and otherwise 0."""
    beta: Annotated[float | None, Range(above=0), Only("method", ("dpo",))] = None
    """Beta of Diffusion-DPO: a higher value keeps the tuned model closer to the untuned one. By default 5000, and 2000
    for flow models."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """The precision of the frozen weights and of the computation. Trained weights are in fp32."""
    keep_activations: bool = False
    """Keep all activations in memory for the gradient, which is faster. By default blocks are computed twice to save
    memory."""
    max_vram_bytes: Annotated[int | None, Option("--max-vram", unit=1e9), Range(1)] = None
    """The most memory that a step may take, in GB. The batch is computed in parts so that it fits."""
    judge_every: Annotated[int, Range(1)] = 10
    """The number of steps between two looks of the guards."""
    patience: Annotated[int, Range(1)] = 3
    """Stop training after this many looks of the guards without a better judgement."""
    judge_prompts: Annotated[int, Range(1)] = 16
    """The number of prompts to keep aside for the guards and the report. At most half of all prompts are kept aside."""
    judge_pictures: Annotated[int, Range(2)] = 4
    """The number of pictures that the guards make of each prompt."""
    min_diversity: Annotated[float, Range(0, 1)] = 0.8
    """Refuse weights whose pictures have less than this share of the untuned pictures' diversity within a prompt."""
    max_sharpness: Annotated[float, Range(1)] = 2.0
    """Refuse weights whose pictures have more than this multiple of the untuned pictures' energy in high frequencies,
    which is a sign of artifacts such as grids."""
    guards: Annotated[bool, Internal()] = True
    seed: Seed = 0
    """The seed of everything random."""

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
        """The guidance. It must have been set before, if it was None."""
        return self.guidance or 1.0

    def kl(self, pretrains: bool) -> float:
        """The weight of the distance from the untuned model, which depends on whether there is pre-training data."""
        if self.kl_weight is not None:
            return self.kl_weight
        return 0.0 if pretrains or self.method == "dpo" else 1e-2
