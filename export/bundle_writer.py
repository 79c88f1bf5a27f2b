"""Backbone and head in torch to a bundle on disk, proven against torch before it takes its place.

The bundle is built in a folder beside its destination and opened with the runtime's own `Scorer`, so that what is
compared with torch is what will serve. Only when it agrees is it renamed into place.
"""

import gc
import importlib.metadata
import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embed.arrays import UInt8s
from embed.files import atomic_write, replacing, sha256_file
from embed.graphs.precision import is_convolutional, to_fp16, to_int8
from embed.graphs.trace import OPSET
from embed.inputs import vocabulary
from embed.inputs.images import ImageError, load_pixels
from embed.inputs.pixels import preprocess
from embed.inputs.tokenizer import Tokenizer
from embed.ort import require_onnxruntime
from embed.progress import Progress, Step, silent
from embed.spec import Identity, InputError, require_same_identity
from export import card, compose, parity
from export.config import ExportConfig
from export.measure import measure, torch_scores, torch_vectors
from heads.config import PROMPTS
from heads.evaluation.calibration import Curve, Temperature
from runtime.config import Precision, SessionConfig
from runtime.scoring.bundle import (
    FORMAT,
    WEIGHTS_FILE,
    BundleManifest,
    FileEntry,
    GraphEntry,
    Part,
    Tensors,
    manifest_bytes,
)
from runtime.scoring.scorer import Scorer

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

    from embed.backbones.backbone import Backbone
    from heads.committee import Committee
    from heads.models import Head

logger = logging.getLogger(__name__)

REFERENCE_ROWS = 4
CALIBRATION_BATCH = 16  # pictures
LIBRARIES = ("plaudit", "torch", "open_clip_torch", "timm", "transformers", "onnx", "onnxscript")


def export_bundle(
    out: Path,
    backbone: "Backbone",
    head: "Head",
    head_manifest: Mapping[str, Any],
    config: ExportConfig,
    progress: Progress = silent,
    overwrite: bool = False,
    committee: "Committee | None" = None,
) -> BundleManifest:
    """Write the bundle to `out` (see embed.files.replacing) and return its manifest; with the committee of the head,
    it says how sure each score is.

    Raise ParityError, and write nothing, if it is off.
    """
    require_same_identity(
        Identity.from_json(head_manifest["identity"]), "the head", backbone.identity, "the backbone loaded for it"
    )
    with replacing(out, "bundle", overwrite) as folder, progress(5, "steps", "export") as step:
        return _build(folder, backbone, head, committee, head_manifest, config, step)


def _build(
    folder: Path,
    backbone: "Backbone",
    head: "Head",
    committee: "Committee | None",
    head_manifest: Mapping[str, Any],
    config: ExportConfig,
    step: Step,
) -> BundleManifest:
    step(0, "exporting the towers")
    reads_text = "text_embedding" in head.inputs
    shortens = reads_text and compose.text_shortens(backbone, config.prompts)
    tokenizer = _write_tokenizer(folder, backbone, shortens, config.prompts) if reads_text else None
    parts = _export_parts(backbone, head, committee, shortens, head_manifest.get("calibration"))
    step(2, "writing the graphs")
    calibration, pictures = _divide(parts["image"], config)
    with atomic_write(folder / WEIGHTS_FILE) as weights:
        writer = compose.WeightsWriter(weights)
        pixels = _calibration_pixels(calibration, backbone.identity)
        at = {precision: _graphs_at(precision, parts, pixels) for precision in config.precisions}
        graphs = {name: _write_graphs(folder, name, at, writer) for name in at}
    _check_graphs(folder)
    manifest: BundleManifest = {
        "format": FORMAT,
        "opset": OPSET,
        "identity": backbone.identity.to_json(),
        "source": asdict(backbone.source),
        "head": {
            "inputs": list(head.inputs),
            "config": dict(head_manifest["head"]),
            "committee": {"members": len(committee.members), "groups": committee.groups} if committee else None,
        },
        "precisions": list(config.precisions),
        "tokenizer": tokenizer,
        "calibration": head_manifest.get("calibration"),
        "provenance": {
            "versions": _versions(),
            "training": head_manifest.get("training"),
            "data": head_manifest.get("data"),
            "split": head_manifest.get("split"),
            "metrics": head_manifest.get("metrics"),
        },
        "graphs": graphs,
        "reference": _write_reference(folder, backbone, head, committee, config.precisions),
    }
    _write_manifest(folder, manifest)
    step(1, "comparing with torch")
    # The exporter leaves hundreds of megabytes in reference cycles, as large as the model; they would add to the
    # sessions that are opened next.
    del parts, at
    gc.collect()
    manifest["parity"] = measure(folder, backbone, head, replace(config, pictures=pictures), committee)
    manifest["reference"] = _tolerances(folder, manifest)
    step(1, "checking the bundle")
    (folder / "README.md").write_text(card.model_card(manifest), encoding="utf-8")
    manifest = _write_manifest(folder, manifest)
    Scorer.load(folder).check_reference()
    step()
    return manifest


def _export_parts(
    backbone: "Backbone",
    head: "Head",
    committee: "Committee | None",
    shortens: bool,
    calibration: Mapping[str, Any] | None,
) -> dict[Part, "ModelProto"]:
    """The parts of the bundle's graphs at fp32; "text" only where the head reads it."""
    image = compose.export_image(backbone, head.inputs)
    parts: dict[Part, ModelProto] = {"image": image}
    widths = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in image.graph.output}
    if "text_embedding" in head.inputs:
        parts["text"] = compose.export_text(backbone, shortens)
        widths["text_embedding"] = backbone.identity.dim
    fitted = calibration or {}
    temperature = Temperature.from_json(fitted["temperature"]) if fitted.get("temperature") else None
    percentiles = Curve.from_json(fitted["percentiles"]) if fitted.get("percentiles") else None
    graph = compose.export_head(head, widths)
    graph = compose.add_committee(graph, committee, widths) if committee else graph
    parts["head"] = compose.calibrate(graph, temperature, percentiles)
    return parts


def _divide(image: "ModelProto", config: ExportConfig) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The pictures that calibrate a convolution trunk's int8, and the ones that all is measured on."""
    if set(config.precisions) != {"fp32"} and not config.pictures:
        raise InputError("fp16 and int8 are measured on real pictures; add --images FOLDER")
    if "int8" not in config.precisions or not is_convolutional(image):
        return (), config.pictures
    if len(config.pictures) < 8:
        raise InputError(f"{len(config.pictures)} pictures are too few to calibrate int8 and to measure it; give 8")
    return config.pictures[::4], tuple(p for i, p in enumerate(config.pictures) if i % 4)


def _calibration_pixels(paths: Sequence[Path], identity: Identity) -> list[UInt8s]:
    """Batches (n, h, w, 3) of the pictures that can be read."""
    pixels = []
    for path in paths:
        try:
            pixels.append(load_pixels(path.read_bytes(), identity.preprocess)[0])
        except ImageError as error:
            logger.warning(f"{path}: {error}")
    return [np.stack(pixels[start : start + CALIBRATION_BATCH]) for start in range(0, len(pixels), CALIBRATION_BATCH)]


def _graphs_at(
    precision: Precision, parts: Mapping[Part, "ModelProto"], pixels: Sequence[UInt8s]
) -> dict[Part, "ModelProto"]:
    """Every graph of the bundle at a precision. The head is small and stays in float32."""
    convert: dict[Precision, Callable[[Part], ModelProto]] = {
        "fp32": lambda part: parts[part],
        "fp16": lambda part: to_fp16(parts[part]),
        "int8": lambda part: to_int8(parts[part], pixels if part == "image" else ()),
    }
    towers: dict[Part, ModelProto] = {part: convert[precision](part) for part in parts if part != "head"}
    graphs = {**towers, "head": parts["head"]}
    return {**graphs, "model": compose.join(towers["image"], towers.get("text"), parts["head"])}


def _write_graphs(
    folder: Path,
    precision: Precision,
    graphs: Mapping[Precision, Mapping[Part, "ModelProto"]],
    writer: compose.WeightsWriter,
) -> dict[Part, GraphEntry]:
    """Write one precision's graphs, their weights moved to the shared file; returns their entries for the manifest."""
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


def _check_graphs(folder: Path) -> None:
    """The checker and strict shape inference of ONNX itself over every graph."""
    import onnx

    for path in sorted(folder.glob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=True)


def _versions() -> dict[str, str]:
    """Of the libraries that make a bundle; onnxruntime says its own, as several packages may bring it."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {**found, "onnxruntime": require_onnxruntime().__version__}


def _write_tokenizer(folder: Path, backbone: "Backbone", shortens: bool, prompts: Sequence[str]) -> dict[str, object]:
    text, config = vocabulary.convert(backbone.tokenizer, shortens)
    vocabulary.require_same_tokens(Tokenizer(text, config), backbone.tokenize, prompts)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return config.to_json()


def _write_reference(
    folder: Path,
    backbone: "Backbone",
    head: "Head",
    committee: "Committee | None",
    precisions: Sequence[Precision],
) -> dict[Precision, dict[str, float]]:
    """Write reference.npz, from torch; the tolerances returned are open until `_tolerances` closes them.

    Its pictures are generated: a bundle travels, and nobody's pictures should travel with it.
    """
    from PIL import Image

    pictures = parity.generated_pictures(REFERENCE_ROWS, seed=1)
    pixels = np.stack([preprocess(Image.fromarray(p), backbone.identity.preprocess) for p in pictures])
    prompts = np.array(PROMPTS[:REFERENCE_ROWS])
    vectors = torch_vectors(backbone, head.inputs, pixels, list(prompts))
    tokens = {"prompts": prompts, "tokens": backbone.tokenize(list(prompts))} if "text_embedding" in vectors else {}
    scores = {"score": torch_scores(head, vectors)}
    if committee:
        scores["uncertainty"] = torch_scores(committee, vectors)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, pixels=pixels, **scores, **tokens, **vectors)
    (folder / "reference.npz").write_bytes(buffer.getvalue())
    names = [*scores, *(name for name in vectors if name != "image_pooled")]
    return {precision: dict.fromkeys(names, np.finfo(np.float32).max.item()) for precision in precisions}


def _tolerances(folder: Path, manifest: BundleManifest) -> dict[Precision, dict[str, float]]:
    """By how much another machine may be off the reference: twice the most that was seen here.

    At fp32 the limits of the parity check; other kernels round otherwise, and at int8 much more so.
    """
    result = {}
    for precision, figures in manifest["parity"]["precisions"].items():
        seen = Scorer.load(folder, SessionConfig(precision=precision)).check_reference()
        largest = {"score": figures["scores"]["max_score_difference"]}
        largest |= {name: vector["max_difference"] for name, vector in figures["vectors"].items()}
        if uncertainty := figures.get("uncertainty"):
            largest["uncertainty"] = uncertainty["max_difference"]
        least = dict.fromkeys(("score", "uncertainty"), figures["scores"]["limit"]) if precision == "fp32" else {}
        result[precision] = {
            name: max(2 * max(seen[name], largest[name]), least.get(name, 1e-4))
            for name in manifest["reference"][precision]
        }
    return result


def _write_manifest(folder: Path, manifest: BundleManifest) -> BundleManifest:
    """Write bundle.json over every other file of the folder."""
    names = sorted(path.name for path in folder.iterdir() if path.name != "bundle.json")
    files: dict[str, FileEntry] = {
        name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size} for name in names
    }
    complete: BundleManifest = {**manifest, "files": files}
    with atomic_write(folder / "bundle.json") as file:
        file.write(manifest_bytes(complete))
    return complete
