"""`python -m runtime push` and `pull`."""

from dataclasses import asdict
from pathlib import Path

from embed.cli.console import progress, suggest
from embed.config import Overwriting
from embed.files import require_out


def push(bundle: Path, repo: str, /, *, public: bool = False, message: str = "Push a bundle") -> dict[str, object]:
    """Send a bundle to a hub of models, such as Hugging Face's, as one commit.

    A new repository is private. Log in first by `hf auth login` or the variable HF_TOKEN.

    Example:
        plaudit runtime push bundle me/likes

    Args:
        bundle: A folder made by `python -m export onnx`.
        repo: The repository, OWNER/NAME. It is created if it does not exist.
        public: Make a new repository visible to everybody.
        message: The message of the commit.
    """
    from runtime.hub.bundles import push

    done = push(bundle, repo, public, message)
    print(f"{bundle} is at {done.url}, commit {done.commit}")
    suggest(["runtime", "pull", repo, "--revision", done.commit, "--out", "pulled"])
    return asdict(done)


def pull(repo: str, /, *, out: Path, revision: str | None = None, overwriting: Overwriting) -> dict[str, object]:
    """Fetch a bundle from a hub of models and verify it against its manifest. No code from it is run.

    Example:
        plaudit runtime pull me/likes --out bundle

    Args:
        repo: The repository, OWNER/NAME.
        out: The folder to write the bundle to.
        revision: The branch, tag or commit. By default the newest.
    """
    require_out(out, "bundle", overwriting.overwrite)
    from runtime.hub.bundles import pull

    commit = pull(repo, out, revision, overwriting.overwrite, progress)
    print(f"{out}: {repo} at commit {commit}, every byte verified")
    suggest(
        ["runtime", "score", out, "--prompt", "a prompt", "PICTURE"],
        ["runtime", "serve", out],
    )
    return {"bundle": str(out), "repo": repo, "commit": commit}
