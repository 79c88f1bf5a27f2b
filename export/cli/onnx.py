"""`python -m export onnx`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from embed.cli.console import progress, suggest
from embed.config import Overwriting
from embed.files import require_out
from embed.options import Option, comma_separated
from embed.spec import InputError
from export.cli.samples import Samples, parity_table
from export.config import ExportConfig

if TYPE_CHECKING:
    from export.outputs import NamedHead
    from runtime.scoring.manifest import BundleManifest


def onnx(
    head: tuple[Path, ...],
    /,
    *,
    out: Path,
    overwriting: Overwriting,
    config: partial[ExportConfig],
    names: Annotated[tuple[str, ...] | None, Option(parse=comma_separated)] = None,
    clip_similarity: bool = False,
    blends: Annotated[tuple[str, ...], Option("--blend")] = (),
    space: bool = False,
    head_only: bool = False,
    into: Path | None = None,
    samples: Samples,
) -> dict[str, object]:
    """Write a bundle: ONNX graphs, tokenizer, reference and model card.

    The bundle is compared with torch, and nothing is written if it is too far off.

    Several heads of one backbone share its weights and one pass over each picture. What asks for nothing else gets the
    first head's score.

    Example:
        plaudit export onnx head --images pictures --precision fp32,int8 --out bundle

    Args:
        head: A folder made by `python -m heads train`, or several.
        out: The folder to write the bundle to.
        names: The names by which the heads are asked for, with commas between them. By default their folders' names.
        clip_similarity: Give the cosine of picture and prompt too, which is zero-shot CLIP's score, by the name
            clip_similarity.
        blends: A weighted sum of outputs as another output, such as "0.7*liked + 0.3*aesthetic". The scores are summed
            as they are: see the column `spread` for how far each head's lie apart. It is called blend, or as in
            "mix = liked - 0.5*aesthetic".
        head_only: Leave the backbone's towers out, for vectors that are made elsewhere. So it is for a head on vectors
            that were adopted.
        into: A bundle with several outputs, whose heads of the same names these take the place of. Its other outputs
            stay as they are, but for blends of what has changed. It may be the same folder as --out, with --overwrite.
        space: Put the matrices of a cosine head into the embeddings, so that the bundle's vectors lie in its space.
    """
    require_out(out, "bundle", overwriting.overwrite)
    from embed.spec import Source, known_fields
    from export.bundle_writer import export_outputs
    from export.head_alone import export_head_alone
    from export.outputs import Outputs, parse_blends

    blended = parse_blends(blends)
    heads = named_heads(head, names, bool(clip_similarity or blended or into))
    if into is None:
        outputs = Outputs(heads, clip_similarity, blended)
    else:
        from export.kept import outputs_with
        from runtime.scoring.bundle import open_bundle

        if clip_similarity or blended or space:
            raise InputError("--into keeps the bundle's outputs; leave --clip-similarity, --blend and --space out")
        outputs = outputs_with(open_bundle(into), heads)
    source, filled = Source(**known_fields(Source, outputs.heads[0].manifest["source"])), samples.fill(config)
    if head_only or source.is_adopted:
        if space:
            raise InputError("--space puts a head into the towers, and this bundle has none; leave it out")
        return _report(out, export_head_alone(out, outputs, filled, progress, overwriting.overwrite))
    from embed.backbones.load import load_backbone

    backbone = load_backbone(source)
    if space:
        from export.graphs.space import into_space
        from heads.store.project import require_cosine

        if outputs.named:
            raise InputError("--space makes the vectors those of one head alone; leave it out, or the other outputs")
        only = outputs.heads[0]
        backbone, moved = into_space(backbone, require_cosine(only.head, str(head[0])))
        manifest = {**only.manifest, "identity": backbone.identity.to_json()}
        outputs = Outputs.of(moved, None, manifest)  # each member of a committee has a space of its own
    return _report(out, export_outputs(out, backbone, outputs, filled, progress, overwriting.overwrite))


def named_heads(folders: tuple[Path, ...], names: tuple[str, ...] | None, more: bool) -> "tuple[NamedHead, ...]":
    """The heads of those folders; one without `names` and without `more` outputs beside it has no name."""
    from export.outputs import NamedHead
    from heads.store.disk import load_committee, load_head
    from runtime.scoring.outputs import FIRST

    if names is not None and len(names) != len(folders):
        raise InputError(f"--names has {len(names)} names for {len(folders)} heads; wanted one for each")
    if names is None:
        names = tuple(folder.resolve().name for folder in folders) if len(folders) > 1 or more else (FIRST,)
    loaded = [(name.strip(), folder, *load_head(folder)) for name, folder in zip(names, folders, strict=True)]
    return tuple(NamedHead(name, head, load_committee(folder), manifest) for name, folder, head, manifest in loaded)


def _report(out: Path, manifest: "BundleManifest") -> dict[str, object]:
    first = [entry["name"] for entry in manifest.get("outputs", [])][:1]
    print(*parity_table(manifest["parity"], *first), f"written to {out}", sep="\n")
    if "image" in manifest["graphs"][next(iter(manifest["graphs"]))]:
        suggest(["runtime", "score", out, "--prompt", "a prompt", "PICTURE"], ["runtime", "serve", out])
    size_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
    return {"bundle": str(out), "size_bytes": size_bytes, "parity": manifest["parity"]}
