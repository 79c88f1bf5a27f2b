"""Write heads on disk as a bundle, and say how close it is to torch: for `export onnx` and `plaudit.export`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from embed.backbones.load import load_backbone
from embed.files import require_out
from embed.graphs.trace import OPSET
from embed.inputs.fetch import some_pictures
from embed.inputs.shown import Artifact
from embed.progress import Progress, silent
from embed.spec import InputError, Source, known_fields
from embed.wording import table, unknown_name
from export.bundle_writer import export_outputs
from export.card import lowest_cosine, measured_on, scores_of
from export.config import ExportConfig
from export.graphs.kept import KeptHead, taken_out
from export.graphs.space import into_space
from export.head_alone import export_head_alone
from export.outputs import PROVENANCE, NamedHead, Outputs, parse_blends
from heads.config import PROMPTS
from heads.store.disk import load_committee, load_head
from heads.store.project import require_cosine
from runtime.config import Precision
from runtime.scoring.bundle import Bundle
from runtime.scoring.manifest import BundleManifest, OutputEntry, Parity
from runtime.scoring.outputs import FIRST
from runtime.scoring.outputs import Outputs as ServedOutputs

if TYPE_CHECKING:
    from onnx import ModelProto

    from heads.committee import Committee

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class Exported(Artifact):
    """A bundle on disk, and how close its scores are to torch's. It can be used wherever a bundle's path can."""

    manifest: BundleManifest = field(compare=False)

    @property
    def scores_pictures(self) -> bool:
        """Whether it has the backbone's towers. Without them it only scores vectors."""
        return "image" in next(iter(self.manifest["graphs"].values()))


def export(
    head: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    images: PathLike | None = None,
    samples: int = 200,
    prompts: Sequence[str] = PROMPTS,
    max_flips: float = 0.005,
    decoding: Literal["auto", "exact", "scaled"] = "auto",
    text_search: bool = False,
    names: Sequence[str] | None = None,
    clip_similarity: bool = False,
    blends: Sequence[str] = (),
    space: bool = False,
    head_only: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Write a bundle: ONNX graphs, tokenizer, reference and model card. It is compared with torch before it is kept.

    Args:
        head: The result of `train`, or the path of a head. Or several of one backbone, which share one pass over each
            picture.
        out: The folder to write the bundle to.
        precisions: The precisions of the bundle's graphs: fp32, fp16, int8, fp16-cuda. The runtime uses the first one.
        images: A folder of pictures to compare on. By default pictures are generated.
        samples: How many pictures of the folder are used.
        prompts: The prompts to compare on.
        max_flips: The largest share of decided pairs of pictures whose order may change.
        decoding: How the runtime decodes large JPEGs.
        text_search: Keep the tower for texts even if no head reads prompts, to search a catalogue by text.
        names: Names for the outputs of several heads. By default the names of their folders.
        clip_similarity: Add zero-shot CLIP's score as the output clip_similarity.
        blends: Other outputs that are weighted sums of outputs, such as "0.7*liked + 0.3*aesthetic".
        space: Put the matrices of a cosine head into the embeddings.
        head_only: Leave the backbone's towers out, for vectors that are made elsewhere.
        overwrite: Replace a bundle that `out` already holds, once the new one is complete.
        progress: It is called with the progress of the work. By default nothing is shown.

    Raise InputError if something cannot be exported. Raise ParityError, and write nothing, if torch differs too much.
    """
    several = isinstance(head, Sequence) and not isinstance(head, str)
    folders = tuple(Path(one) for one in (cast(Sequence[PathLike], head) if several else [cast(PathLike, head)]))
    require_out(Path(out), "bundle", overwrite)
    pictures = () if images is None else tuple(some_pictures(Path(images), samples))
    config = ExportConfig(
        tuple(precisions), decoding, text_search, pictures=pictures, prompts=tuple(prompts), max_flips=max_flips
    )
    blended = parse_blends(tuple(blends))
    heads = named_heads(folders, None if names is None else tuple(names), bool(clip_similarity or blended))
    outputs = Outputs(heads, clip_similarity, blended)
    return export_named(Path(out), outputs, config, space, head_only, overwrite, progress)


def export_named(
    out: Path,
    outputs: Outputs,
    config: ExportConfig,
    space: bool = False,
    head_only: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Write the bundle of heads that are loaded.

    It has the towers of their backbone unless `head_only` is set or the heads are on adopted vectors.
    """
    source = Source(**known_fields(Source, outputs.heads[0].manifest["source"]))
    if head_only and config.text_search:
        raise InputError("--text-search keeps a tower of the backbone, and --head-only none; leave one of them out")
    if head_only or source.is_adopted:
        if space:
            raise InputError("--space puts a head into the towers, but this bundle has no towers; leave it out")
        return exported(out, export_head_alone(out, outputs, config, progress, overwrite))
    backbone = load_backbone(source)
    if space:
        if outputs.named:
            raise InputError("--space makes the vectors those of a single head; leave it out, or the other outputs")
        only = outputs.heads[0]
        backbone, moved = into_space(backbone, require_cosine(only.head, "the head"))
        manifest = {**only.manifest, "identity": backbone.identity.to_json()}
        outputs = Outputs.of(moved, None, manifest)  # without the committee, whose members have spaces of their own
    return exported(out, export_outputs(out, backbone, outputs, config, progress, overwrite))


def named_heads(folders: Sequence[Path], names: Sequence[str] | None, more: bool) -> tuple[NamedHead, ...]:
    """Load the heads of those folders. A single head without `names`, and without `more` outputs, gets no name."""
    if names is not None and len(names) != len(folders):
        raise InputError(f"--names has {len(names)} names for {len(folders)} heads; wanted one for each")
    if names is None:
        names = tuple(folder.resolve().name for folder in folders) if len(folders) > 1 or more else (FIRST,)
    loaded = [(name.strip(), folder, *load_head(folder)) for name, folder in zip(names, folders, strict=True)]
    return tuple(NamedHead(name, head, load_committee(folder), manifest) for name, folder, head, manifest in loaded)


def outputs_with(bundle: Bundle, new: Sequence[NamedHead]) -> Outputs:
    """Return the bundle's outputs, with these heads in the places of its heads of the same names.

    Raise InputError if a name is not that of a head in the bundle, or if the bundle's only output has no name.
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
    """Return heads of the bundle by name. Raise InputError if its graphs have another version of ONNX."""
    import onnx

    if bundle.manifest["opset"] != OPSET:
        raise InputError(f"{bundle.path} was exported by another plaudit; export it again from all of its heads")
    graph = bundle.graph(next(iter(bundle.graphs)), "head")
    model = onnx.load(str(bundle.path / graph.file))
    served = {output.name: output for output in ServedOutputs.of(bundle.manifest, graph.outputs).all}
    entries = {entry["name"]: entry for entry in bundle.manifest.get("outputs", [])}
    return [
        _kept(bundle, entries[name], taken_out(model, name, entries[name]["inputs"], served[name].values))
        for name in names
    ]


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


def exported(out: Path, manifest: BundleManifest) -> Exported:
    """Return the result for a bundle that was just written."""
    first = [entry["name"] for entry in manifest.get("outputs", [])][:1]
    size_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
    document = {"bundle": str(out), "size_bytes": size_bytes, "parity": manifest["parity"]}
    return Exported(out, (*parity_lines(manifest["parity"], *first), f"written to {out}"), document, manifest)


def parity_lines(parity: Parity, first: str = "") -> list[str]:
    """Return lines that say how far a bundle is from torch, for each precision.

    If the first output has a name, there are lines for each output.
    """
    rows = [
        [
            precision,
            *([name, f"{scores['score_spread']:.3g}"] if first else []),
            f"{scores['max_score_difference']:.1e}",
            f"{scores['spearman']:.6f}",
            f"{scores['flips']:.3%} of {scores['decided_pairs']}",
            lowest_cosine(figures),
        ]
        for precision, figures in parity["precisions"].items()
        for name, scores in scores_of(figures, first).items()
    ]
    lines = []
    if found := parity.get("decoding"):
        lines.append(
            f"decoded at a reduced size, {found['pictures']} of the pictures have a cosine of at least"
            f" {found['cosine_min']:.6f} to exact ones, and {found['flips']:.3%} of {found['decided_pairs']} pairs are"
            " flipped"
        )
    named = ["output", "spread"] if first else []
    header = ["precision", *named, "score off by", "rank correlation", "pairs flipped", "lowest cosine"]
    return [
        f"ONNX against torch on {measured_on(parity)}:",
        *table(header, rows),
        *lines,
    ]
