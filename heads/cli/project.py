"""`python -m heads project`."""

from pathlib import Path

from embed.cli.console import progress, suggest
from embed.files import require_out


def project(head: Path, /, *, cache: str, out: Path) -> dict[str, object]:
    """Move a cache into a cosine head's own space, to be indexed there.

    `python -m runtime index` takes it with a bundle of `python -m export onnx --space`.

    Example:
        plaudit heads project head --cache cache --out moved

    Args:
        head: A cosine head.
        cache: The cache whose vectors to move.
        out: The folder to write the new cache to.
    """
    require_out(out, "cache", overwrite=True)
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
