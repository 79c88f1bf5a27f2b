"""`python -m heads import` and `project`: make heads from published ones, and move caches into a head's space."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from embed.cli.console import progress, suggest
from embed.config import Overwriting
from embed.files import require_kind, require_out
from embed.spec import InputError
from heads.cli.common import suggest_uses


def import_published(weights: Path, /, *, cache: str, out: Path, overwriting: Overwriting) -> dict[str, object]:
    """Convert a published head for the backbone of a cache.

    Example:
        plaudit heads import sa_0_4_vit_l_14_linear.pth --cache cache --out head

    Args:
        weights: A .pth, .bin or .safetensors file that holds only tensors: an aesthetic predictor, or a scorer in CLIP
            form (PickScore, HPSv2, Social Reward) with which the cache was made.
        cache: A cache of the backbone that the head was published for.
        out: The folder to write the head to.
    """
    require_out(out, "head", overwriting.overwrite)
    require_kind(cache, "cache")
    import pyarrow as pa

    from embed.cache.store import Cache
    from embed.files import sha256_file
    from heads.store import disk
    from heads.store.published import read_published, read_scorer

    opened = Cache.open(cache)
    scorer = read_scorer(weights, opened.identity.dim)
    if scorer and not _made_with(opened.source, weights):
        raise InputError(
            f"{weights} is a backbone of its own, and {cache} was not made with it (--model"
            f" {opened.source.model} --pretrained {opened.source.pretrained}); embed with --pretrained {weights},"
            " or with TAG@ before it"
        )
    head, config = scorer or read_published(weights)
    if config.dim != opened.identity.dim:
        raise InputError(
            f"{weights} reads vectors of {config.dim} numbers and {cache} has {opened.identity.dim}"
            f" ({opened.identity.model}); give a cache of the backbone that the head was published for"
        )
    manifest = {
        "head": asdict(config),
        "identity": opened.identity.to_json(),
        "source": asdict(opened.source),
        "published": {"file": weights.name, "sha256": sha256_file(weights)},
        "split": {"by": None, "folds": None, "test_fraction": None, "seed": 0, "hash": None},
    }
    disk.save_head(out, head, [], pa.array([], pa.string()), manifest, overwriting.overwrite)
    print(f"{config.kind} head for vectors of {config.dim} numbers, written to {out}")
    if not scorer:
        print(f"the file does not name its backbone; {opened.identity.model} of {cache} is assumed")
    suggest_uses(out, cache, "TABLE")
    return {"head": str(out), "kind": config.kind, "model": opened.identity.model}


def _made_with(source: Any, checkpoint: Path) -> bool:
    """Whether the vectors of a cache come from this checkpoint, even if the file was moved or renamed."""
    from embed.backbones.checkpoints import FOLDER
    from embed.files import sha256_file

    if source.model.startswith(FOLDER):
        return Path(source.model.removeprefix(FOLDER)).resolve() == checkpoint.resolve().parent
    used = Path((source.pretrained or "").rpartition("@")[2])
    return used.is_file() and (used.samefile(checkpoint) or sha256_file(used) == sha256_file(checkpoint))


def project(head: Path, /, *, cache: str, out: Path) -> dict[str, object]:
    """Move the vectors of a cache into a cosine head's own space, so that they can be indexed there.

    `python -m runtime index` takes the new cache together with a bundle made by `python -m export onnx --space`.

    Example:
        plaudit heads project head --cache cache --out moved

    Args:
        head: A cosine head.
        cache: The cache whose vectors to move.
        out: The folder to write the new cache to.
    """
    require_out(out, "cache", overwrite=True)
    require_kind(head, "head")
    require_kind(cache, "cache")
    from embed.cache.store import Cache
    from embed.spec import Identity
    from heads.store.disk import load_head
    from heads.store.project import project_cache, require_cosine

    loaded, manifest = load_head(head)
    cosine, opened = require_cosine(loaded, str(head)), Cache.open(cache)
    identity = project_cache(opened, cosine, Identity.from_json(manifest["identity"]), out, progress)
    print(f"{out}: the {opened.count('images'):,} pictures of {cache} in the space of {head}")
    bundle = out.with_name("bundle")
    suggest(
        ["export", "onnx", head, "--space", "--out", bundle],
        ["runtime", "index", out, "--popularity", "TABLE", "--bundle", bundle, "--out", out.with_name("catalogue")],
    )
    return {"cache": str(out), "identity": identity.to_json()}
