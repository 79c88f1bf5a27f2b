"""The trained weights of a generator, a LoRA or all of them, and a way back to the untuned ones."""

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
    """The trained weights. Inside `untuned()` the module has its original weights."""

    def __init__(self, family: Family, rank: int | None, seed: int = 0, keeps_reference: bool = False) -> None:
        """Train a LoRA of that rank, or with None the whole module. With `keeps_reference` a copy of the whole module
        is kept."""
        self.family, self.rank = family, rank
        self.reference: ModelMixin | None = None
        self.base: dict[str, Tensor] = {}  # original weights on the CPU, if no copy of the module is kept
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
        """The number of trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @contextmanager
    def untuned(self) -> Iterator[None]:
        """Inside the block, the module has its original weights."""
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
    """Add a LoRA in float32. It changes nothing yet, because its second matrices are zero."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(family.targets))
        try:
            family.module.add_adapter(config)
        except ValueError:  # peft raises it if no module has such a name
            raise InputError(
                f"the {family.part} has no attention to adapt ({', '.join(family.targets)}); give --whole to train all"
                " of it"
            ) from None
    if family.dtype == torch.float32:
        cast_training_params(family.module, torch.float32)
