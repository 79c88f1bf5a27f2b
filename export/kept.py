"""Heads that a bundle has, taken out of its graph as they are, to stand beside another head in a new bundle.

Nothing of them is computed anew: their nodes and numbers are copied, and where the export asks torch for their scores,
onnxruntime gives those of the copy.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from embed.ort import require_onnxruntime
from embed.spec import InputError
from embed.wording import unknown_name
from export.graphs.compose import rename
from export.outputs import PROVENANCE, NamedHead, Outputs
from heads.base import Head
from runtime.scoring.bundle import Bundle
from runtime.scoring.manifest import OutputEntry
from runtime.scoring.outputs import Outputs as ServedOutputs

if TYPE_CHECKING:
    from onnx import ModelProto

    from heads.committee import Committee


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


def outputs_with(bundle: Bundle, new: Sequence[NamedHead]) -> Outputs:
    """The bundle's outputs, these heads in the places of those of their names.

    Raise InputError for a name that no head of the bundle has, and for a bundle whose one output has none.
    """
    entries = [entry for entry in bundle.manifest.get("outputs", []) if entry["kind"] == "head"]
    if not entries:
        raise InputError(f"{bundle.path} has one output, which has no name; export a new bundle in its place")
    names = [entry["name"] for entry in entries]
    for one in new:
        if one.name not in names:
            raise unknown_name(f"head in {bundle.path}", one.name, names)
    kept = {one.name: one for one in kept_heads(bundle, [name for name in names if name not in {h.name for h in new}])}
    heads = kept | {one.name: one for one in new}
    return Outputs.of_bundle(bundle.manifest, [heads[name] for name in names])


def kept_heads(bundle: Bundle, names: Sequence[str]) -> list[NamedHead]:
    """Heads of the bundle by their names; raise InputError where its graphs are of another version of ONNX."""
    import onnx

    from embed.graphs.trace import OPSET

    if bundle.manifest["opset"] != OPSET:
        raise InputError(f"{bundle.path} was exported by another plaudit; export it again from all of its heads")
    graph = bundle.graph(next(iter(bundle.graphs)), "head")
    model = onnx.load(str(bundle.path / graph.file))
    served = {output.name: output for output in ServedOutputs.of(bundle.manifest, graph.outputs).all}
    entries = {entry["name"]: entry for entry in bundle.manifest.get("outputs", [])}
    return [_kept(bundle, entries[name], _taken_out(model, name, entries[name], served[name].values)) for name in names]


def _kept(bundle: Bundle, entry: OutputEntry, graph: "ModelProto") -> NamedHead:
    provenance = entry.get("provenance", {})
    manifest: dict[str, Any] = {
        "head": entry["config"],
        "committee": entry.get("committee"),
        "calibration": entry.get("calibration"),
        "identity": bundle.manifest["identity"],
        "source": bundle.manifest["source"],
        "decoding": bundle.manifest.get("decoding"),
        **{name: provenance.get(name) for name in PROVENANCE},
    }
    whole, inputs = graph.SerializeToString(), entry["inputs"]
    doubt = KeptHead(whole, inputs, "uncertainty") if entry.get("committee") else None
    score = KeptHead(whole, inputs, "score")
    return NamedHead(entry["name"], score, cast("Committee | None", doubt), manifest, graph)


def _taken_out(model: "ModelProto", name: str, entry: OutputEntry, values: Any) -> "ModelProto":
    """What `export.graphs.compose.export_scores` gave for that head, before `many.merge` named it."""
    from onnx.utils import Extractor

    part = Extractor(model).extract_model(list(entry["inputs"]), list(values.values()))
    del part.graph.value_info[:]
    plain = {there: value for value, there in values.items()}
    rename(part.graph, lambda given: plain.get(given, given.removeprefix(f"{name}.")))
    return part
