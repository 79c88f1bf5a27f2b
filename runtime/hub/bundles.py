"""Push bundles to a hub of models as one commit, and pull them, verified against their manifest.

The login is that of huggingface_hub (HF_TOKEN, or `hf auth login`), and so is the hub (HF_ENDPOINT). Nothing that is
pulled is run, and only files that the bundle's manifest names are fetched.
"""

import glob
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

from embed.files import replacing
from embed.progress import Progress, silent
from embed.spec import InputError
from runtime.scoring.bundle import BundleError, open_bundle

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MANIFEST = "bundle.json"
NEW = {".gitattributes", "README.md", "LICENSE"}  # files that a hub creates in a new repository
MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Pushed:
    """The repository and the commit of a pushed bundle."""

    repo: str
    url: str
    commit: str  # as `revision` of `pull` it gives exactly these bytes


def push(bundle: Path, repo: str, public: bool = False, message: str = "Push a bundle") -> Pushed:
    """Verify a bundle and send it to a repository OWNER/NAME, which is created if it does not exist, private unless
    `public`.

    Files of a former bundle are removed in the same commit, and other files stay. Raise InputError if it is not a
    bundle, if the repository holds something else, or if the hub refuses.
    """
    opened, api = open_bundle(bundle), _api()
    with _refusals(repo):
        api.create_repo(repo, private=not public, exist_ok=True)
        wanted = [*opened.manifest["files"], MANIFEST]
        done = api.upload_folder(
            repo_id=repo,
            folder_path=opened.path,
            allow_patterns=wanted,
            delete_patterns=[glob.escape(name) for name in _former(api, repo) if name not in wanted],
            commit_message=message,
        )
    return Pushed(repo, f"{api.endpoint}/{repo}", done.oid)


def _former(api: "HfApi", repo: str) -> list[str]:
    """The files of the bundle in a repository, or nothing for a new one. Raise InputError if it holds something
    else."""
    there = set(api.list_repo_files(repo)) - NEW
    if not there:
        return []
    if MANIFEST not in there:
        raise InputError(
            f"{repo} holds {len(there)} files that are not a bundle, such as {min(there)}; push to a new repository"
        )
    with TemporaryDirectory() as name:
        _fetch(api, repo, "main", MANIFEST, Path(name))
        return [file for file in _names(Path(name) / MANIFEST, repo) if file in there]


def pull(
    repo: str, out: Path, revision: str | None = None, overwrite: bool = False, progress: Progress = silent
) -> str:
    """Fetch a bundle into the folder `out`, which is created only after all files are verified, and return its commit.

    `revision` is a branch, a tag or a commit. Raise InputError if the hub has no such bundle, or if its files do not
    match its manifest.
    """
    api = _api()
    with replacing(out, "bundle", overwrite) as folder:
        with _refusals(repo):
            commit = api.repo_info(repo, revision=revision).sha
            if commit is None:
                raise InputError(f"the hub does not say which commit of {repo} this is; try again with --revision")
            _fetch(api, repo, commit, MANIFEST, folder)
            names = _names(folder / MANIFEST, repo)
            with progress(len(names), "file", f"pull {repo}") as step:
                for name in names:
                    _fetch(api, repo, commit, name, folder)
                    step()
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # left by huggingface_hub
        try:
            open_bundle(folder)
        except BundleError as error:
            said = str(error).replace(str(folder), f"{repo} at {commit[:12]}")
            raise InputError(f"what the hub gave is not the bundle that was pushed: {said}") from None
    return commit


def _fetch(api: "HfApi", repo: str, commit: str, name: str, folder: Path) -> None:
    path = Path(api.hf_hub_download(repo, name, revision=commit, local_dir=folder))
    if path.is_symlink() or path.parent.resolve() != folder.resolve():
        raise InputError(f"{repo} has a file {name} that is not a plain file; such a bundle is not pulled")


def _names(manifest: Path, repo: str) -> list[str]:
    """The files that a manifest names. Nothing else in it is trusted before all files are verified."""
    if manifest.stat().st_size > MAX_MANIFEST_BYTES:
        raise InputError(
            f"{MANIFEST} of {repo} has {manifest.stat().st_size} bytes, more than that of any bundle; it is not pulled"
        )
    try:
        names = list(json.loads(manifest.read_bytes())["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{MANIFEST} of {repo} is not a manifest of a bundle; push one with `runtime push`") from None
    for name in names:
        if Path(name).name != name or name in (MANIFEST, ".cache"):
            raise InputError(
                f"{MANIFEST} of {repo} names {name!r}, which is not a file of bundles; such a bundle is not pulled"
            )
    return names


def _api() -> "HfApi":
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise InputError("a hub needs huggingface_hub; run: pip install 'plaudit[hub]'") from None
    return HfApi(library_name="plaudit")


@contextmanager
def _refusals(repo: str) -> Iterator[None]:
    """Turn refusals of the hub, and a hub that cannot be reached, into InputError."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        _fail(f"{repo} is gated; ask for access on its page", error)
    except errors.RepositoryNotFoundError as error:
        _fail(
            f"the hub has no repository {repo}, or it is private; check the name, or log in with `hf auth login`", error
        )
    except errors.RevisionNotFoundError as error:
        _fail(f"{repo} has no such revision", error)
    except errors.LocalEntryNotFoundError as error:  # raised if the file is not in the local cache either
        _fail("the hub cannot be reached", error)
    except errors.EntryNotFoundError as error:
        _fail(f"{repo} lacks a file of a bundle", error)
    except errors.HFValidationError as error:
        _fail(f"{repo!r} is not a name of a repository; wanted OWNER/NAME", error)
    except errors.HfHubHTTPError as error:
        _fail(f"the hub refused {repo}", error)
    except Exception as error:
        if not (
            isinstance(error, OSError) or type(error).__module__.startswith("httpx")
        ):  # the package of its errors has changed its name
            raise
        _fail("the hub cannot be reached", error)


def _fail(what: str, error: Exception) -> NoReturn:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    raise InputError(f"{what} ({first})") from None
