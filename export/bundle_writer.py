"""Write backbone and head from torch to a bundle on disk, which is compared with torch before it is put in place.

The bundle is built in a folder beside its destination and opened with the runtime's own `Scorer`, so that what is
compared with torch is exactly what will serve. It is renamed into place only if it agrees.
"""

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embed.arrays import Array, UInt8s
from embed.files import atomic_write, replacing
from embed.graphs.precision import is_convolutional, to_fp16, to_int8
from embed.inputs import vocabulary
from embed.inputs.images import ImageError, load_pixels
from embed.inputs.pixels import preprocess
from embed.inputs.tokenizer import Tokenizer
from embed.progress import Progress, Step, silent
from embed.spec import Identity, InputError, require_same_identity
from export import cuda, parity
from export.bundle_files import OPEN, begun_manifest, check_graphs, finish, save_reference, write_graphs, write_manifest
from export.config import ExportConfig
from export.graphs import compose
from export.measure import decoding_of, measure, torch_vectors
from export.outputs import Outputs
from heads.base import SOURCE
from heads.config import PROMPTS
from runtime.config import CUDA_PRECISION, Precision
from runtime.scoring.bundle import WEIGHTS_FILE
from runtime.scoring.manifest import BundleManifest, Part

if TYPE_CHECKING:
    from onnx import ModelProto

    from embed.backbones.backbone import Backbone
    from heads.committee import Committee
    from heads.models import Head

logger = logging.getLogger(__name__)

REFERENCE_ROWS = 4
CALIBRATION_BATCH = 16  # the number of pictures in a batch


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
    """Write the bundle to `out` (see embed.files.replacing) and return its manifest.

    With the committee of the head, the bundle also says how sure each score is.

    Raise ParityError, and write nothing, if the bundle differs too much from torch.
    """
    return export_outputs(out, backbone, Outputs.of(head, committee, head_manifest), config, progress, overwrite)


def export_outputs(
    out: Path,
    backbone: "Backbone",
    outputs: Outputs,
    config: ExportConfig,
    progress: Progress = silent,
    overwrite: bool = False,
) -> BundleManifest:
    """Do the same as `export_bundle` for one head or for several, which share one pass of the towers."""
    for one in outputs.heads:
        name = f"the head {one.name}" if outputs.named else "the head"
        identity = Identity.from_json(one.manifest["identity"])
        require_same_identity(identity, name, backbone.identity, "the backbone loaded for it")
    with replacing(out, "bundle", overwrite) as folder, progress(5, "steps", "export") as step:
        return _build(folder, backbone, outputs, config, step)


def _build(folder: Path, backbone: "Backbone", outputs: Outputs, config: ExportConfig, step: Step) -> BundleManifest:
    cuda.require_measurable(config.precisions)
    step(0, "exporting the towers")
    inputs = config.inputs_of_towers(outputs.inputs)
    decoding = decoding_of(backbone, inputs, config, [one.manifest.get("decoding") for one in outputs.heads])
    reads_text = "text_embedding" in inputs
    shortens = reads_text and compose.text_shortens(backbone, config.prompts)
    tokenizer = _write_tokenizer(folder, backbone, shortens, config.prompts) if reads_text else None
    parts = _export_parts(backbone, outputs, inputs, shortens)
    step(2, "writing the graphs")
    calibration, pictures = _divide(parts["image"], config)
    with atomic_write(folder / WEIGHTS_FILE) as weights:
        writer = compose.WeightsWriter(weights)
        pixels = _calibration_pixels(calibration, backbone.identity)
        for_cuda = _towers_for_cuda(backbone, inputs, shortens, config.precisions)
        whole = ("image", *(["text"] if "text_embedding" in outputs.inputs else []))
        at = {precision: _graphs_at(precision, parts, pixels, for_cuda, whole) for precision in config.precisions}
        graphs = {name: write_graphs(folder, name, at, writer) for name in at}
    check_graphs(folder)
    reference = _write_reference(folder, backbone, outputs, inputs, config.precisions)
    made_with = {"identity": backbone.identity.to_json(), "source": asdict(backbone.source)}
    manifest = begun_manifest(outputs, made_with, tokenizer, graphs, reference)
    manifest["decoding"] = decoding
    write_manifest(folder, manifest)
    step(1, "comparing with torch")
    # The exporter leaves hundreds of megabytes in reference cycles, as much as the model, beside the sessions that are
    # opened next.
    del parts, at, for_cuda
    gc.collect()
    manifest["parity"] = measure(folder, backbone, outputs, replace(config, pictures=pictures))
    return finish(folder, manifest, step)


def _export_parts(
    backbone: "Backbone", outputs: Outputs, inputs: Sequence[str], shortens: bool
) -> dict[Part, "ModelProto"]:
    """Return the parts of the bundle's graphs at fp32, with towers that give `inputs`."""
    image = compose.export_image(backbone, inputs)
    parts: dict[Part, ModelProto] = {"image": image}
    widths = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in image.graph.output}
    if "text_embedding" in inputs:
        parts["text"] = compose.export_text(backbone, shortens)
        widths["text_embedding"] = backbone.identity.dim
    widths |= {name: backbone.identity.dim for name in outputs.inputs if name == SOURCE}
    parts["head"] = outputs.graph(widths)
    return parts


def _towers_for_cuda(
    backbone: "Backbone", inputs: Sequence[str], shortens: bool, precisions: Sequence[Precision]
) -> dict[Part, "ModelProto"]:
    """Return the towers' graphs at CUDA_PRECISION if asked for. Raise ParityError if their structure is wrong."""
    if CUDA_PRECISION not in precisions:
        return {}
    pixels, prompts = _reference_inputs(backbone.identity)
    reference = torch_vectors(backbone, inputs, pixels, prompts)
    sample: dict[str, Array] = {"pixels": pixels, "tokens": backbone.tokenize(prompts)}
    return cuda.cuda_towers(backbone, inputs, shortens, sample, reference)


def _divide(image: "ModelProto", config: ExportConfig) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the pictures to calibrate a convolution trunk's int8 with, and the pictures to measure on."""
    if set(config.precisions) != {"fp32"} and not config.pictures:
        raise InputError("fp16, fp16-cuda and int8 are measured on real pictures; add --images FOLDER")
    if "int8" not in config.precisions or not is_convolutional(image):
        return (), config.pictures
    if len(config.pictures) < 8:
        raise InputError(f"{len(config.pictures)} pictures are too few to calibrate and measure int8; give at least 8")
    return config.pictures[::4], tuple(p for i, p in enumerate(config.pictures) if i % 4)


def _calibration_pixels(paths: Sequence[Path], identity: Identity) -> list[UInt8s]:
    """Return batches (n, h, w, 3) of those pictures that can be read."""
    pixels = []
    for path in paths:
        try:
            pixels.append(load_pixels(path.read_bytes(), identity.preprocess)[0])
        except ImageError as error:
            logger.warning(f"{path}: {error}")
    return [np.stack(pixels[start : start + CALIBRATION_BATCH]) for start in range(0, len(pixels), CALIBRATION_BATCH)]


def _graphs_at(
    precision: Precision,
    parts: Mapping[Part, "ModelProto"],
    pixels: Sequence[UInt8s],
    for_cuda: Mapping[Part, "ModelProto"],
    whole: Sequence[str],
) -> dict[Part, "ModelProto"]:
    """Return all graphs of the bundle at a precision. The head is small and stays in float32. The graph of all parts
    has the towers named in `whole`."""
    convert: dict[Precision, Callable[[Part], ModelProto]] = {
        "fp32": lambda part: parts[part],
        "fp16": lambda part: to_fp16(parts[part]),
        "int8": lambda part: to_int8(parts[part], pixels if part == "image" else ()),
        CUDA_PRECISION: for_cuda.__getitem__,
    }
    towers: dict[Part, ModelProto] = {part: convert[precision](part) for part in parts if part != "head"}
    graphs = {**towers, "head": parts["head"]}
    return {
        **graphs,
        "model": compose.join(towers["image"], towers["text"] if "text" in whole else None, parts["head"]),
    }


def _write_tokenizer(folder: Path, backbone: "Backbone", shortens: bool, prompts: Sequence[str]) -> dict[str, object]:
    text, config = vocabulary.convert(backbone.tokenizer, shortens)
    vocabulary.require_same_tokens(Tokenizer(text, config), backbone.tokenize, prompts)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return config.to_json()


def _write_reference(
    folder: Path, backbone: "Backbone", outputs: Outputs, inputs: Sequence[str], precisions: Sequence[Precision]
) -> dict[Precision, dict[str, float]]:
    """Write reference.npz from torch. Return tolerances that stay open until `finish` sets them.

    Its pictures are generated, because a bundle may be given away, and nobody's pictures should be in it.
    """
    pixels, prompts = _reference_inputs(backbone.identity)
    vectors = torch_vectors(backbone, inputs, pixels, prompts)
    tokens = {"prompts": np.array(prompts), "tokens": backbone.tokenize(prompts)} if "text_embedding" in vectors else {}
    names = save_reference(folder, outputs, vectors, pixels=pixels, **tokens)
    names += [name for name in vectors if name not in ("image_pooled", SOURCE)]
    return {precision: dict.fromkeys(names, OPEN) for precision in precisions}


def _reference_inputs(identity: Identity) -> tuple[UInt8s, list[str]]:
    """Return pixels (n, h, w, 3) of generated pictures, and as many prompts."""
    from PIL import Image

    pictures = parity.generated_pictures(REFERENCE_ROWS, seed=1)
    pixels = np.stack([preprocess(Image.fromarray(picture), identity.preprocess) for picture in pictures])
    return pixels, list(PROMPTS[:REFERENCE_ROWS])
