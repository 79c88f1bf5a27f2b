"""Read and write heads: `head.json` (a description and its origin) and safetensors, without pickle.

head.json           format, head (its shape), identity and source of the backbone, loss, protocol, split, metrics,
                    calibration (heads.evaluation.calibration; absent until fitted), committee (the alignment of the
                    folds' heads, which tell the uncertainty of scores, heads.committee; null without --folds), reward
                    (certificates by precision, heads.reward.certificate; absent until measured)
head.safetensors    its weights
folds.safetensors   one head for each fold, which scores the rows that the fold holds out; absent without --folds
trained.parquet     id: the content ids of every picture and prompt that head.safetensors was trained on
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from embed.files import read_manifest, replacing, write_json, write_with
from embed.spec import InputError
from heads.committee import Alignment, Committee
from heads.models import Head, build_head, config_from_json

FORMAT = 1


class HeadManifest(TypedDict, total=False):
    """The objects that head.json holds."""

    head: dict[str, Any]
    identity: dict[str, Any]
    source: dict[str, Any]
    split: dict[str, Any]
    training: dict[str, Any]
    calibration: dict[str, Any] | None
    committee: Alignment | None
    fold_noise: float
    reward: dict[str, dict[str, Any]]


def save_head(
    path: Path,
    head: Head,
    fold_heads: Sequence[Head],
    trained_ids: pa.Array,
    manifest: Mapping[str, object],
    overwrite: bool = False,
) -> None:
    """Write a head (see embed.files.replacing). `manifest` holds the fields of head.json without its format."""
    from safetensors.torch import save

    with replacing(path, "head", overwrite) as folder:
        (folder / "head.safetensors").write_bytes(save(_contiguous(head)))
        if fold_heads:
            weights = {f"{i}.{name}": t for i, fold in enumerate(fold_heads) for name, t in _contiguous(fold).items()}
            (folder / "folds.safetensors").write_bytes(save(weights))
        write_with(folder / "trained.parquet", lambda file: pq.write_table(pa.table({"id": trained_ids}), file))
        write_json(folder / "head.json", {"format": FORMAT, **manifest})


def save_calibration(path: str | Path, calibration: Mapping[str, object]) -> None:
    """Store a calibration in the manifest of the head at `path`. It replaces a former one."""
    write_json(Path(path) / "head.json", {**load_manifest(path), "calibration": calibration})


def save_certificate(path: str | Path, precision: str, certificate: Mapping[str, object]) -> None:
    """Store the certificate of a reward at that precision in the manifest of the head at `path`."""
    manifest = load_manifest(path)
    write_json(Path(path) / "head.json", {**manifest, "reward": {**manifest.get("reward", {}), precision: certificate}})


def load_manifest(path: str | Path) -> HeadManifest:
    """The contents of head.json. Raise InputError if there is none."""
    return read_manifest(Path(path) / "head.json", "head", (FORMAT,), HeadManifest)


def load_head(path: str | Path) -> tuple[Head, HeadManifest]:
    """The head in eval mode and its manifest."""
    manifest = load_manifest(path)
    return _restore(manifest, _read(Path(path) / "head.safetensors"), path), manifest


def load_fold_heads(path: str | Path) -> list[Head]:
    """The heads of the folds in order; an empty list if the head was trained without folds."""
    manifest = load_manifest(path)
    folds = manifest["split"]["folds"] or 0
    weights = _read(Path(path) / "folds.safetensors") if folds else {}
    return [
        _restore(
            manifest, {name.removeprefix(f"{i}."): t for name, t in weights.items() if name.startswith(f"{i}.")}, path
        )
        for i in range(folds)
    ]


def load_committee(path: str | Path) -> Committee | None:
    """The committee, which tells the uncertainty of the head's scores. None if the head was trained without folds, or
    by a version without committees."""
    alignment = load_manifest(path).get("committee")
    if not alignment:
        return None
    heads = load_fold_heads(path)
    return Committee(heads[: len(alignment["gains"])], alignment, len(heads)).eval()


def load_trained_ids(path: str | Path) -> pa.ChunkedArray:
    """The content ids of all pictures and prompts that the head was trained on."""
    return pq.read_table(Path(path) / "trained.parquet")["id"]


def _restore(manifest: HeadManifest, weights: Mapping[str, Tensor], path: str | Path) -> Head:
    config = config_from_json(manifest["head"])
    if config.kind == "linear" and "layer.weight" in weights and weights["layer.weight"].shape[1:] == (config.dim,):
        config = replace(config, pooled_dim=0)  # formerly linear heads read no pooled features
    head = build_head(config)
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise InputError(
            f"{path}: the weights do not fit head.json at {wrong[0]!r}:"
            f" wanted shape {expected.get(wrong[0])}, got {found.get(wrong[0])}; train the head again"
        )
    head.load_state_dict(dict(weights))
    return head.eval()


def _contiguous(head: Head) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise InputError(f"{path} cannot be read ({error}); train the head again") from None
