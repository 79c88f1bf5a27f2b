"""A head as a bundle's graph has it: taken out of the graph, and run in the place of torch.

Nothing of it is computed anew: its nodes and numbers are copied. Knows no manifest.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embed.ort import require_onnxruntime
from export.graphs.compose import rename
from heads.base import Head

if TYPE_CHECKING:
    from onnx import ModelProto


class KeptHead(Head):
    """Gives (n,) of one value of a graph where a head gives scores."""

    def __init__(self, graph: bytes, inputs: Sequence[str], value: str) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.value = value
        self._session = require_onnxruntime().InferenceSession(graph, providers=["CPUExecutionProvider"])

    def forward(self, **inputs: Tensor) -> Tensor:
        (found,) = self._session.run([self.value], {name: rows.numpy() for name, rows in inputs.items()})
        return torch.from_numpy(found)


def taken_out(model: "ModelProto", name: str, inputs: Sequence[str], values: Mapping[str, str]) -> "ModelProto":
    """What `compose.export_scores` gave for the head of that name, before `many.merge` named it; `values` has what the
    graph calls each of runtime.scoring.bundle.OUTPUTS."""
    from onnx.utils import Extractor

    part = Extractor(model).extract_model(list(inputs), list(values.values()))
    del part.graph.value_info[:]
    plain = {there: value for value, there in values.items()}
    rename(part.graph, lambda given: plain.get(given, given.removeprefix(f"{name}.")))
    return part
