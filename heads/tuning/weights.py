"""What of a generator is trained, LoRA or all of it, beside what it was before."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from embed.spec import InputError
from heads.training.loop import replaced
from heads.tuning.families import Family

if TYPE_CHECKING:
    from diffusers import ModelMixin


class Trained:
    """The weights that move. In `untuned()` the module is what it was before."""

    def __init__(self, family: Family, rank: int | None, seed: int = 0, keeps_reference: bool = False) -> None:
        """A LoRA of that rank, or the whole module for None, of which a copy is kept if it is referred to later."""
        self.family, self.rank = family, rank
        self.reference: ModelMixin | None = None
        self.base: dict[str, Tensor] = {}  # on the CPU, where no copy of the module is kept
        if rank is not None:
            _add_lora(family, rank, seed)
        else:
            if keeps_reference:
                self.reference = copy.deepcopy(family.module)
            else:
                self.base = {name: p.detach().to("cpu", copy=True) for name, p in family.module.named_parameters()}
            family.module.requires_grad_(True)
        self.parameters: dict[str, nn.Parameter] = {
            name: p for name, p in family.module.named_parameters() if p.requires_grad
        }

    @property
    def count(self) -> int:
        """How many numbers move."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @contextmanager
    def untuned(self) -> Iterator[None]:
        """The module as it was, inside the block."""
        family = self.family
        if self.rank is not None:
            family.module.disable_adapters()
            try:
                yield
            finally:
                family.module.enable_adapters()
            return
        if self.reference is None:
            with replaced(self.parameters, self.base):
                yield
            return
        tuned, family.module = family.module, self.reference
        try:
            yield
        finally:
            family.module = tuned


def _add_lora(family: Family, rank: int, seed: int) -> None:
    """A LoRA in float32 that changes nothing yet: its second matrices are zero."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(family.targets))
        try:
            family.module.add_adapter(config)
        except ValueError:  # peft's, where no module has such a name
            raise InputError(
                f"the {family.part} has no attention to adapt ({', '.join(family.targets)}); say --whole to train all"
                " of it"
            ) from None
    if family.dtype == torch.float32:
        cast_training_params(family.module, torch.float32)
