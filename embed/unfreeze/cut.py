"""Split a tower at one of its blocks: the part below never changes, and the part above can be trained.

`above(below(inputs))` equals the tower's own output, to the bit in fp32. Blocks are counted from the top: at depth 3
the last three blocks are above. At depth 0 the whole tower is frozen and there is nothing to cut. At depth WHOLE
everything is above, and the activations are the inputs themselves. Caches, training and families of towers are not
known here."""

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
    """A tower that is split. Each subclass knows how one family of towers is built; see embed.unfreeze.families."""

    def __init__(self, tower: nn.Module, depth: int) -> None:
        super().__init__()
        self.tower: Any = tower  # subclasses know its parts
        self.depth = depth
        self.checkpointing = False  # compute the blocks above again in the backward pass, to use less memory
        count = len(self.blocks())
        if depth != WHOLE and not 0 < depth <= count:
            raise InputError(f"a cut {depth} blocks from the top of {type(tower).__name__}; it has {count}")

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Return the blocks, or stages, between which the tower can be cut, the lowest first."""

    @abstractmethod
    def on_top(self) -> list[nn.Module | nn.Parameter]:
        """Return the parts that follow the blocks and are trained together with the last of them."""

    def projection(self) -> list[nn.Module | nn.Parameter]:
        """Return the parts after `on_top`. They stay frozen unless the whole tower is trained."""
        return []

    def below(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return activations at the cut (n, ...), and how many first tokens of each matter (n,), or None if all do."""
        if self.depth == WHOLE:
            return inputs, None
        x, lengths = self._enter(inputs), self.lengths(inputs)
        for block in self.blocks()[: -self.depth]:
            x = self._block(block, x, lengths)
        return x, lengths

    def above(
        self, values: Tensor, lengths: Tensor | None = None, same_bits: bool = False
    ) -> tuple[Tensor | None, Tensor]:
        """Return the tower's (n, p) features before its projection, and its (n, d) output; neither has unit length.

        The features are None if the projection is not a separate step. Tokens beyond `lengths` may have any finite
        value.

        If the output depends on only one token, the last block computes queries and MLP for that token alone, and the
        result differs by rounding. With `same_bits` it computes them for every token, as the tower does.
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
        """Free the memory of the part below the cut. `below` cannot be used after that."""
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
        """Return (n,) int64: how many first tokens of each input matter, or None if all do."""
        return None

    @abstractmethod
    def _enter(self, inputs: Tensor) -> Tensor:
        """Run the part before the blocks."""

    def _block(self, block: Block, x: Tensor, lengths: Tensor | None) -> Tensor:
        return block(x)

    @abstractmethod
    def _leave(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Run the part after the blocks."""

    def _one_token(self, last: nn.Module) -> bool:
        """Whether the output depends on one token of the last block, and `_leave_at` can use that."""
        return False

    def _leave_at(self, last: nn.Module, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Run the last block for that one token, and the part after it."""
        raise NotImplementedError


def names_of(module: nn.Module, parts: Iterable[nn.Module | nn.Parameter]) -> list[str]:
    """Return the names in `module` of the parameters of `parts`, in the module's order."""
    wanted = {
        id(parameter)
        for part in parts
        for parameter in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    }
    return [name for name, parameter in module.named_parameters() if id(parameter) in wanted]
