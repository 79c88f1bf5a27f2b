"""Train one model with several processes, each with its share of every batch's pictures and prompts.

Vectors are gathered with their gradients and every process computes the loss of the whole batch, as PickScore does, so
that losses over pairs within a batch are the same for any number of processes. Then gradients are averaged. Started by
`accelerate launch -m heads unfreeze ...`.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from embed.arrays import Ints
from embed.spec import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Ranks:
    """This process among `count`. With a single process, all functions here do nothing."""

    def __init__(self, accelerator: "Accelerator | None" = None) -> None:
        self._accelerator = accelerator
        self.count: int = 1 if accelerator is None else accelerator.num_processes
        self.rank: int = 0 if accelerator is None else accelerator.process_index

    def share(self, rows: Ints) -> Ints:
        """This process's rows of a batch. Every process gets equally many; the first row is repeated to fill up."""
        if self.count == 1:
            return rows
        filled = np.concatenate([rows, np.repeat(rows[:1], -len(rows) % self.count)])
        return filled[self.rank :: self.count]

    def gather(self, vectors: Tensor, count: int) -> Tensor:
        """(count, d) the vectors of the whole batch in its order, gathered from every process's share."""
        if self.count == 1:
            return vectors
        shares: Tensor = _Gather.apply(vectors, self.count, self.rank)
        return shares.transpose(0, 1).reshape(-1, vectors.shape[1])[:count]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        if self._accelerator and self.count > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = self._accelerator.reduce(parameter.grad, "mean")

    def mean(self, value: float) -> float:
        """The mean of a number over the processes, so that all take the same decisions."""
        if self._accelerator is None or self.count == 1:
            return value
        told = torch.tensor(value, device=self._accelerator.device)
        return float(self._accelerator.reduce(told, "mean"))

    def wait(self) -> None:
        """Wait until all processes have arrived here."""
        if self._accelerator and self.count > 1:
            self._accelerator.wait_for_everyone()


class _Gather(torch.autograd.Function):
    """The tensors (count, n, d) of all processes. Every process's loss adds to the gradient of every vector."""

    @staticmethod
    def forward(context: Any, vectors: Tensor, count: int, rank: int) -> Tensor:
        context.rank = rank
        gathered = [torch.empty_like(vectors) for _ in range(count)]
        torch.distributed.all_gather(gathered, vectors.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient[context.rank], None, None


def find_ranks(device: str) -> Ranks:
    """The processes that `accelerate launch` or torchrun started, or only this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    try:
        from accelerate import Accelerator
    except ImportError:
        raise InputError("several processes need accelerate; run: pip install 'plaudit[distributed]'") from None
    return Ranks(Accelerator(cpu=device == "cpu"))
