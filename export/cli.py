"""`python -m export`: a head and its backbone as an ONNX bundle, and the proof that it is still right."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed import console
from embed.console import command, say, table
from embed.spec import InputError
from embed.wording import one_line

if TYPE_CHECKING:
    from runtime.scoring.bundle import Parity

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code (see embed.console)."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    onnx = command(commands, "onnx", export_onnx, "write a bundle: ONNX graphs, tokenizer, reference, model card")
    onnx.add_argument("head", type=Path, metavar="HEAD", help="a folder made by `python -m heads train`")
    onnx.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the folder to write the bundle to")
    onnx.add_argument(
        "--precision",
        type=lambda names: tuple(names.split(",")),
        default=("fp32",),
        metavar="NAME,...",
        help="of fp32,fp16,int8; the first is what the runtime takes when not told otherwise (default fp32)",
    )
    onnx.add_argument("--space", action="store_true", help="put a cosine head's matrices into the embeddings")
    _add_measure_options(onnx)
    check = command(commands, "check", check_bundle, "prove that a bundle still gives the scores it gave at export")
    check.add_argument("bundle", type=Path, metavar="BUNDLE")
    check.add_argument("--provider", action="append", help="onnxruntime's, such as cpu or cuda (the best installed)")
    check.add_argument("--head", type=Path, help="the head it was made of, to run that in torch too")
    check.add_argument("--runtime-only", action="store_true", help="do not compare with torch, even where it is there")
    _add_measure_options(check)
    triton = command(commands, "triton", export_triton, "write a bundle as a model repository of NVIDIA Triton")
    triton.add_argument("bundle", type=Path, metavar="BUNDLE")
    triton.add_argument("--out", type=Path, required=True, metavar="REPO", help="the folder to write; not there yet")
    triton.add_argument("--precision", help="one of the bundle's (its first)")
    triton.add_argument("--name", default="plaudit", help="of the model; its parts are NAME_image, ... (%(default)s)")
    return console.main(parser, argv)


def _add_measure_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="pictures to compare on (generated ones)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="prompts to compare under, one a line (ours)")
    parser.add_argument("--samples", type=int, default=200, help="pictures of the folder to take (default 200)")
    parser.add_argument(
        "--max-flips",
        type=float,
        default=0.005,
        help="share of decided pairs of pictures that may change their order (default 0.005)",
    )


def export_onnx(args: argparse.Namespace) -> dict[str, Any]:
    """Export, compare with torch, write."""
    from embed.backbones.load import load_backbone
    from embed.spec import Source, known_fields
    from export.bundle_writer import export_bundle
    from heads.store.disk import load_head

    head, head_manifest = load_head(args.head)
    backbone = load_backbone(Source(**known_fields(Source, head_manifest["source"])))
    if args.space:
        from export.space import into_space
        from heads.store.project import require_cosine

        backbone, head = into_space(backbone, require_cosine(head, str(args.head)))
        head_manifest = {**head_manifest, "identity": backbone.identity.to_json()}
    manifest = export_bundle(args.out, backbone, head, head_manifest, _config(args, args.precision), console.progress)
    say(args, *_parity_table(manifest["parity"]), f"written to {args.out}")
    size_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
    return {"bundle": str(args.out), "size_bytes": size_bytes, "parity": manifest["parity"]}


def check_bundle(args: argparse.Namespace) -> dict[str, Any]:
    """Two halves: the reference through this machine's sessions, and torch itself where it and the weights are."""
    from runtime.scoring.bundle import open_bundle
    from runtime.scoring.scorer import Scorer

    bundle = open_bundle(args.bundle)
    reference = {
        precision: Scorer(bundle, providers=args.provider, precision=precision).check_reference()
        for precision in bundle.graphs
    }
    say(args, f"{args.bundle}: every file is the one that was exported")
    rows = [[precision, *(f"{value:.3g}" for value in row.values())] for precision, row in reference.items()]
    say(args, *table(["reference", *next(iter(reference.values()))], rows))
    result: dict[str, Any] = {"bundle": str(args.bundle), "digest": bundle.digest, "reference": reference}
    reason = "--runtime-only" if args.runtime_only else _missing_for_torch()
    if reason:
        say(args, f"not compared with torch: {reason}")
        return {**result, "torch": None}
    return {**result, "torch": _compare_with_torch(args, bundle)}


def export_triton(args: argparse.Namespace) -> dict[str, Any]:
    """Write a model repository; mirrors export.triton.export_repository."""
    from export.triton import export_repository
    from runtime.scoring.bundle import open_bundle

    models = export_repository(open_bundle(args.bundle), args.out, args.precision, args.name)
    say(args, f"models {', '.join(models)} written to {args.out}")
    return {"out": str(args.out), "models": models}


def _missing_for_torch() -> str | None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "open_clip") if find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


def _compare_with_torch(args: argparse.Namespace, bundle: Any) -> "Parity | None":
    from embed.backbones.load import load_backbone
    from embed.spec import require_same_identity
    from export.measure import measure

    try:
        backbone = load_backbone(bundle.source)
    except (InputError, OSError) as error:
        say(args, f"not compared with torch: the backbone cannot be loaded here ({one_line(error)})")
        return None
    require_same_identity(
        bundle.identity, f"the bundle {args.bundle}", backbone.identity, "the backbone on this machine"
    )
    config = _config(args, tuple(bundle.graphs))
    result = measure(
        args.bundle,
        backbone,
        _head_in_torch(args),
        config.precisions,
        config.pictures,
        config.prompts,
        config.max_flips,
    )
    say(args, *_parity_table(result))
    return result


def _head_in_torch(args: argparse.Namespace) -> Any:
    from heads.store.disk import load_head

    return load_head(args.head)[0] if args.head else None


def _config(args: argparse.Namespace, precisions: tuple[str, ...]) -> Any:
    from export.bundle_writer import ExportConfig

    options: dict[str, Any] = {"precisions": precisions, "max_flips": args.max_flips}
    if args.images is not None:
        options["pictures"] = tuple(some_pictures(args.images, args.samples))
    if args.prompts is not None:
        lines = args.prompts.read_text(encoding="utf-8").splitlines()
        options["prompts"] = tuple(line.strip() for line in lines if line.strip())
    return ExportConfig(**options)


def some_pictures(folder: Path, count: int) -> list[Path]:
    """Up to `count` picture files under the folder, evenly spread over their sorted names."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if len(paths) < 2:
        raise InputError(f"{folder} holds {len(paths)} pictures; wanted at least two to compare")
    return [paths[i * len(paths) // count] for i in range(count)] if len(paths) > count else paths


def _parity_table(parity: "Parity") -> list[str]:
    rows = [
        [
            precision,
            f"{figures['scores']['max_score_difference']:.1e}",
            f"{figures['scores']['spearman']:.6f}",
            f"{figures['scores']['flips']:.3%} of {figures['scores']['decided_pairs']}",
            f"{min(v['cosine_min'] for v in figures['vectors'].values()):.7f}",
        ]
        for precision, figures in parity["precisions"].items()
    ]
    first = next(iter(parity["precisions"].values()))["scores"]
    header = ["precision", "score off by", "rank correlation", "pairs flipped", "lowest cosine"]
    return [
        f"ONNX against torch on {first['pictures']} {parity['pictures']} pictures under {first['prompts']} prompts:",
        *table(header, rows),
    ]
