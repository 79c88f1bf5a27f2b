"""`python -m export onnx`."""

from functools import partial
from pathlib import Path

from embed.cli.console import progress
from embed.config import Overwriting
from embed.files import require_out
from export.cli.samples import Samples, parity_table
from export.config import ExportConfig


def onnx(
    head: Path,
    /,
    *,
    out: Path,
    overwriting: Overwriting,
    config: partial[ExportConfig],
    space: bool = False,
    samples: Samples,
) -> dict[str, object]:
    """Write a bundle: ONNX graphs, tokenizer, reference and model card.

    The bundle is compared with torch, and nothing is written if it is too far off.

    Args:
        head: A folder made by `python -m heads train`.
        out: The folder to write the bundle to.
        space: Put the matrices of a cosine head into the embeddings, so that the bundle's vectors lie in its space.
    """
    require_out(out, "bundle", overwriting.overwrite)
    from embed.backbones.load import load_backbone
    from embed.spec import Source, known_fields
    from export.bundle_writer import export_bundle
    from heads.store.disk import load_committee, load_head

    loaded, head_manifest = load_head(head)
    committee = load_committee(head)
    backbone = load_backbone(Source(**known_fields(Source, head_manifest["source"])))
    if space:
        from export.space import into_space
        from heads.store.project import require_cosine

        backbone, loaded = into_space(backbone, require_cosine(loaded, str(head)))
        committee = None  # each of its members has a space of its own
        head_manifest = {**head_manifest, "identity": backbone.identity.to_json()}
    filled = samples.fill(config)
    manifest = export_bundle(out, backbone, loaded, head_manifest, filled, progress, overwriting.overwrite, committee)
    print(*parity_table(manifest["parity"]), f"written to {out}", sep="\n")
    size_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
    return {"bundle": str(out), "size_bytes": size_bytes, "parity": manifest["parity"]}
