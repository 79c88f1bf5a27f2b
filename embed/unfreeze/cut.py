"""A tower in two at one of its blocks: what lies below never changes, what lies above can be trained.

`above(below(inputs))` is the tower's own output, to the bit in fp32. Blocks are counted from the top: at depth 3 the
last three blocks lie above. Depth 0 freezes the whole tower, so that nothing is left to cut; at depth WHOLE everything
lies above, and the activations are the inputs themselves. Knows no cache, no training and no family of towers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embed.modes import WHOLE
from embed.spec import InputError

Block: TypeAlias = Callable[..., Tensor]  # a module, called


class Cut(nn.Module, ABC):
    """One tower, split. A subclass knows how one family of towers is built; see embed.unfreeze.families."""

    def __init__(self, tower: nn.Module, depth: int) -> None:
        super().__init__()
        self.tower: Any = tower  # whose parts a subclass knows
        self.depth = depth
        self.checkpointing = False  # compute the blocks above once more in the backward pass, and keep less
        count = len(self.blocks())
        if depth != WHOLE and not 0 < depth <= count:
            raise InputError(f"a cut {depth} blocks from the top of {type(tower).__name__}; it has {count}")

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The blocks, or stages, between which the tower can be cut, the lowest first."""

    @abstractmethod
    def on_top(self) -> list[nn.Module | nn.Parameter]:
        """What follows the blocks and is trained with the last of them."""

    def projection(self) -> list[nn.Module | nn.Parameter]:
        """What follows that, and stays as it is in every mode but the whole tower's."""
        return []

    def below(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Activations at the cut (n, ...), and how many of their leading tokens matter (n,); None where all do."""
        if self.depth == WHOLE:
            return inputs, None
        x, lengths = self._enter(inputs), self.lengths(inputs)
        for block in self.blocks()[: -self.depth]:
            x = self._block(block, x, lengths)
        return x, lengths

    def above(
        self, values: Tensor, lengths: Tensor | None = None, same_bits: bool = False
    ) -> tuple[Tensor | None, Tensor]:
        """The tower's (n, p) features before its projection (None where that is not a step of its own) and its (n, d)
        output, neither of unit length. Tokens beyond `lengths` may hold anything finite.

        Where the output depends on one token alone, the last block computes queries and MLP for that one only, which
        differs by rounding; `same_bits` computes them for every token, as the tower does.
        """
        x = values
        if self.depth == WHOLE:
            x, lengths = self._enter(values), self.lengths(values)
        *inner, last = self.blocks() if self.depth == WHOLE else self.blocks()[-self.depth :]
        for block in inner:
            x = self._maybe_again(block, x, lengths)
        if not same_bits and self._one_token(last):
            return self._leave_at(last, x, lengths)
        return self._leave(self._maybe_again(last, x, lengths), lengths)

    def release_below(self) -> None:
        """Free the memory of what lies below the cut; `below` is of no more use."""
        if self.depth != WHOLE:
            kept = set(names_of(self.tower, [*self.blocks()[-self.depth :], *self.on_top(), *self.projection()]))
            for name, parameter in self.tower.named_parameters():
                if name not in kept:
                    parameter.data = parameter.data.new_empty(0)

    def _maybe_again(self, block: Block, x: Tensor, lengths: Tensor | None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            x = checkpoint(self._block, block, x, lengths, use_reentrant=False)
            return x
        return self._block(block, x, lengths)

    def lengths(self, inputs: Tensor) -> Tensor | None:
        """(n,) int64: how many leading tokens of each input matter; None where all do."""
        return None

    @abstractmethod
    def _enter(self, inputs: Tensor) -> Tensor:
        """What comes before the blocks."""

    def _block(self, block: Block, x: Tensor, lengths: Tensor | None) -> Tensor:
        return block(x)

    @abstractmethod
    def _leave(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """What comes after the blocks."""

    def _one_token(self, last: nn.Module) -> bool:
        """Whether the output depends on one token of the last block, and `_leave_at` can use that."""
        return False

    def _leave_at(self, last: nn.Module, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The last block for the token that matters, and what comes after it."""
        raise NotImplementedError


def names_of(module: nn.Module, parts: Iterable[nn.Module | nn.Parameter]) -> list[str]:
    """The names in `module` of the parameters of `parts`, in the module's order."""
    wanted = {
        id(parameter)
        for part in parts
        for parameter in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    }
    return [name for name, parameter in module.named_parameters() if id(parameter) in wanted]
