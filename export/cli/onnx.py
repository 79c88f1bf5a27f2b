"""`python -m export onnx`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from embed.cli.console import progress
from embed.config import Overwriting
from embed.files import require_out
from export.cli.samples import Samples, parity_table
from export.config import ExportConfig

if TYPE_CHECKING:
    from runtime.scoring.manifest import BundleManifest


def onnx(
    head: Path,
    /,
    *,
    out: Path,
    overwriting: Overwriting,
    config: partial[ExportConfig],
    space: bool = False,
    head_only: bool = False,
    samples: Samples,
) -> dict[str, object]:
    """Write a bundle: ONNX graphs, tokenizer, reference and model card.

    The bundle is compared with torch, and nothing is written if it is too far off.

    Args:
        head: A folder made by `python -m heads train`.
        out: The folder to write the bundle to.
        head_only: Leave the backbone's towers out, for vectors that are made elsewhere. So it is for a head on vectors
            that were adopted.
        space: Put the matrices of a cosine head into the embeddings, so that the bundle's vectors lie in its space.
    """
    require_out(out, "bundle", overwriting.overwrite)
    from embed.spec import InputError, Source, known_fields
    from export.bundle_writer import export_bundle
    from export.head_alone import export_head_alone
    from heads.store.disk import load_committee, load_head

    loaded, head_manifest = load_head(head)
    committee = load_committee(head)
    source, filled = Source(**known_fields(Source, head_manifest["source"])), samples.fill(config)
    if head_only or source.is_adopted:
        if space:
            raise InputError("--space puts a head into the towers, and this bundle has none; leave it out")
        options = (loaded, committee, head_manifest, filled, progress, overwriting.overwrite)
        return _report(out, export_head_alone(out, *options))
    from embed.backbones.load import load_backbone

    backbone = load_backbone(source)
    if space:
        from export.graphs.space import into_space
        from heads.store.project import require_cosine

        backbone, loaded = into_space(backbone, require_cosine(loaded, str(head)))
        committee = None  # each of its members has a space of its own
        head_manifest = {**head_manifest, "identity": backbone.identity.to_json()}
    manifest = export_bundle(out, backbone, loaded, head_manifest, filled, progress, overwriting.overwrite, committee)
    return _report(out, manifest)


def _report(out: Path, manifest: "BundleManifest") -> dict[str, object]:
    print(*parity_table(manifest["parity"]), f"written to {out}", sep="\n")
    size_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
    return {"bundle": str(out), "size_bytes": size_bytes, "parity": manifest["parity"]}
