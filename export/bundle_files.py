"""Write the files of a bundle, with or without towers: graphs, reference, manifest and card. Then check the bundle."""

import importlib.metadata
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embed.arrays import Array, Float32s
from embed.files import atomic_write, sha256_file
from embed.graphs.trace import OPSET
from embed.ort import require_onnxruntime
from embed.progress import Step
from export import card
from export.graphs import compose
from export.outputs import Outputs
from runtime.config import CUDA_PRECISION, Precision, SessionConfig
from runtime.scoring.bundle import FORMAT, manifest_bytes
from runtime.scoring.manifest import BundleManifest, FileEntry, GraphEntry, Part, Tensors
from runtime.scoring.outputs import spelled
from runtime.scoring.scorer import Scorer

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

OPEN = np.finfo(np.float32).max.item()  # stands for a tolerance that is not known yet
LIBRARIES = ("plaudit", "torch", "open_clip_torch", "timm", "transformers", "onnx", "onnxscript")


def write_graphs(
    folder: Path,
    precision: Precision,
    graphs: Mapping[Precision, Mapping[Part, "ModelProto"]],
    writer: compose.WeightsWriter,
) -> dict[Part, GraphEntry]:
    """Write the graphs of one precision, with their weights in the shared file. Return their manifest entries."""
    entries: dict[Part, GraphEntry] = {}
    for part, model in graphs[precision].items():
        writer.move(model)
        plain = part == "head" or precision == next(iter(graphs))
        name = f"{part}.onnx" if plain else f"{part}.{precision}.onnx"
        with atomic_write(folder / name) as file:
            file.write(model.SerializeToString(deterministic=True))
        graph = model.graph
        entries[part] = {"file": name, "inputs": _signature(graph.input), "outputs": _signature(graph.output)}
    return entries


def _signature(values: Iterable["ValueInfoProto"]) -> Tensors:
    from onnx import helper

    return {
        value.name: (
            str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


def check_graphs(folder: Path) -> None:
    """Check every graph with ONNX's own checker and strict shape inference, which raise if one is wrong."""
    import onnx

    for path in sorted(folder.glob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=True)


def save_reference(folder: Path, outputs: Outputs, vectors: Mapping[str, Float32s], **more: Array) -> list[str]:
    """Write reference.npz: vectors, the arrays in `more`, and torch's scores. Return the names of the scores."""
    scores = {outputs.called(name): found for name, found in outputs.scores(vectors).items()}
    doubts = {outputs.called(name, "uncertainty"): found for name, found in outputs.uncertainties(vectors).items()}
    scores |= doubts
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **more, **scores, **vectors)
    (folder / "reference.npz").write_bytes(buffer.getvalue())
    return list(scores)


def begun_manifest(
    outputs: Outputs,
    made_with: Mapping[str, Any],
    tokenizer: dict[str, object] | None,
    graphs: dict[Precision, dict[Part, GraphEntry]],
    reference: dict[Precision, dict[str, float]],
) -> BundleManifest:
    """Return the manifest before anything is measured. `made_with` holds the backbone's identity and source."""
    first = outputs.heads[0]
    manifest: BundleManifest = {
        "format": FORMAT,
        "opset": OPSET,
        "identity": made_with["identity"],
        "source": made_with["source"],
        "head": {"inputs": list(outputs.inputs), **first.described},  # type: ignore[typeddict-item]
        "precisions": list(graphs),
        "tokenizer": tokenizer,
        "calibration": first.manifest.get("calibration"),
        "provenance": {
            "versions": _versions(),
            "training": first.manifest.get("training"),
            "data": first.manifest.get("data"),
            "split": first.manifest.get("split"),
            "metrics": first.manifest.get("metrics"),
        },
        "graphs": graphs,
        "reference": reference,
    }
    return {**manifest, "outputs": outputs.entries()} if outputs.named else manifest


def _versions() -> dict[str, str]:
    """Return the versions of the libraries that make a bundle. onnxruntime is asked itself, as it has several
    packages."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {**found, "onnxruntime": require_onnxruntime().__version__}


def write_manifest(folder: Path, manifest: BundleManifest) -> BundleManifest:
    """Write bundle.json, with the hash of every other file in the folder, and return it."""
    names = sorted(path.name for path in folder.iterdir() if path.name != "bundle.json")
    files: dict[str, FileEntry] = {
        name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size} for name in names
    }
    complete: BundleManifest = {**manifest, "files": files}
    with atomic_write(folder / "bundle.json") as file:
        file.write(manifest_bytes(complete))
    return complete


def finish(folder: Path, manifest: BundleManifest, step: Step) -> BundleManifest:
    """Write tolerances and card of a bundle whose parity is measured, then check the bundle. Return its manifest."""
    manifest["reference"] = _tolerances(folder, manifest)
    step(1, "checking the bundle")
    (folder / "README.md").write_text(card.model_card(manifest), encoding="utf-8")
    manifest = write_manifest(folder, manifest)
    Scorer.load(folder).check_reference()
    step()
    return manifest


def _tolerances(folder: Path, manifest: BundleManifest) -> dict[Precision, dict[str, float]]:
    """Return how far another machine may be from the reference: twice the largest difference that was seen here.

    At fp32 it is at least the limit of the parity check, because other kernels round differently; at int8 they differ
    much more. Graphs for CUDA that cannot be run here get the tolerance of the fp16 graphs, whose rounding is similar.
    """
    result: dict[Precision, dict[str, float]] = {}
    for precision, figures in manifest["parity"]["precisions"].items():
        seen = Scorer.load(folder, SessionConfig(precision=precision)).check_reference()
        largest = {"score": figures["scores"]["max_score_difference"]}
        largest |= {name: vector["max_difference"] for name, vector in figures["vectors"].items()}
        if uncertainty := figures.get("uncertainty"):
            largest["uncertainty"] = uncertainty["max_difference"]
        least = dict.fromkeys(("score", "uncertainty"), figures["scores"]["limit"]) if precision == "fp32" else {}
        for name, of in figures.get("outputs", {}).items():
            doubt = spelled(name, "uncertainty")
            largest[name] = of["scores"]["max_score_difference"]
            largest[doubt] = of["uncertainty"]["max_difference"] if "uncertainty" in of else 0.0
            least |= dict.fromkeys((name, doubt), of["scores"]["limit"]) if precision == "fp32" else {}
        result[precision] = {
            name: max(2 * max(seen[name], largest[name]), least.get(name, 1e-4))
            for name in manifest["reference"][precision]
        }
    if CUDA_PRECISION in manifest["precisions"] and CUDA_PRECISION not in result:
        result[CUDA_PRECISION] = result["fp16"]
    return result
