"""A head from the graph of a bundle, taken out of it and run with onnxruntime instead of torch.

Nothing is trained or computed again: nodes and numbers are copied. This module does not know manifests.
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
    """A head whose output (n,) is one value of a graph."""

    def __init__(self, graph: bytes, inputs: Sequence[str], value: str) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.value = value
        self._session = require_onnxruntime().InferenceSession(graph, providers=["CPUExecutionProvider"])

    def forward(self, **inputs: Tensor) -> Tensor:
        (found,) = self._session.run([self.value], {name: rows.numpy() for name, rows in inputs.items()})
        return torch.from_numpy(found)


def taken_out(model: "ModelProto", name: str, inputs: Sequence[str], values: Mapping[str, str]) -> "ModelProto":
    """Return the graph that `compose.export_scores` made for the head of that name, before `many.merge` renamed it.

    `values` gives the graph's name of each of runtime.scoring.bundle.OUTPUTS.
    """
    from onnx.utils import Extractor

    part = Extractor(model).extract_model(list(inputs), list(values.values()))
    del part.graph.value_info[:]
    plain = {there: value for value, there in values.items()}
    rename(part.graph, lambda given: plain.get(given, given.removeprefix(f"{name}.")))
    return part
